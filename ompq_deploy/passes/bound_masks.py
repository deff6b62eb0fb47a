"""Bound what masks add in front of a Softmax, so that 16 bits hold the scores beside it.

    Softmax(x + A)                 Softmax(x + max(A, MASKED))
    Softmax(Where(C, x, a))        Softmax(x + A),  A = 0 where C holds, else MASKED          if a <= MASKED
    Where(IsNaN(s), 0, s)          s,  a Softmax whose masks are bounded: only a row of -inf alone gives NaN

A, C and a are constants, and x may be moved before and after. Exporters write -inf, the lowest float32 or -10^9, on
whose grid every score would be zero.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ompq_deploy.graph.index import GraphIndex, unused_name
from ompq_deploy.graph.placement import moves_values

FINITE = frozenset(("Div", "MatMul", "Mul"))
"""What makes scores that no mask has been added to."""
MASKED = -256.0
"""A score that much lower has the probability 0 in float32, unless it was 150 above all others."""


def bound_masks(model: onnx.ModelProto) -> None:
    """Rewrite in place what only a Softmax reads, moved or not."""
    index = GraphIndex(model)
    for softmax in [node for node in model.graph.node if node.op_type == "Softmax"]:
        scores = softmax.input[0]
        while index.only_consumer(scores) is not None and scores in index.producer:
            behind = _behind(model, index, index.producer[scores])
            if behind is None:
                break
            scores = behind
        if scores in index.producer and index.producer[scores].op_type in FINITE:
            _drop_nan_guard(model, index, softmax.output[0])


def _drop_nan_guard(model: onnx.ModelProto, index: GraphIndex, result: str) -> None:
    """Have what reads Where(IsNaN(result), constant, result) read `result` itself."""
    for guard in index.consumers(result):
        if guard.op_type != "Where" or guard.input[2] != result or guard.output[0] in index.outputs:
            continue
        test = index.producer.get(guard.input[0])
        if test is None or test.op_type != "IsNaN" or test.input[0] != result or not index.is_constant(guard.input[1]):
            continue
        readers = index.consumers(guard.output[0])
        if not all(guard.output[0] in reader.input for reader in readers):  # a branch reads it by its name
            continue
        for reader in readers:
            reader.input[:] = [result if name == guard.output[0] else name for name in reader.input]
        model.graph.node.remove(guard)
        if index.only_consumer(test.output[0]) is guard:
            model.graph.node.remove(test)


def _behind(model: onnx.ModelProto, index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """The scores that a node masks or moves, its mask bounded; None where it does neither."""
    if moves_values(index, node):
        return node.input[0]
    if node.op_type == "Where":
        return _unmasked_where(model, index, node)
    if node.op_type != "Add" or len(index.activation_inputs(node)) != 1:
        return None
    (scores,) = index.activation_inputs(node)
    mask = next(name for name in node.input if name != scores)
    values = index.constant(mask)
    if (values < MASKED).any():
        node.input[:] = [scores, _constant(model, mask, np.maximum(values, MASKED))]
    return scores


def _unmasked_where(model: onnx.ModelProto, index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """The scores of a Where, which becomes an Add, if all that it chooses between is one tensor and a mask."""
    condition, *choices = node.input
    computed = index.activation_inputs(node)
    if not index.is_constant(condition) or len(computed) != 1:
        return None
    (scores,) = computed
    fill = index.constant(next(name for name in choices if name != scores))
    if not (fill <= MASKED).all():
        return None
    seen = index.constant(condition) if choices[0] == scores else ~index.constant(condition)
    mask = np.where(seen, np.zeros_like(fill), MASKED)
    node.op_type = "Add"
    node.input[:] = [scores, _constant(model, condition, mask)]
    return scores


def _constant(model: onnx.ModelProto, name: str, values: NDArray[np.floating]) -> str:
    """A new float32 initializer with the values, called after an old one."""
    taken = {tensor.name for tensor in model.graph.initializer} | {n for node in model.graph.node for n in node.output}
    name = unused_name(f"{name}_bounded", taken)
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name
