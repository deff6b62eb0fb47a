"""Emit sums, products, tables, constants and concatenations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from ompq_deploy.export.integer.emit.rescale import requantize, shift, term
from ompq_deploy.export.integer.emit.writer import Writer, storage_type, storage_zero, stored
from ompq_deploy.export.integer.program import (
    IntegerConcat,
    IntegerConstant,
    IntegerExtreme,
    IntegerProduct,
    IntegerQuotient,
    IntegerSum,
    IntegerTable,
)
from ompq_deploy.export.integer.rules import Requantize, Values


def emit_sum(writer: Writer, addition: IntegerSum) -> None:
    """One product per term, one shift."""
    offset = addition.constant
    for name, multiplier in zip(addition.inputs, addition.multipliers, strict=True):
        offset = offset - writer.zero(name) * multiplier
    terms = [
        term(writer, stored(name), multiplier, f"{addition.output}_term{position}")
        for position, (name, multiplier) in enumerate(zip(addition.inputs, addition.multipliers, strict=True))
    ]
    shift(writer, terms, offset, addition.clamp, addition.output, writer.grids[addition.output])


def emit_product(writer: Writer, product: IntegerProduct) -> None:
    """Mul in int64."""
    factors = [
        writer.centred(name, f"{product.output}_factor{position}", TensorProto.INT64)
        for position, name in enumerate(product.inputs)
    ]
    total = writer.node("Mul", factors, f"{product.output}_product")
    requantize(writer, total, product.requantize, product.output)


def emit_quotient(writer: Writer, quotient: IntegerQuotient) -> None:
    """The divisor in int32; one division in int64, of numbers that `reach` divisors were added to."""
    name, (left, right) = quotient.output, quotient.inputs

    def constant(part: str, value: np.generic) -> str:
        return writer.constant(f"{name}_{part}", value)

    x = writer.centred(left, f"{name}_dividend", TensorProto.INT32)
    y = writer.centred(right, f"{name}_divisor", TensorProto.INT32)
    doubled = writer.node("Mul", [y, constant("two", np.int32(2))], f"{name}_doubled")
    odd = writer.node("Add", [doubled, constant("one", np.int32(1))], f"{name}_odd")
    signed = writer.node("Mul", [x, writer.node("Sign", [odd], f"{name}_sign")], f"{name}_signed")
    least = writer.node("Abs", [x], f"{name}_magnitude")
    least = writer.node("Div", [least, constant("saturating", np.int32(quotient.saturating))], f"{name}_least")
    divisor = writer.node("Abs", [y], f"{name}_absolute")
    divisor = writer.node("Max", [divisor, least, constant("smallest", np.int32(1))], f"{name}_held")
    divisor = writer.node("Cast", [divisor], f"{name}_held_int64", to=TensorProto.INT64)
    dividend = writer.node("Cast", [signed], f"{name}_signed_int64", to=TensorProto.INT64)
    factor = constant("factor", np.int64(1) << quotient.bits)
    dividend = writer.node("Mul", [dividend, factor], f"{name}_scaled_dividend")
    half = writer.node("Div", [divisor, constant("half_factor", np.int64(2))], f"{name}_half")
    reach = constant("reach", np.int64(quotient.reach))
    added = writer.node("Add", [half, writer.node("Mul", [divisor, reach], f"{name}_raise")], f"{name}_added")
    positive = writer.node("Add", [dividend, added], f"{name}_positive_dividend")
    divided = writer.node("Div", [positive, divisor], f"{name}_raised")
    requantize(writer, writer.node("Sub", [divided, reach], f"{name}_quotient"), quotient.requantize, name)


def emit_extreme(writer: Writer, extreme: IntegerExtreme) -> None:
    """Max or Min in int32, of parts on the output's grid."""
    grid = writer.grids[extreme.output]
    parts = _brought(writer, extreme.inputs, extreme.rescales, extreme.output)
    if grid.wide:
        writer.node(extreme.op, parts, stored(extreme.output))
        return
    wide = [writer.node("Cast", [part], f"{part}_{i}_int32", to=TensorProto.INT32) for i, part in enumerate(parts)]
    chosen = writer.node(extreme.op, wide, f"{extreme.output}_chosen")
    writer.node("Cast", [chosen], stored(extreme.output), to=storage_type(grid))


def emit_table(writer: Writer, table: IntegerTable) -> None:
    """Gather; an 8-bit tensor's code is the place in the table."""
    grid = writer.grids[table.input]
    place = writer.node("Cast", [stored(table.input)], f"{table.output}_code", to=TensorProto.INT32)
    if table.low + storage_zero(grid):
        low = writer.constant(f"{table.output}_first", np.int32(table.low + storage_zero(grid)))
        place = writer.node("Sub", [place, low], f"{table.output}_place")
    entries = writer.constant(f"{table.output}_table", as_stored(writer, table.table, table.output))
    writer.node("Gather", [entries, place], stored(table.output))


def emit_constant(writer: Writer, constant: IntegerConstant) -> None:
    """An initializer."""
    writer.constant(stored(constant.output), as_stored(writer, constant.values, constant.output))


def emit_concat(writer: Writer, concat: IntegerConcat) -> None:
    """Concat of the parts, each on the output's grid."""
    parts = _brought(writer, concat.inputs, concat.rescales, concat.output)
    writer.node("Concat", parts, stored(concat.output), axis=concat.axis)


def _brought(writer: Writer, inputs: Sequence[str], rescales: Sequence[Requantize | None], output: str) -> list[str]:
    """The stored inputs, each on the grid of `output`."""
    parts = []
    for position, (name, rescale) in enumerate(zip(inputs, rescales, strict=True)):
        if rescale is None:
            parts.append(stored(name))
            continue
        part = f"{output}_part{position}"
        scaled = term(writer, stored(name), rescale.multiplier, f"{part}_term")
        offset = -writer.zero(name) * rescale.multiplier
        shift(writer, [scaled], offset, rescale.clamp, part, writer.grids[output])
        parts.append(stored(part))
    return parts


def as_stored(writer: Writer, values: Values, tensor: str) -> np.ndarray:
    """Integers as the tensor of that name stores them."""
    grid = writer.grids[tensor]
    return (values + storage_zero(grid)).astype(np.int32 if grid.wide else np.uint8)
