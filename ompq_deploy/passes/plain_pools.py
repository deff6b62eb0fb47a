"""Write MaxPool and AveragePool in the form that onnx and every runtime take alike.

Ceil mode becomes pads at the end (`graph/pads.py`) where sizes are known: onnx infers one position more than there is
where the last window would start in the padding. In the integer pool that onnxruntime makes of an AveragePool between
grids, it counts wrongly what hangs over in ceil mode beside pads that count, and takes no dilations, ones of 1 neither.
So the latter go, and the former become a Pad.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ompq_deploy.graph.pads import ceil_ends, positions

POOLS = frozenset(("AveragePool", "MaxPool"))


def plain_pools(model: ir.Model) -> bool:
    """Rewrite in place; True if anything changed."""
    changed = False
    for node in model.graph:
        if node.op_type in POOLS and not node.domain:
            before = dict(node.attributes)
            _drop_what_has_no_effect(node)
            if _flag(node, "ceil_mode") and _has_own_pads(node):
                _replace_ceil_mode(node)
            changed |= before != dict(node.attributes)
    return changed


def _drop_what_has_no_effect(node: ir.Node) -> None:
    if node.op_type == "AveragePool" and set(_integers(node, "dilations")) == {1}:
        node.attributes.pop("dilations", None)
    if _has_own_pads(node) and not any(_integers(node, "pads")):
        node.attributes.pop("count_include_pad", None)


def _replace_ceil_mode(node: ir.Node) -> None:
    """Pads at the end, where they are smaller than the kernel, as they must be; behind a Pad those that count.

    Where sizes are not known, only that Pad, unless a window could start in it.
    """
    pads, kernel = _integers(node, "pads"), _integers(node, "kernel_shape")
    steps = kernel, _integers(node, "strides"), _integers(node, "dilations")
    rank, counted, sizes = len(kernel), _flag(node, "count_include_pad"), _spatial_sizes(node)
    if sizes is None:
        if counted and all(s + end <= d * (k - 1) + 1 for k, s, d, end in zip(*steps, pads[rank:], strict=True)):
            _pad_before(node, pads)
        return
    ends = ceil_ends(*steps, pads, sizes)
    found = positions(*steps, [*pads[:rank], *ends], sizes)
    if any(end >= length for end, length in zip(ends, kernel, strict=True)):
        return
    if counted and list(ends) != pads[rank:]:
        _pad_before(node, pads)
        ends = tuple(end - given for end, given in zip(ends, pads[rank:], strict=True))
        pads = [0] * 2 * rank
    for name in ("ceil_mode", "auto_pad"):
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*pads[:rank], *ends])
    inferred = node.outputs[0].shape
    if inferred is not None and tuple(inferred[2:]) != found:
        _forget_sizes(node.outputs[0])


def _pad_before(node: ir.Node, pads: Sequence[int]) -> None:
    """A Pad with zeros in place of the node's own pads."""
    rank = len(pads) // 2
    widths = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
    amounts = ir.node("Constant", [], {"value": ir.tensor(widths)})
    padded = ir.node("Pad", [node.inputs[0], amounts.outputs[0]])
    assert node.graph is not None
    node.graph.insert_before(node, [amounts, padded])
    node.replace_input_with(0, padded.outputs[0])
    for name in ("pads", "count_include_pad"):
        del node.attributes[name]


def _forget_sizes(value: ir.Value) -> None:
    """Leave the sizes of a value, and of all that is made from it, to the next shape inference."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value not in seen and value.shape is not None:
            value.shape = ir.Shape([None if isinstance(size, int) else size for size in value.shape])
        if value not in seen:
            pending += [output for reader, _ in value.uses() for output in reader.outputs]
        seen.add(value)


def _spatial_sizes(node: ir.Node) -> list[int] | None:
    """Sizes of the input's axes from 2 on; None where one is not known."""
    source = node.inputs[0]
    sizes = [None] if source is None or source.shape is None else list(source.shape[2:])
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _has_own_pads(node: ir.Node) -> bool:
    """Whether the node gives its pads, or has none; SAME leaves them to the runtime."""
    return "auto_pad" not in node.attributes or not node.attributes["auto_pad"].as_string().startswith("SAME")


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _integers(node: ir.Node, name: str) -> list[int]:
    """A setting per axis, or its default; two for `pads`."""
    rank = len(node.attributes["kernel_shape"].as_ints())
    default: Sequence[int] = [0] * 2 * rank if name == "pads" else [1] * rank
    return list(node.attributes[name].as_ints() if name in node.attributes else default)
