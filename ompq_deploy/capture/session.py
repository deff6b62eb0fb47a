"""Start onnxruntime on a graph held in memory."""

from __future__ import annotations

import onnx
import onnxruntime as ort

ERRORS_ONLY = 3


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Options with `threads` threads, 0 meaning one per core.

    Memory patterns are off: after its first run a session would set aside one block for all activations
    while still holding the chunks of that run, and sessions here run once or a few times.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    return options


def start(model: onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session on `model`."""
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
