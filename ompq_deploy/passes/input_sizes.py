"""The sizes of a model's inputs: what an exporter left open, and what a user gives for it.

A network that takes images of any size has symbolic heights and widths. It can be planned and quantized so, but an
engine, and some operators of the integer-only model, need the one size it will run at: `--input-shape Nx3x640x640`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from ompq_deploy.errors import BackendMissing, BadInput

OPEN = "N"
"""How an axis that stays symbolic is written."""
FLAG = "--input-shape"
HINT = f"give the size it will run at: {FLAG} {OPEN}x3x640x640, say"

Dimensions = tuple[int | None, ...]


def open_unknown_sizes(model: onnx.ModelProto) -> None:
    """Make symbolic, in place, the sizes of inputs and outputs that are no sizes: some exporters write -1."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 1:
                dim.Clear()


def give_sizes(model: onnx.ModelProto, shapes: Sequence[str]) -> None:
    """Give inputs, in place, the sizes that `shapes` name, each as "1x3x640x640" or "input:Nx3x640x640".

    Axes that shared a symbol share its size in the outputs too. Raises BadInput for shapes that do not fit the model.
    """
    inputs = _inputs(model)
    sizes: dict[str, int] = {}
    for text in shapes:
        name, dimensions = _read(text, list(inputs))
        for dim, size in zip(_dims(inputs[name], dimensions, text), dimensions, strict=True):
            if size is None:
                continue
            if dim.dim_param:
                sizes[dim.dim_param] = size
            dim.dim_value = size
    for value in (*inputs.values(), *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def open_axes(model: onnx.ModelProto) -> list[str]:
    """The inputs with symbolic axes besides the first."""
    return [name for name, value in _inputs(model).items() if None in _sizes(value)[1:]]


def with_fixed_batch(model: onnx.ModelProto) -> str:
    """The flags that give a model the batch 1; "" where its batch is fixed, or other axes are open."""
    inputs = {name: _sizes(value) for name, value in _inputs(model).items()}
    if open_axes(model) or not any(sizes[:1] == (None,) for sizes in inputs.values()):
        return ""
    named = {f"{name}:" if len(inputs) > 1 else "": _written((1, *sizes[1:])) for name, sizes in inputs.items()}
    return " ".join(f"{FLAG} {name}{sizes}" for name, sizes in named.items())


def refuse_open_sizes(model: onnx.ModelProto) -> None:
    """Raise BackendMissing where an input has open axes besides the batch: an engine is built for one size."""
    for name in open_axes(model):
        sizes = _written(_sizes(_inputs(model)[name]))
        raise BackendMissing(
            f"an engine needs fixed sizes, input {name!r} has open axes besides the batch: {sizes}",
            where=f"input {name}",
            fix=HINT,
        )


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The inputs that a caller must feed, by name; initializers listed as inputs are left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in constants}


def _sizes(value: onnx.ValueInfoProto) -> Dimensions:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)


def _written(dimensions: Dimensions) -> str:
    return "x".join(str(size or OPEN) for size in dimensions)


def _read(text: str, names: Iterable[str]) -> tuple[str, Dimensions]:
    """The input a shape is for, and its sizes, None for an axis that stays open."""
    names = list(names)
    named, _, sizes = text.rpartition(":")
    if not named and len(names) > 1:
        raise BadInput(f"{text!r} does not say which input it is for", where=FLAG, fix=f"write {names[0]}:{text}, say")
    name = named or names[0]
    if name not in names:
        raise BadInput(f"the model has no input {name!r}", where=FLAG, fix=f"choose of {', '.join(names)}")
    parts = sizes.split("x")
    if not all(part == OPEN or (part.isdecimal() and int(part) > 0) for part in parts):
        raise BadInput(
            f"{sizes!r} is no shape", where=FLAG, fix=f"write it like 1x3x640x640, with {OPEN} for an axis left open"
        )
    return name, tuple(None if part == OPEN else int(part) for part in parts)


def _dims(value: onnx.ValueInfoProto, dimensions: Dimensions, text: str) -> Sequence[onnx.TensorShapeProto.Dimension]:
    """The axes of an input, which `dimensions` must fit."""
    shape = value.type.tensor_type.shape
    if not value.type.tensor_type.HasField("shape"):
        shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in dimensions)
    known = _sizes(value)
    fits = len(known) == len(dimensions) and all(
        have is None or want in (None, have) for have, want in zip(known, dimensions, strict=True)
    )
    if not fits:
        raise BadInput(
            f"{text!r} does not fit input {value.name!r}, which is {_written(known)}",
            where=FLAG,
            fix="give every axis, and change none that is fixed in the file",
        )
    return shape.dim
