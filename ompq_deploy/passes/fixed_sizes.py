"""The sizes of tensors that do not depend on the batch, also where shape inference alone cannot tell.

With a symbolic batch N, inference gives up on a Reshape to (N, -1, C): from N alone -1 does not follow. So the shapes
are inferred for two batch sizes, and what is the same for both is fixed.
"""

from __future__ import annotations

import onnx

from ompq_deploy.graph.index import GraphIndex

BATCHES = (2, 3)
"""Neither is 1, which broadcasting treats in its own way."""

Shapes = dict[str, tuple[int | None, ...]]


def fixed_sizes(model: onnx.ModelProto) -> Shapes:
    """Shapes by tensor name, None for an axis whose size is not fixed."""
    first, second = (GraphIndex(_inferred(model, batch)).shapes for batch in BATCHES)
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, second[name], strict=True))
        for name, shape in first.items()
        if len(shape) == len(second.get(name, ()))
    }


def write_fixed_sizes(model: onnx.ModelProto) -> None:
    """Note in the model's value_info, which shape inference has filled, every size that is fixed."""
    shapes = fixed_sizes(model)
    for value in model.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if size is not None and not dim.HasField("dim_value"):
                dim.dim_value = size


def _inferred(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model with its inputs' symbolic first axes of that size, shapes inferred."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
