"""The whole numbers that a graph computes about its own shapes: kept as they are, but for the tensors they measure.

A Shape of a float tensor becomes the Shape of the integer tensor that took its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.program import IntegerSetting
from ompq_deploy.export.integer.scope import Scope

ON_SHAPES = frozenset(
    ("Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Greater", "Less", "Max",
     "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze",
     "Sub", "Unsqueeze", "Where")
)  # fmt: skip


def needed_settings(scope: Scope, names: Iterable[str]) -> set[str]:
    """The computed tensors that the settings `names` are made from, themselves included, down to shapes."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        node = scope.index.producer.get(name)
        if name in found or node is None:
            continue
        found.add(name)
        if node.op_type != "Shape":
            wanted += scope.index.activation_inputs(node)
    return found


def lower_setting(scope: Scope, node: onnx.NodeProto, present: Collection[str]) -> IntegerSetting:
    """One node on whole numbers; `present` are the integer tensors there are."""
    if node.op_type == "Shape":
        if node.input[0] not in present:
            raise NotCovered(node, f"it measures {node.input[0]!r}, which no integer tensor stands for")
    elif node.op_type not in ON_SHAPES or any(name in scope.index.float_tensors for name in node.output):
        raise NotCovered(node, "it computes a setting in another way than on whole numbers")
    constants = {name: scope.index.constant(name) for name in node.input if scope.index.is_constant(name)}
    return IntegerSetting(name=node.name, output=node.output[0], node=node, constants=constants)
