# ompq-deploy on a Jetson with JetPack 6 (Orin): TensorRT 10.3 and CUDA 12.6 come with the base image.
#   docker build -t ompq-deploy .
#   docker run --rm --runtime nvidia -v "$PWD:/work" ompq-deploy model.onnx --size 6.7MB --target tensorrt
# Not built by the authors, who had no docker engine and no Jetson; the pinned wheels were checked to resolve for
# CPython 3.10 on aarch64. On x86, pass --build-arg BASE=nvcr.io/nvidia/tensorrt:YY.MM-py3.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*

# Before the long install: without these bindings the image is of no use. They are not imported here: JetPack images
# lack libraries that the nvidia runtime brings, which `docker build` has only where daemon.json makes it the default.
RUN python3 -c "import importlib.util as u; assert u.find_spec('tensorrt'), 'the base image has no TensorRT bindings'"

WORKDIR /opt/ompq-deploy
COPY setup.cfg pyproject.toml constraints.txt README.md* ./
COPY ompq_deploy ompq_deploy
COPY calib_data calib_data
# Editable, so that the package finds calib_data beside it.
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt --editable .

WORKDIR /work
ENTRYPOINT ["ompq-deploy"]
