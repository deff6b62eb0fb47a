"""Write an Einsum of two tensors as a matrix product, as most exporters do.

    Einsum("bhid,bhjd->bhij", A, B) = A B^T for each b, h

An index stands in both tensors and the result (a product for each), in both tensors alone (summed), or in one of them
and the result (rows of the first, columns of the second). Other equations, those with `...` among them, are left as
they are, and so are tensors with more than one unknown size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Equation:
    """Indices of the tensors and of the result, and what they are in the product of the first and the last tensor."""

    tensors: tuple[str, ...]
    result: str

    @property
    def left(self) -> str:
        return self.tensors[0]

    @property
    def right(self) -> str:
        return self.tensors[-1]

    @property
    def each(self) -> str:
        return "".join(index for index in self.left if index in self.right and index in self.result)

    @property
    def summed(self) -> str:
        return "".join(index for index in self.left if index in self.right and index not in self.result)

    @property
    def rows(self) -> str:
        return "".join(index for index in self.left if index not in self.right)

    @property
    def columns(self) -> str:
        return "".join(index for index in self.right if index not in self.left)

    @property
    def is_product(self) -> bool:
        """Whether it has two tensors, and every index has one part."""
        unique = all(len(set(indices)) == len(indices) for indices in (*self.tensors, self.result))
        parts = {*self.each, *self.rows, *self.columns}
        return len(self.tensors) == 2 and unique and set(self.result) == parts and "." not in self.result


class _Einsum(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b):  # type: ignore[no-untyped-def]
        """The node to replace."""
        return op.Einsum(a, b, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, a, b, y):  # type: ignore[no-untyped-def]
        """Whether it is a matrix product of tensors whose sizes are known, but for one."""
        result = pattern.MatchResult()
        equation = _equation(y)
        if not equation.is_product:
            return result.fail("it is not a product of two matrices", y)
        if a.shape is None or b.shape is None:
            return result.fail("ranks are not known", y)
        sizes = _sizes(equation, a, b)
        if any(
            [sizes[index] for index in indices].count(UNKNOWN) > 1 for indices in (*equation.tensors, equation.result)
        ):
            return result.fail("sizes are not known", y)
        return result

    def rewrite(self, op, a, b, y):  # type: ignore[no-untyped-def]
        """Both tensors as (each, rows, summed) and (each, summed, columns), their product, and its axes in order.

        A constant is the second, so that its MatMul is a layer.
        """
        equation = _equation(y)
        sizes = _sizes(equation, a, b)
        if ir.convenience.get_const_tensor(a) is not None:
            a, b, equation = b, a, Equation(tensors=equation.tensors[::-1], result=equation.result)
        each, rows, columns = equation.each, equation.rows, equation.columns
        apart = [*rows] if rows and not each else [*each, rows]
        left = _arranged(op, a, equation.left, [*apart, equation.summed], sizes)
        right = _arranged(op, b, equation.right, [*each, equation.summed, columns], sizes)
        product = op.MatMul(left, right)
        made = each + rows + columns
        if [*apart, columns] != [*made]:
            product = op.Reshape(product, op.Constant(value_ints=[sizes[index] for index in made]))
        return _transposed(op, product, made, equation.result)


def _equation(y: ir.Value) -> Equation:
    """The equation of a node; without "->", the result has the indices that stand once, in order."""
    text = y.producer().attributes["equation"].as_string().replace(" ", "")  # type: ignore[union-attr]
    tensors, arrow, result = text.partition("->")
    once = "".join(sorted(index for index in set(tensors) - {","} if tensors.count(index) == 1))
    return Equation(tensors=tuple(tensors.split(",")), result=result if arrow else once)


def _sizes(equation: Equation, *tensors: ir.Value) -> dict[str, int]:
    """The size of every index, UNKNOWN where no tensor tells it."""
    sizes: dict[str, int] = {}
    for indices, x in zip(equation.tensors, tensors, strict=True):
        for index, size in zip(indices, x.shape or (), strict=True):
            sizes[index] = max(sizes.get(index, UNKNOWN), size if isinstance(size, int) else UNKNOWN)
    return sizes


def _arranged(op, x, indices: str, axes: Sequence[str], sizes: dict[str, int]):  # type: ignore[no-untyped-def]
    """A tensor with its indices in the order of `axes`, those of one axis put together."""
    x = _transposed(op, x, indices, "".join(axes))
    if all(len(axis) == 1 for axis in axes):
        return x
    together = [max(prod(sizes[index] for index in axis), UNKNOWN) for axis in axes]
    return op.Reshape(x, op.Constant(value_ints=together))


def _transposed(op, x, indices: str, order: str):  # type: ignore[no-untyped-def]
    return x if order == indices else op.Transpose(x, perm=[indices.index(index) for index in order])


def split_einsum(model: ir.Model) -> bool:
    """Rewrite in place; True if anything changed."""
    return rewriter.RewriteRuleSet([_Einsum.rule()]).apply_to_model(model) > 0
