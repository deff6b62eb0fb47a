"""What the model's inputs look like, and which of them takes images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.errors import BadInput

LAYOUTS = ("NCHW", "NHWC")
DEFAULT_EXTENT = 224
COLOURS = (1, 3)
FLOATS = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One graph input. `shape` has None for a symbolic axis and is None itself where the rank is unknown."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} ({', '.join('N' if d is None else str(d) for d in self.shape)})"

    def admits(self, array: NDArray[Any]) -> bool:
        """Whether `array` (N samples) has this input's dtype and, beyond the first axis, its shape."""
        if array.dtype != self.dtype or array.ndim == 0:
            return False
        if self.shape is None:
            return True
        return array.ndim == len(self.shape) and all(
            want is None or have == want for have, want in zip(array.shape[1:], self.shape[1:], strict=True)
        )

    def fitted(self, array: NDArray[Any]) -> NDArray[Any]:
        """`array` in this input's precision, if both are floating point; else as it is."""
        return array.astype(self.dtype) if {array.dtype, self.dtype} <= FLOATS else array


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """An input that takes images of `channels` colours (1 or 3), `height` x `width`; None where symbolic."""

    name: str
    channels: int
    height: int | None
    width: int | None
    layout: str
    dtype: np.dtype[Any]

    def extent(self, height: int = DEFAULT_EXTENT, width: int = DEFAULT_EXTENT) -> tuple[int, int]:
        """(height, width) in pixels, the arguments standing in for symbolic axes."""
        return self.height or height, self.width or width


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of a graph that a caller must feed, in order; initializers listed as inputs are left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in constants)


def image_input(inputs: Sequence[InputSpec], layout: str | None) -> ImageInput:
    """The model's one image input.

    `layout` None means NCHW, or NHWC where only the last axis can be the colours.
    """
    names = ", ".join(f"{spec.name}: {spec}" for spec in inputs)
    if len(inputs) != 1:
        raise BadInput(
            f"images can be fed to a model with one input, this one has {len(inputs)}",
            where=names,
            fix="give arrays that are ready (--preprocess none): an .npz with one array per input, keyed by its name",
        )
    spec = inputs[0]
    if spec.shape is None or len(spec.shape) != 4:
        raise BadInput(
            "the model's input is not a batch of images (four axes)",
            where=names,
            fix=f"give arrays that are ready, in an .npz with the key {spec.name!r}",
        )
    chosen = layout or ("NHWC" if spec.shape[1] not in COLOURS and spec.shape[3] in COLOURS else "NCHW")
    _, *rest = spec.shape
    channels, height, width = rest if chosen == "NCHW" else (rest[2], rest[0], rest[1])
    if channels not in COLOURS:
        raise BadInput(
            f"the model's input has {'an unknown number of' if channels is None else channels} channels in {chosen}, "
            "images have 3 (or 1)",
            where=names,
            fix=f"set --layout, or give arrays that are ready, in an .npz with the key {spec.name!r}",
        )
    return ImageInput(name=spec.name, channels=channels, height=height, width=width, layout=chosen, dtype=spec.dtype)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        raise BadInput(
            f"input {value.name!r} is not a tensor",
            where="the model's inputs",
            fix="export it with tensor inputs",
        )
    tensor = value.type.tensor_type
    shape = (
        tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim) if tensor.HasField("shape") else None
    )
    return InputSpec(name=value.name, shape=shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
