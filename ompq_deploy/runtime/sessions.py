"""Start onnxruntime on the CPU. It is imported when the first session starts: the command line imports this module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ompq_deploy.runtime.threads import resolved

if TYPE_CHECKING:
    import onnxruntime as ort

ERRORS_ONLY = 3
EXACT_PRODUCTS = (("session.x64quantprecision", "1"), ("session.disable_quant_qdq", "1"))
"""Where products of uint8 and int8 saturate: integers are multiplied by kernels that add in int32, and Q/DQ models in
float32, as the first of the two does not start some of them."""
LOST_OUTPUT = "Failed to find node output"


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Options with `threads` threads, 0 meaning one per core granted, that log errors alone."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = resolved(threads)
    if products_saturate():
        for entry in EXACT_PRODUCTS:
            options.add_session_config_entry(*entry)
    return options


@cache
def products_saturate() -> bool:
    """Whether onnxruntime's products of uint8 and int8 are wrong here, as on x86 CPUs without VNNI, where two are added
    in int16: one is computed to find out."""
    import onnxruntime as ort

    codes, weights = np.full((4, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    given = helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, codes.shape)
    result = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)
    graph = helper.make_graph([node], "product", [given], [result], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, ERRORS_ONLY
    (found,) = _start(model.SerializeToString(), options).run(None, {"x": codes})
    return not np.array_equal(found, codes.astype(np.int32) @ weights.astype(np.int32))


def brief_options(threads: int = 0) -> ort.SessionOptions:
    """Options for a session that runs once or a few times.

    Memory patterns are off: after its first run a session would set aside one block for all activations while still
    holding the chunks of that run.
    """
    options = session_options(threads)
    options.enable_mem_pattern = False
    return options


def lend(model: onnx.ModelProto, constants: Mapping[str, NDArray], options: ort.SessionOptions) -> None:
    """Give `model` the `constants`, which a session started with `options` reads where they lie, instead of a copy of
    its own. They have to live as long as the session."""
    import onnxruntime as ort

    for name, value in constants.items():
        stand_in = model.graph.initializer.add(
            name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )  # fmt: skip
        stand_in.external_data.add(key="location", value="memory")
    values = [ort.OrtValue.ortvalue_from_numpy(value) for value in constants.values()]
    options.add_external_initializers(list(constants), values)


def start(model: onnx.ModelProto | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session on a model in memory or in a file.

    onnxruntime 1.31 loses the output of a grouped convolution that a model both returns and adds to another, while it
    arranges channels in blocks. Such a model runs without that optimization, which `options` are changed to say.
    """
    import onnxruntime as ort

    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return _start(content, options)
    except RuntimeError as e:
        if LOST_OUTPUT not in str(e):
            raise
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return _start(content, options)


def _start(content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """Without onnxruntime's own second attempt: it prints, and has no other provider to fall back to."""
    import onnxruntime as ort

    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
