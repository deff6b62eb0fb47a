"""What a built engine holds, read from the engine: storage and arithmetic of every layer, never what was asked for.

A weight is a constant, or what an operation computes from constants alone (TensorRT dequantizes weight-only layers
so). A layer is computed by the operation that reads its weight together with a tensor of the running network; that
operation's operands tell the arithmetic. Where this does not single out one answer, the answer is None: unknown.

Two sources list the operations: TensorRT's inspector, where the engine deserializes (a GPU it runs on), and the
program text inside a TensorRT for RTX plan (`plan_text.py`), on any machine. The inspector is believed first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import QuantizedGraph, QuantizedLayer
from ompq_deploy.export.tensorrt.backend import Backend
from ompq_deploy.export.tensorrt.inspector import inspector_operations, inspector_text
from ompq_deploy.export.tensorrt.plan_text import Operand, Operation, plan_operations, weight_section
from ompq_deploy.numerics import pack_bits

LIBRARY_KINDS = frozenset(
    ("corrltn", "deconvolution", "fully_connected",  # in plans of TensorRT for RTX
     "correlation", "deconv", "gemm",                # the same in its inspector
     "Convolution", "Deconvolution", "FullyConnected", "MatrixMultiply")  # in the inspector of 10.x
)  # fmt: skip
"""Operations of a kernel library: activation and weight, in this order, enter the arithmetic as they are stored."""
FLOATS = frozenset(("FP32", "FP16", "BF16"))
MAX_PADDING = 32
"""Channels that TensorRT may add to a weight to fill its vector instructions."""


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """One layer as the engine has it; None where the engine does not tell.

    `storage` is the type of the stored weight, `weight_bytes` its size with padding. `compute_type` is the type in
    which products are formed. `codes_found` says whether the layer's codes stand in the engine byte for byte.
    """

    storage: str | None = None
    weight_bytes: int | None = None
    compute_type: str | None = None
    codes_found: bool | None = None


@dataclass(frozen=True, kw_only=True)
class EngineReading:
    """What was read from one engine: `weight_bytes` of all its constants, and the layers in the graph's order.
    `how_read` names the source of each, or says that there was none."""

    weight_bytes: int | None
    layers: tuple[LayerReading, ...]
    how_read: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Use:
    """The constant that holds a layer's weight, and the arithmetic of one operation that reads it."""

    constant: Operand
    compute_type: str | None


def read_engine(plan: bytes, quantized: QuantizedGraph, backend: Backend | None) -> EngineReading:
    """Read a serialized engine back, field by field from the first source that tells; the inspector needs a backend."""
    weights = weight_section(plan)
    sources = {
        "inspector": inspector_operations(inspector_text(backend, plan) if backend else ""),
        "program text in the plan": plan_operations(plan),
    }
    telling = {name: operations for name, operations in sources.items() if operations}
    readings = [read_layers(quantized.layers, operations, weights) for operations in telling.values()]
    unknown = (LayerReading(),) * len(quantized.layers)
    return EngineReading(
        weight_bytes=None if weights is None else len(weights),
        layers=tuple(_first_known(of_layer) for of_layer in zip(*readings, unknown, strict=True)),
        how_read={
            "weight_bytes": "length of the weight section in the plan's header" if weights is not None else "not found",
            "layers": ", then ".join(telling) or "not found",
        },
    )


def _first_known(readings: Sequence[LayerReading]) -> LayerReading:
    """The first reading that found the layer's weight; fields of two sources are never mixed."""
    return next((reading for reading in readings if reading.storage is not None), readings[-1])


def read_layers(
    layers: Sequence[QuantizedLayer], operations: Sequence[Operation], weights: bytes | None
) -> tuple[LayerReading, ...]:
    """What `operations` say about each layer; `weights` are the engine's constants, if known."""
    producers = {name: operation for operation in operations for name in operation.outputs}
    return tuple(_read_layer(layer, operations, producers, weights) for layer in layers)


def _read_layer(
    layer: QuantizedLayer, operations: Sequence[Operation], producers: Mapping[str, Operation], weights: bytes | None
) -> LayerReading:
    uses: list[_Use] = []
    for node in layer.layer.nodes:
        of_node = [use for o in operations if node in o.onnx_nodes for use in _uses(layer, o, producers, weights)]
        if not of_node:
            return LayerReading()
        uses += of_node
    constants = {use.constant for use in uses}
    types = {use.compute_type for use in uses}
    if len(constants) != 1:
        return LayerReading()
    constant = constants.pop()
    return LayerReading(
        storage=constant.precision,
        weight_bytes=constant.constant_bytes,
        compute_type=types.pop() if len(types) == 1 else None,
        codes_found=_codes_found(layer, constant, weights),
    )


