"""Products of 8-bit codes with weights, by MatMulInteger.

x86 CPUs without VNNI add two products of uint8 and int8 in int16, which saturates: onnxruntime is then off by far. With
weights of at most 64 in magnitude that cannot happen, 255 (64 + 64) < 2^15; larger ones are two products of halves, for
which weights of 8 bits are stored twice. Where `Writer.on_any_cpu` does not ask for it they stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.rules import Int8

LARGEST_SAFE = 64


@dataclass(frozen=True, kw_only=True)
class Codes:
    """An 8-bit tensor, and the code of the integer 0."""

    tensor: str
    zero: int


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
