"""Collect the nodes and constants of an integer-only ONNX model, and name its tensors."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.rules import Window

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""


def stored(name: str) -> str:
    """The uint8 or int32 tensor that holds an integer tensor."""
    return f"{name}_quantized"


def accumulator(name: str) -> str:
    """The sum of products, int32 or int64, that a tensor is made from; a bias is not in it."""
    return f"{name}_accumulator"


def biased(name: str) -> str:
    """The int32 accumulator with its bias, which a float tensor is dequantized from."""
    return f"{name}_biased"


def window_attributes(window: Window) -> dict[str, list[int]]:
    """The settings of a sliding window, but its kernel's shape, as ONNX attributes."""
    return {"strides": list(window.strides), "dilations": list(window.dilations), "pads": list(window.pads)}


def storage_zero(grid: Grid) -> int:
    """What the integer 0 is stored as: the zero-point in uint8, and 0 in the int32 of a wide grid."""
    return 0 if grid.wide else grid.zero_point


def storage_type(grid: Grid) -> int:
    """The ONNX element type of a stored tensor."""
    return int(TensorProto.INT32 if grid.wide else TensorProto.UINT8)


class Writer:
    """Nodes and initializers in order; `grids` are those of the program, and of parts that tensors are split into;
    `shapes` are those of the float model's tensors, as far as they are known.

    `channels_first` names the tensors that onnxruntime holds so in any case: a ConvInteger of several groups reads or
    makes them. `channels_last` are those that convolutions read which want them so: as matrix products, or as
    QLinearConv. `on_any_cpu` asks for the same integers on CPUs whose products of uint8 and int8 saturate.
    """

    def __init__(
        self,
        grids: Mapping[str, Grid],
        shapes: Mapping[str, Sequence[int | None]],
        *,
        channels_first: Container[str] = (),
        on_any_cpu: bool = True,
    ) -> None:
        self.grids, self.shapes = dict(grids), dict(shapes)
        self.channels_first, self.on_any_cpu = channels_first, on_any_cpu
        self.channels_last: frozenset[str] = frozenset()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.declared: list[onnx.ValueInfoProto] = []
        self._once: set[str] = set()

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """An initializer; returns its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_{op}", **attributes))
        return output

    def contrib_node(self, op: str, inputs: Sequence[str], output: str, kind: int) -> str:
        """A node that onnxruntime has beyond ONNX, and the type of its output, which ONNX cannot infer."""
        self.declared.append(helper.make_tensor_value_info(output, kind, None))
        return self.node(op, inputs, output, domain=CONTRIB)

    def reshape(self, tensor: str, shape: Sequence[int], output: str) -> str:
        """A tensor in another shape, where 0 keeps an axis and -1 is what is left."""
        return self.node("Reshape", [tensor, self.constant(f"{output}_shape", np.array(shape, np.int64))], output)

    def channels_to_back(self, tensor: str, output: str, rank: int) -> str:
        """(N, C, sizes...) as (N, sizes..., C); `rank` is the number of sizes."""
        return self.node("Transpose", [tensor], output, perm=[0, *range(2, rank + 2), 1])

    def channels_to_front(self, tensor: str, output: str, rank: int) -> str:
        """(N, sizes..., C) as (N, C, sizes...)."""
        return self.node("Transpose", [tensor], output, perm=[0, rank + 1, *range(1, rank + 1)])

    def split(self, source: str, lengths: str, outputs: Sequence[str]) -> None:
        """The parts of a tensor along axis 1, as long as the constant `lengths` says."""
        self.nodes.append(helper.make_node("Split", [source, lengths], outputs, name=f"{outputs[0]}_Split", axis=1))

    def sizes(self, tensor: str) -> list[int]:
        """The spatial sizes of a tensor (N, C, sizes...); none where one of them is not known."""
        known = [size for size in self.shapes.get(tensor, ())[2:] if size is not None]
        return known if len(known) + 2 == len(self.shapes.get(tensor, ())) else []

    def zero_point(self, tensor: str) -> str:
        """The constant that holds the zero-point of an 8-bit tensor."""
        return self.uint8(self.grids[tensor].zero_point)

    def shared(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """A constant that is stored once, however often it is asked for."""
        if name not in self._once:
            self._once.add(name)
            self.constant(name, value)
        return name

    def uint8(self, value: int) -> str:
        """A scalar uint8 constant, stored once."""
        return self.shared(f"zero_point_{value}", np.uint8(value))

    def stored_zero(self, tensor: str) -> str:
        """The constant that stored(tensor) holds for the integer 0."""
        if not self.grids[tensor].wide:
            return self.zero_point(tensor)
        return self.shared("wide_zero", np.int32(0))

    def zero(self, tensor: str) -> int:
        """What `stored(tensor)` holds for the integer 0."""
        return storage_zero(self.grids[tensor])

    def centred(self, tensor: str, name: str, kind: int) -> str:
        """An integer tensor as an ONNX tensor of type `kind` (int32 or int64), the integer 0 as 0."""
        source = stored(tensor)
        if kind != storage_type(self.grids[tensor]):
            source = self.node("Cast", [source], f"{name}_wide", to=kind)
        if not self.zero(tensor):
            return source
        zero = np.asarray(self.zero(tensor), helper.tensor_dtype_to_np_dtype(kind))
        return self.node("Sub", [source, self.constant(f"{name}_zero", zero)], name)
