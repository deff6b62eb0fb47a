"""Write products with a constant so that the constant is the weight of a layer: a matrix, on the right, unscaled.

    Gemm(A, B, C), alpha, beta      Gemm(A, alpha B, beta C)
    Gemm(A, B, C), A transposed     Gemm(Transpose(A), B, C)
    Gemm(A, B, C), C no bias        Gemm(A, B) + C
    MatMul(W, X)                    Transpose(MatMul(Transpose(X), W^T))
    MatMul(X, W), W (1, K, N)       MatMul(X, W (K, N))
    MatMul(X, w), w (K)             Squeeze(MatMul(X, w (K, 1)))

A constant on the left mixes tokens, or the positions of a signal.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from ompq_deploy.passes.node_settings import number


class _PlainGemm(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings, and C where it has one."""
        return op.Gemm(a, b, _allow_other_attributes=True, _allow_other_inputs=True, _outputs=["y"])

    def check(self, context, a, b, y):  # type: ignore[no-untyped-def]
        """Whether a setting keeps it from being a layer."""
        result, settings = pattern.MatchResult(), y.producer().attributes
        if not is_constant(b) or is_constant(a):
            return result.fail("it has no weight", y)
        plain = (
            number(settings, "alpha", 1.0) == 1
            and number(settings, "beta", 1.0) == 1
            and not number(settings, "transA")
        )
        return result.fail("it is plain", y) if plain else result

    def rewrite(self, op, a, b, y):  # type: ignore[no-untyped-def]
        """The scales in the constants, the transposition in front."""
        node = y.producer()
        settings = node.attributes
        inputs = [
            op.Transpose(a, perm=[1, 0]) if number(settings, "transA") else a,
            _scaled(op, b, number(settings, "alpha", 1.0)),
            *(_scaled(op, c, number(settings, "beta", 1.0)) for c in node.inputs[2:] if c is not None),
        ]
        return _named(op.Gemm(*inputs, transB=int(number(settings, "transB"))), y)


class _GemmSum(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.Gemm(a, b, c, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, a, b, c, y):  # type: ignore[no-untyped-def]
        """Whether only C keeps the Gemm from being a layer with a bias."""
        result = pattern.MatchResult()
        if c is None or not is_constant(b):
            return result.fail("it is no layer anyway, or has no sum", y)
        columns = b.shape[0 if number(y.producer().attributes, "transB") else 1]
        return result.fail("its sum is a bias", c) if is_bias(c, columns=columns) else result

    def rewrite(self, op, a, b, c, y):  # type: ignore[no-untyped-def]
        """The product, and the sum behind it."""
        return op.Add(_named(op.Gemm(a, b, **y.producer().attributes), y), c)


class _ConstantLeft(pattern.RewriteRuleClassBase):
    def pattern(self, op, w, x):  # type: ignore[no-untyped-def]
        """The node to replace."""
        return op.MatMul(w, x, _outputs=["y"])

    def check(self, context, w, x, y):  # type: ignore[no-untyped-def]
        """Whether samples may lie in front of the matrices that are multiplied."""
        result = pattern.MatchResult()
        if not is_constant(w) or is_constant(x) or w.shape is None or len(w.shape) != 2:
            return result.fail("its first matrix is no constant", y)
        return result if x.shape is not None and len(x.shape) > 2 else result.fail("samples are not in front", y)

    def rewrite(self, op, w, x, y):  # type: ignore[no-untyped-def]
        """The product of the transposed."""
        rank = len(x.shape)
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        product = _named(op.MatMul(op.Transpose(x, perm=swapped), op.Transpose(w, perm=[1, 0])), y)
        return op.Transpose(product, perm=swapped)


class _BatchOfOne(pattern.RewriteRuleClassBase):
    def pattern(self, op, x, w):  # type: ignore[no-untyped-def]
        """The node to replace."""
        return op.MatMul(x, w, _outputs=["y"])

    def check(self, context, x, w, y):  # type: ignore[no-untyped-def]
        """Whether only axes of size 1 keep a constant from being a matrix."""
        result = pattern.MatchResult()
        if not is_constant(w) or is_constant(x) or x.shape is None or w.shape is None:
            return result.fail("it has no weight, or its rank is not known", y)
        batches = w.shape[:-2]
        fits = batches and all(size == 1 for size in batches) and len(w.shape) <= len(x.shape)
        return result if fits else result.fail("its weight is a matrix, or several", w)

    def rewrite(self, op, x, w, y):  # type: ignore[no-untyped-def]
        """The product with the matrix."""
        return _named(op.MatMul(x, op.Reshape(w, op.Constant(value_ints=list(w.shape[-2:])))), y)


class _VectorRight(pattern.RewriteRuleClassBase):
    def pattern(self, op, x, w):  # type: ignore[no-untyped-def]
        """The node to replace."""
        return op.MatMul(x, w, _outputs=["y"])

    def check(self, context, x, w, y):  # type: ignore[no-untyped-def]
        """Whether the constant is a vector."""
        result = pattern.MatchResult()
        vector = is_constant(w) and w.shape is not None and len(w.shape) == 1
        if not vector or x.shape is None or len(x.shape) < 2:
            return result.fail("it is no product with a constant vector", y)
        return result

    def rewrite(self, op, x, w, y):  # type: ignore[no-untyped-def]
        """The product with a matrix of one column."""
        column = op.Reshape(w, op.Constant(value_ints=[-1, 1]))
        return op.Squeeze(_named(op.MatMul(x, column), y), op.Constant(value_ints=[-1]))


def is_constant(value: ir.Value) -> bool:
    """Whether the value is known."""
    return ir.convenience.get_const_tensor(value) is not None


def is_bias(value: ir.Value, *, columns: int) -> bool:
    """Whether what is added to a matrix is a constant with one number per column, or one in all."""
    shapes = ((), (1,), (columns,), (1, 1), (1, columns))
    return is_constant(value) and value.shape is not None and tuple(value.shape) in shapes


def _scaled(op, x, factor: float):  # type: ignore[no-untyped-def]
    return x if factor == 1 else op.Mul(x, op.Constant(value_float=factor))


def _named(product, replaced):  # type: ignore[no-untyped-def]
    """The product, under the name of the node that it stands for."""
    product.producer().name = replaced.producer().name
    return product


RULES = (_PlainGemm.rule(), _GemmSum.rule(), _ConstantLeft.rule(), _BatchOfOne.rule(), _VectorRight.rule())


def plain_products(model: ir.Model) -> bool:
    """Rewrite in place; True if anything changed."""
    return rewriter.RewriteRuleSet(list(RULES)).apply_to_model(model) > 0
