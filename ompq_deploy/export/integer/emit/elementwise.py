"""Emit sums, products, tables, constants and concatenations."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ompq_deploy.export.integer.emit.rescale import requantize, shift, term
from ompq_deploy.export.integer.emit.writer import Writer, storage_zero, stored
from ompq_deploy.export.integer.program import (
    IntegerConcat,
    IntegerConstant,
    IntegerProduct,
    IntegerSum,
    IntegerTable,
    Values,
)


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
    parts = []
    for position, (name, rescale) in enumerate(zip(concat.inputs, concat.rescales, strict=True)):
        if rescale is None:
            parts.append(stored(name))
            continue
        part = f"{concat.output}_part{position}"
        scaled = term(writer, stored(name), rescale.multiplier, f"{part}_term")
        offset = -writer.zero(name) * rescale.multiplier
        shift(writer, [scaled], offset, rescale.clamp, part, writer.grids[concat.output])
        parts.append(stored(part))
    writer.node("Concat", parts, stored(concat.output), axis=concat.axis)


def as_stored(writer: Writer, values: Values, tensor: str) -> np.ndarray:
    """Integers as the tensor of that name stores them."""
    grid = writer.grids[tensor]
    return (values + storage_zero(grid)).astype(np.int32 if grid.wide else np.uint8)
