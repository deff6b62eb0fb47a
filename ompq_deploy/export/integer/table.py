"""Lower a function of one integer tensor to a table.

table[i] = clip(floor(f(s_in (low + i)) / s_out + 1/2), low_out, high_out)      f in float64, at every value of the grid
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ompq_deploy.artifacts import Float64
from ompq_deploy.export.integer.program import IntegerTable
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.graph.real_functions import apply


def lower_function(scope: Scope, group: Group) -> IntegerTable:
    """The table of a group's function. A value that is not a number becomes 0; the network never reaches it."""
    grid, out = scope.grid(group.inputs[0]), scope.grids[group.output]
    steps = np.arange(grid.low, grid.high + 1, dtype=np.float64)
    values = evaluate(scope.index, group.function, group.inputs[0], steps * grid.scale)
    with np.errstate(invalid="ignore"):
        rounded = np.floor(np.nan_to_num(values, posinf=np.inf, neginf=-np.inf) / out.scale + 0.5)
    return IntegerTable(
        name=group.head.name,
        input=group.inputs[0],
        output=group.output,
        low=grid.low,
        table=np.clip(rounded, out.low, out.high).astype(np.int32),
    )


def evaluate(index: GraphIndex, nodes: Sequence[onnx.NodeProto], source: str, x: Float64) -> Float64:
    """The value of element-wise nodes, in order, where the tensor `source` is `x`; that of the last one."""
    known: dict[str, Any] = {source: x, "": None}
    for node in nodes:
        operands = [
            index.constant(name).astype(np.float64).reshape(()) if index.is_constant(name) else known[name]
            for name in node.input
        ]
        known[node.output[0]] = np.broadcast_to(apply(node.op_type, operands, attributes(node)), x.shape)
    return np.asarray(known[nodes[-1].output[0]])
