"""Products of 8-bit codes with weights, by MatMulInteger and ConvInteger.

x86 CPUs without VNNI add two products of uint8 and int8 in int16, which saturates: onnxruntime is then off by far. With
weights of at most 64 in magnitude that cannot happen, 255 (64 + 64) < 2^15; larger ones are two products of halves, for
which weights of 8 bits are stored twice. Where `Writer.on_any_cpu` does not ask for it they stay whole. ConvInteger has
its weights in uint8, and does not saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ompq_deploy.export.integer.emit.writer import Writer, stored, window_attributes
from ompq_deploy.export.integer.rules import Int8, Window

LARGEST_SAFE = 64
WEIGHT_ZERO = 128


@dataclass(frozen=True, kw_only=True)
class Codes:
    """An 8-bit tensor, and the code of the integer 0."""

    tensor: str
    zero: int


def codes_of(writer: Writer, tensor: str) -> Codes:
    """The codes of a tensor on an 8-bit grid."""
    return Codes(tensor=stored(tensor), zero=writer.grids[tensor].zero_point)


def summands(writer: Writer, name: str, weights: Int8) -> list[str]:
    """Constants that add up to the weights (K, C_out), each of which is multiplied on its own."""
    if not writer.on_any_cpu or np.abs(weights.astype(np.int16)).max(initial=0) <= LARGEST_SAFE:
        return [writer.constant(name, weights)]
    halves = (weights >> 1, weights - (weights >> 1))
    return [writer.constant(f"{name}_half{i}", half) for i, half in enumerate(halves)]


def multiply(writer: Writer, left: Codes, weights: Sequence[str], output: str) -> str:
    """The product with what the constants `weights` add up to: int32."""
    names = [output] if len(weights) == 1 else [f"{output}_half{i}" for i in range(len(weights))]
    zero = writer.uint8(left.zero)
    for constant, name in zip(weights, names, strict=True):
        writer.node("MatMulInteger", [left.tensor, constant, zero], name)
    return output if len(names) == 1 else writer.node("Add", names, output)


def shifted(writer: Writer, name: str, weights: Int8) -> Codes:
    """Weights stored as uint8 with zero-point 128: older onnxruntime convolves no others."""
    codes = (weights.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8)
    return Codes(tensor=writer.constant(name, codes), zero=WEIGHT_ZERO)


def convolve(writer: Writer, tensor: str, weights: Codes, output: str, groups: int, window: Window) -> str:
    """The ConvInteger of an integer tensor with shifted weights: int32, or int64 of a wide one."""

    def convolve_part(part: Codes, result: str) -> str:
        inputs = [part.tensor, weights.tensor, writer.uint8(part.zero), writer.uint8(weights.zero)]
        return writer.node("ConvInteger", inputs, result, group=groups, **window_attributes(window))

    return over_parts(writer, tensor, output, convolve_part)


def over_parts(writer: Writer, tensor: str, output: str, apply: Callable[[Codes, str], str]) -> str:
    """A linear operation on an 8-bit tensor; on a wide one 256 times that on the high bytes, plus that on the low."""
    if not writer.grids[tensor].wide:
        return apply(codes_of(writer, tensor), output)
    high, low = _byte_tensors(writer, tensor, output)
    upper = writer.node("Cast", [apply(high, f"{output}_high")], f"{output}_high_int64", to=TensorProto.INT64)
    upper = writer.node("Mul", [upper, writer.constant(f"{output}_256", np.int64(256))], f"{output}_high_scaled")
    lower = writer.node("Cast", [apply(low, f"{output}_low")], f"{output}_low_int64", to=TensorProto.INT64)
    return writer.node("Add", [upper, lower], output)


def _byte_tensors(writer: Writer, tensor: str, name: str) -> tuple[Codes, Codes]:
    """The high and the low bytes of a wide tensor's codes."""
    zero, base = writer.grids[tensor].zero_point, writer.constant(f"{name}_base", np.int32(256))
    codes = [stored(tensor), writer.constant(f"{name}_zero_point", np.int32(zero))]
    code = writer.node("Add", codes, f"{name}_code")
    high = writer.node("Div", [code, base], f"{name}_code_high")
    low = writer.node("Mod", [code, base], f"{name}_code_low")
    parts = [writer.node("Cast", [part], f"{part}_byte", to=TensorProto.UINT8) for part in (high, low)]
    return Codes(tensor=parts[0], zero=zero >> 8), Codes(tensor=parts[1], zero=zero & 255)
