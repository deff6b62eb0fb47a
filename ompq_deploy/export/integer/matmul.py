"""Lower the product of two computed matrices.

acc = sum_k left right,   |acc| <= K largest_left largest_right,   ratio = s_left s_right / s_out
"""

from __future__ import annotations

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.linear import lower_layer
from ompq_deploy.export.integer.program import IntegerTensorProduct, Operation
from ompq_deploy.export.integer.rescale import check_accumulator, requantize
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group


def lower_matmul(scope: Scope, group: Group) -> Operation | tuple[Operation, ...]:
    """MatMul: a layer, or a product of two tensors of which one may be a constant that is no layer's weight."""
    if group.head.name in scope.layers:
        return lower_layer(scope, group)
    left, right = (scope.grid(name) for name in group.inputs)
    out = scope.grids[group.output]
    bound = _inner_size(scope, group) * left.largest * right.largest
    check_accumulator(group.head.name, bound, left if left.wide else right)
    ratio = left.scale * right.scale / out.scale
    return IntegerTensorProduct(
        name=group.head.name,
        inputs=(group.inputs[0], group.inputs[1]),
        output=group.output,
        requantize=requantize(group.head.name, ratio, bound, (out.low, out.high)),
    )


def _inner_size(scope: Scope, group: Group) -> int:
    """K, the number of products summed."""
    left, right = (scope.index.shapes.get(name, (None,)) for name in group.inputs)
    size = left[-1] if left[-1] is not None else right[-2 if len(right) > 1 else -1]
    if size is None:
        raise NotCovered(group.head, "the size it sums over is not fixed")
    return size
