"""Reductions of one tensor, as ONNX nodes to put right behind the node that makes it.

    Gram      X as (N, G, K/G);  sum over g of X_g X_g^T         -> (N, N)
    mean      over W, then H: short float32 sums                 -> (N, C)
    range     over H and W of images, else over all              -> (N, C) or scalars

NumPy does the rest in float64 (`statistics.py`), which saves a hundred nodes. G chunks give the threads work and
shorten the float32 sums; `FusedMatMul` with `transBatchA` reads X_g in place.

A tensor behind Relu or Clip cannot leave the bounds, and where two samples reach a bound, it is the exact extreme
of all samples: `probed_range` reads no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PREFIX = "ompq_capture"
CHUNKS = 16
EXTREMES = {"min": "ReduceMin", "max": "ReduceMax"}
BLOCKED_DOMAIN = "com.microsoft.nchwc"
CONTRIB_DOMAIN = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class View:
    """How a tensor can be read: its `shape` where known, and the `source` that holds its elements.

    `blocked` means that `source` holds them with the channels in blocks (`blocked.py`). `channels` is the
    length of the last axis where that is the channel axis, else None and the channel axis is 1.
    `bounds` are the smallest ("min") and largest ("max") value it can hold, where that is known and where
    the tensor is large enough for this to save time.
    """

    name: str
    source: str
    shape: tuple[int | None, ...]
    blocked: bool
    channels: int | None
    bounds: Mapping[str, float]

    @property
    def spatial(self) -> bool:
        """Whether axes 2 and 3 are contiguous rows that reduce fast."""
        return len(self.shape) == 4 and self.channels is None


def tap(kind: str, tensor: str) -> str:
    """Name of the graph output that holds one reduction of one tensor."""
    return f"{PREFIX}/{kind}/{tensor}"


class Taps:
    """Collects the nodes that reduce tensors, the constants they need and the outputs they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def gram(self, view: View) -> None:
        size = math.prod(n or 0 for n in view.shape[1:])
        if not size or size % CHUNKS:
            flat = self._node("Flatten", [view.source], "flat", view, axis=1)
            self._result("Gemm", [flat, flat], "gram", view, transB=1)
            return
        rows = self._node("Reshape", [view.source, self._ints(0, CHUNKS, -1)], "chunks", view)
        chunked = {"transB": 1, "transBatchA": 1, "transBatchB": 1, "domain": CONTRIB_DOMAIN}
        products = self._node("FusedMatMul", [rows, rows], "products", view, **chunked)
        self._result("ReduceSum", [products, self._ints(0)], "gram", view, keepdims=0)

    def mean(self, view: View) -> None:
        channels = 1 if len(view.shape) == 1 else view.channels
        if channels is not None:
            rows = self._node("Reshape", [view.source, self._ints(-1, channels)], "tokens", view)
            self._result("ReduceMean", [rows, self._ints(0)], "mean", view, keepdims=1)
        elif view.blocked:
            width = {"kernel_shape": [1, view.shape[3]], "domain": BLOCKED_DOMAIN}
            rows = self._node("AveragePool", [view.source], "lines", view, **width)
            self._result("GlobalAveragePool", [rows], "mean", view, domain=BLOCKED_DOMAIN)
        else:
            rows = self._node("Reshape", [view.source, self._ints(0, 0, -1)], "pixels", view)
            self._result("ReduceMean", [rows, self._ints(2)], "mean", view, keepdims=0)

    def range(self, view: View) -> None:
        for kind in EXTREMES:
            self._extreme(view, kind, view.source)

    def probed_range(self, view: View) -> None:
        """Like `range`, but an extreme with a bound is that of the first and the last sample only."""
        if view.bounds:
            ends = self._node("Gather", [view.source, self._ints(0, -1)], "ends", view, axis=0)
        for kind in EXTREMES:
            self._extreme(view, kind, ends if kind in view.bounds else view.source)

    def shape(self, view: View) -> None:
        self._result("Shape", [view.source], "shape", view, dtype=TensorProto.INT64)

    def _extreme(self, view: View, kind: str, rows: str) -> None:
        axes = [self._ints(2, 3)] if view.spatial else []
        self._result(EXTREMES[kind], [rows, *axes], kind, view, keepdims=0)

    def _result(
        self, op: str, inputs: list[str], kind: str, view: View, dtype: int = TensorProto.FLOAT, **attributes: Any
    ) -> None:
        self.outputs.append(
            helper.make_tensor_value_info(self._node(op, inputs, kind, view, **attributes), dtype, None)
        )

    def _node(self, op: str, inputs: list[str], kind: str, view: View, **attributes: Any) -> str:
        name = tap(kind, view.name)
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _ints(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: NDArray[Any] | np.generic) -> str:
        name = "_".join([PREFIX, str(value.dtype), *map(str, np.atleast_1d(value))])
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
