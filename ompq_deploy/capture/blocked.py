"""Let onnxruntime optimize the graph first, and read each tensor in the layout its kernels use.

On CPUs with wide vectors onnxruntime keeps activations in blocks of channels: element (n, c, h, w) of a
convolution's output lies at [n, c // B, h, w, c % B]. Asking for such a tensor under its own name adds a
`ReorderOutput` node, a copy of the whole tensor. A Gram matrix, a minimum and a maximum do not depend on the
order of a sample's elements, so they can read the blocks. `optimize` returns the graph that onnxruntime would
run together with the blocked tensor behind each name; copies that nobody reads any more are dropped with the other
dead nodes (`instrument.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ompq_deploy.graph.index import attributes
from ompq_deploy.runtime.sessions import brief_options, start

BLOCKED_DOMAIN = "com.microsoft.nchwc"
LARGEST_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class OptimizedGraph:
    """The graph as onnxruntime optimized it for this machine, its outputs being the tensors asked for.

    `blocked` maps a tensor (N, C, H, W) to the one that holds the same elements with the channels in blocks,
    for those tensors whose C fills all blocks, so that no padding takes part in any reduction.
    """

    model: onnx.ModelProto
    blocked: dict[str, str]


def optimize(model: onnx.ModelProto, tensors: Iterable[str], threads: int = 0) -> OptimizedGraph:
    """Run onnxruntime's optimizer such that every one of `tensors` can still be read."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    with tempfile.TemporaryDirectory(prefix="ompq-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = brief_options(threads)
        options.optimized_model_filepath = str(path)
        start(exposed, options)
        optimized = onnx.load(path)
    copies = [node for node in optimized.graph.node if is_layout_copy(node)]
    blocked = {
        node.output[0]: node.input[0]
        for node in copies
        if attributes(node)["channels"] % LARGEST_BLOCK == 0 and not attributes(node).get("channels_last", 0)
    }
    return OptimizedGraph(model=optimized, blocked=blocked)


def is_layout_copy(node: onnx.NodeProto) -> bool:
    """Whether a node only copies a tensor from blocks of channels to its own order."""
    return node.op_type == "ReorderOutput" and node.domain == BLOCKED_DOMAIN
