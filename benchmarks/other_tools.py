"""What users would pick instead: other tools' INT8 and INT4 models, each at several of its settings.

    python other_tools.py RECIPE MODEL CALIBRATION OUT

quantizes one float ONNX model, with calibration inputs that are ready to be fed (.npz, one array per input name), and
prints the tool's version as JSON. Nothing of ompq-deploy is imported, so a tool may live in an environment of its own:

    python -m venv OTHER && OTHER/bin/pip install -r benchmarks/requirements-other-tools.txt

Every tool gets per-channel symmetric weights and its own default for which operators to quantize, or the layers with
weights only where the setting says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]

ONNXRUNTIME, MODELOPT = "onnxruntime", "nvidia-modelopt"
KINDS = INT8, INT8_SYMMETRIC, INT4 = "int8", "int8 with symmetric activations", "int4 weights"
LINEAR = ("Conv", "Gemm", "MatMul")
BLOCK = 32
TRANSFORMERS = ("vit_small",)
"""Networks whose weights are mostly those of MatMul, all that the weight-only methods quantize."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One setting of one method of a tool, and what it makes of a network, one of `KINDS`. `networks` are those it
    applies to; empty is all."""

    tool: str
    method: str
    setting: str
    kind: str
    quantize: Callable[[Path, Feeds, Path], None]
    networks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method}: {self.setting}"


def static(
    model: Path, feeds: Feeds, out: Path, *, weights: str, activations: str, percentile: float | None, linear: bool
) -> None:
    """onnxruntime's `quantize_static` to Q/DQ, after its own preprocessing. `percentile` None keeps the whole range."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(feeds.values())))
            self.samples = iter([{name: array[i : i + 1] for name, array in feeds.items()} for i in range(count)])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.samples, None)

    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": activations == "QInt8"}
    method = ort.CalibrationMethod.MinMax
    if percentile is not None:
        method = ort.CalibrationMethod.Percentile
        options["CalibPercentile"] = percentile
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared)
        ort.quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            weight_type=ort.QuantType[weights],
            activation_type=ort.QuantType[activations],
            calibrate_method=method,
            op_types_to_quantize=list(LINEAR) if linear else None,
            extra_options=options,
        )


def matmul_nbits(model: Path, feeds: Feeds, out: Path, *, hqq: bool) -> None:
    """onnxruntime's weight-only 4 bits in blocks of 32 along the inputs of every MatMul, by rounding to nearest or by
    half-quadratic quantization (needs torch). Reads no calibration data; the output projection, a Gemm, stays float."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    config = nbits.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=4)
    if hqq:
        config = nbits.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4)
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(model), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


def modelopt_int8(model: Path, feeds: Feeds, out: Path, *, calibration: str, dq_only: bool) -> None:
    """NVIDIA Model Optimizer's ONNX INT8, what it leaves in float as float16 (its default).

    `dq_only` stores the weights as integers; without it the file holds them in float16 before a QuantizeLinear.
    """
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=dict(feeds),
        calibration_method=calibration,
        calibration_eps=["cpu"],
        dq_only=dq_only,
        output_path=str(out),
        log_level="WARNING",
    )


def modelopt_int4(model: Path, feeds: Feeds, out: Path, *, block: int) -> None:
    """NVIDIA Model Optimizer's weight-only AWQ on every MatMul, what it leaves in float as float16. Its files with a
    quantized Gemm of transposed weights do not run in onnxruntime, so those layers stay float too."""
    import onnx
    from modelopt.onnx.quantization import quantize

    gemms = [node.name for node in onnx.load(model).graph.node if node.op_type == "Gemm"]
    quantize(
        str(model),
        quantize_mode="int4",
        calibration_data=dict(feeds),
        calibration_method="awq_clip",
        calibration_eps=["cpu"],
        block_size=block,
        nodes_to_exclude=gemms,
        output_path=str(out),
        log_level="WARNING",
    )


def _static_recipes() -> list[Recipe]:
    methods = (
        ("INT8, uint8 activations", INT8, "QInt8", "QUInt8"),
        ("INT8, symmetric int8 activations", INT8_SYMMETRIC, "QInt8", "QInt8"),
        ("INT4 weights, uint8 activations", INT4, "QInt4", "QUInt8"),
    )
    ranges = (("whole range", None), ("percentile 99.999", 99.999), ("percentile 99.99", 99.99))
    operators = (("all operators", False), ("layers only", True))
    return [
        Recipe(
            tool=ONNXRUNTIME,
            method=f"onnxruntime {method}",
            setting=f"{range_name}, {scope}",
            kind=kind,
            quantize=partial(static, weights=weights, activations=activations, percentile=percentile, linear=linear),
        )
        for (method, kind, weights, activations), (range_name, percentile), (scope, linear) in product(
            methods, ranges, operators
        )
    ]


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *_static_recipes(),
        *(
            Recipe(
                tool=ONNXRUNTIME,
                method="onnxruntime MatMulNBits INT4, float activations",
                setting=f"{name}, blocks of {BLOCK}",
                kind=INT4,
                quantize=partial(matmul_nbits, hqq=hqq),
                networks=TRANSFORMERS,
            )
            for name, hqq in (("round to nearest", False), ("half-quadratic", True))
        ),
        *(
            Recipe(
                tool=MODELOPT,
                method="ModelOpt INT8, symmetric int8 activations",
                setting=f"{calibration}{', dq_only' if dq_only else ''}",
                kind=INT8_SYMMETRIC,
                quantize=partial(modelopt_int8, calibration=calibration, dq_only=dq_only),
            )
            for calibration, dq_only in product(("entropy", "max"), (False, True))
        ),
        *(
            Recipe(
                tool=MODELOPT,
                method="ModelOpt INT4 weights (AWQ), float activations",
                setting=f"blocks of {block}",
                kind=INT4,
                quantize=partial(modelopt_int4, block=block),
                networks=TRANSFORMERS,
            )
            for block in (32, 128)
        ),
    )
}


def main() -> None:
    recipe = RECIPES[sys.argv[1]]
    model, calibration, out = map(Path, sys.argv[2:])
    with np.load(calibration) as arrays:
        feeds = dict(arrays)
    recipe.quantize(model, feeds, out)
    print(json.dumps({"tool": f"{recipe.tool} {metadata.version(recipe.tool)}"}))


if __name__ == "__main__":
    main()