def _uses(
    layer: QuantizedLayer, operation: Operation, producers: Mapping[str, Operation], weights: bytes | None
) -> list[_Use]:
    """The ways in which `operation` may multiply an activation by the layer's weight; one where it is clear.

    Of several constants with the weight's shape, those that hold the layer's codes count.
    """
    running = [operand for operand in operation.inputs if not _from_constants(operand, producers)]
    if not running:
        return []
    padded = operation.kind in LIBRARY_KINDS
    found: list[_Use] = []
    for operand in operation.inputs:
        if operand in running or not _is_weight(operand, layer, padded):
            continue
        sources = (operand,) if operand.constant_bytes is not None else producers[operand.name].inputs
        compute_type = _compute_type(operation, running, operand)
        found += [_Use(constant=s, compute_type=compute_type) for s in sources if _is_weight(s, layer, padded)]
    proved = [use for use in found if _codes_found(layer, use.constant, weights)]
    return proved or found


def _from_constants(operand: Operand, producers: Mapping[str, Operation]) -> bool:
    if operand.constant_bytes is not None:
        return True
    producer = producers.get(operand.name)
    return producer is not None and bool(producer.inputs) and all(i.constant_bytes is not None for i in producer.inputs)


def _compute_type(operation: Operation, running: Sequence[Operand], weight: Operand) -> str | None:
    """The type in which weight and activation are multiplied.

    A weight that enters in floating point is multiplied in it. A library kernel multiplies integers where both
    are. A generated kernel converts inside: with floating-point activations and nothing rounded to integers, as
    its name lists its steps, it computes in their type; otherwise unknown.
    """
    if weight.precision in FLOATS:
        return weight.precision
    if operation.kind in LIBRARY_KINDS:
        return weight.precision if running[0].precision == weight.precision else None
    types = {operand.precision for operand in running}
    if len(types) == 1 and types <= FLOATS and "Roun" not in operation.name:
        return types.pop()
    return None


def _is_weight(operand: Operand, layer: QuantizedLayer, padded: bool) -> bool:
    """Whether an operand has the weight's shape, up to axes of length 1, their order and, if asked, channel padding."""
    shape = layer.layer.shape
    if operand.dims == (math.prod(shape),):
        return True
    if _long(operand.dims) and sorted(_long(operand.dims)) == sorted(_long(shape)):
        return True
    if not padded or len(operand.dims) != len(shape) or len(shape) < 3:
        return False
    return all(0 <= have - need < MAX_PADDING for have, need in zip(operand.dims, shape, strict=True))


def _codes_found(layer: QuantizedLayer, constant: Operand, weights: bytes | None) -> bool | None:
    """Whether the codes, laid out as the engine says it stores them, occur among its constants."""
    if weights is None or constant.constant_bytes is None or constant.precision not in ("INT4", "INT8"):
        return None
    codes = _in_shape(layer.codes, constant.dims)
    if codes is None or len(constant.strides) != codes.ndim:
        return None
    per_byte = 2 if constant.precision == "INT4" else 1
    stored = np.zeros(constant.constant_bytes * per_byte, np.int8)
    axes = np.meshgrid(*map(np.arange, codes.shape), indexing="ij", sparse=True)
    position = np.zeros(codes.shape, np.int64)
    for axis, stride in zip(axes, constant.strides, strict=True):
        position += axis * stride
    if position.max() >= stored.size:
        return None
    stored[position] = codes
    return weights.find((pack_bits(stored, 4) if per_byte == 2 else stored).tobytes()) >= 0


def _in_shape(codes: NDArray[np.int8], dims: tuple[int, ...]) -> NDArray[np.int8] | None:
    """The codes with the axes of `dims`: as they are, transposed, with axes of length 1, or zero-padded."""
    for candidate in (codes, codes.T):
        if _long(candidate.shape) == _long(dims):
            return candidate.reshape(dims)
    if codes.ndim == len(dims) and all(have >= need for have, need in zip(dims, codes.shape, strict=True)):
        return np.pad(codes, [(0, have - need) for have, need in zip(dims, codes.shape, strict=True)])
    return None


def _long(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in dims if size > 1)
