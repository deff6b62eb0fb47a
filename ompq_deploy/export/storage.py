"""How the integer codes of one weight are stored in a Q/DQ ONNX file, and how many bytes that takes.

    8 bits   INT8 initializer
    4 bits   INT4 initializer, two codes per byte, first code in the low nibble (ONNX's own packing)
    others   UINT8 initializer holding the codes as consecutive bit fields, unpacked in the graph by a function
             of integer operators (`Unpack<b>`), so that the file is as small as the plan says

The function is expanded and folded by the runtime when it loads the model; nothing of it runs per inference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Layer
from ompq_deploy.numerics import pack_bits, packed_bytes

FUNCTION_DOMAIN = "ompq"
OPSET = 21
CODES_PER_GROUP = 8
"""8 codes of b bits fill b bytes; codes are padded to whole groups."""


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """What yields a weight's codes: initializers, nodes, the tensor that holds them, its zero-points where told."""

    initializers: list[onnx.TensorProto]
    nodes: list[onnx.NodeProto]
    codes: str
    zero_points: list[str]


def store_weight(layer: Layer, codes: NDArray[np.int8], bits: int, name: str) -> StoredWeight:
    """The codes of one layer under `name`."""
    return _stored(layer, _raw(codes, bits), bits, name)


def store_codes(
    codes: NDArray[np.int8], bits: int, name: str
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto], str]:
    """Initializers and nodes that yield `codes`, and the name of the tensor that holds them."""
    return _declared(codes.shape, _raw(codes, bits), bits, name)


def stored_form(shape: tuple[int, ...], bits: int, name: str) -> onnx.TensorProto:
    """The initializer that holds codes of a shape, all of them zero."""
    return _declared(shape, _zeros(shape, bits), bits, name)[0][0]


def stored_bytes(layer: Layer, bits: int, name: str) -> int:
    """Bytes the weight adds to the file, protobuf framing included, those of reading the zero-points too."""
    stored = _stored(layer, _zeros(layer.shape, bits), bits, name)
    read = sum(len(zero_point) + 2 for zero_point in stored.zero_points)
    return sum(map(framed_bytes, stored.initializers)) + sum(map(framed_bytes, stored.nodes)) + read


def _stored(layer: Layer, raw: bytes, bits: int, name: str) -> StoredWeight:
    """All zero-points are zero, which is what absent ones mean; but onnxruntime 1.23 takes absent ones of an INT8 Gemm
    for a single one and then refuses the scale per channel, so there they are written out."""
    initializers, nodes, tensor = _declared(layer.shape, raw, bits, name)
    if layer.op != "Gemm" or bits == 4:
        return StoredWeight(initializers=initializers, nodes=nodes, codes=tensor, zero_points=[])
    zeros = numpy_helper.from_array(np.zeros(layer.channels, np.int8), f"{name}_z")
    return StoredWeight(initializers=[*initializers, zeros], nodes=nodes, codes=tensor, zero_points=[zeros.name])


def _declared(
    shape: tuple[int, ...], raw: bytes, bits: int, name: str
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto], str]:
    """Initializers and nodes that yield codes of a shape, `raw` in the file, and the name of the tensor of codes."""
    if not needs_function(bits):
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
        return [TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)], [], name
    unpacked = f"{name}_u"
    node = helper.make_node(
        unpack_name(bits), [name], [unpacked], domain=FUNCTION_DOMAIN, shape=list(shape), count=[math.prod(shape)]
    )
    packed = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[len(raw)], raw_data=raw)
    return [packed], [node], unpacked


def _raw(codes: NDArray[np.int8], bits: int) -> bytes:
    """The bytes that hold codes in a file."""
    if bits == 8:
        return codes.tobytes()
    return pack_bits(np.pad(codes.reshape(-1), (0, _padding(codes.size, bits))), bits).tobytes()


def _zeros(shape: tuple[int, ...], bits: int) -> bytes:
    """Those of codes that are all zero."""
    count = math.prod(shape)
    return bytes(packed_bytes(count + _padding(count, bits), bits))


def _padding(count: int, bits: int) -> int:
    """Codes added to `count` for whole groups."""
    return -count % CODES_PER_GROUP if needs_function(bits) else 0


def framed_bytes(message: onnx.TensorProto | onnx.NodeProto | onnx.FunctionProto) -> int:
    """Serialized size of a repeated submessage: its bytes, their length as a varint, and a one-byte tag."""
    size: int = message.ByteSize()
    return size + (max(size.bit_length(), 1) + 6) // 7 + 1


def unpack_name(bits: int) -> str:
    return f"Unpack{bits}"


def needs_function(bits: int) -> bool:
    """Whether codes of this width are stored as packed bits."""
    return bits not in (4, 8)


def unpack_function(bits: int) -> onnx.FunctionProto:
    """UINT8 bit fields (flat) -> INT8 codes of `shape`, two's complement, least significant bit first.

    byte >> 0..7, & 1, regroup to (codes, bits), weigh with 1, 2, ..., -2^(bits-1) and sum.
    """
    place_values = [1 << k for k in range(bits - 1)] + [-(1 << (bits - 1))]

    def constant(name: str, value: NDArray) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    def from_attribute(name: str, attribute: str) -> onnx.NodeProto:
        node = helper.make_node("Constant", [], [name])
        node.attribute.append(
            onnx.AttributeProto(name="value_ints", ref_attr_name=attribute, type=onnx.AttributeProto.INTS)
        )
        return node

    nodes = [
        constant("column", np.array([-1, 1], np.int64)),
        constant("positions", np.arange(8, dtype=np.uint8)),
        constant("one", np.array(1, np.uint8)),
        constant("fields", np.array([-1, bits], np.int64)),
        constant("places", np.array(place_values, np.int32)),
        constant("start", np.array([0], np.int64)),
        constant("axis", np.array([1], np.int64)),
        from_attribute("shape_", "shape"),
        from_attribute("count_", "count"),
        helper.make_node("Reshape", ["packed", "column"], ["bytes"]),
        helper.make_node("BitShift", ["bytes", "positions"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "one"], ["single"]),
        helper.make_node("Reshape", ["single", "fields"], ["grouped"]),
        helper.make_node("Cast", ["grouped"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Mul", ["wide", "places"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axis"], ["padded"], keepdims=0),
        helper.make_node("Slice", ["padded", "start", "count_"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape_"], ["shaped"]),
        helper.make_node("Cast", ["shaped"], ["codes"], to=TensorProto.INT8),
    ]
    return helper.make_function(
        FUNCTION_DOMAIN,
        unpack_name(bits),
        ["packed"],
        ["codes"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["shape", "count"],
    )
