"""Write the operator Attention (opset 23) as matrix products and a Softmax, as exporters did before it.

    Y = Softmax(s Q K^T + A) V        s the attribute `scale`, 1 / sqrt(E) where there is none; A the mask, if any

Q is (B, H, L, E), K and V (B, H, S, E); or (B, L, H E) and (B, S, H E), the heads told by attributes. A mask of
booleans adds 0 where it is true and -inf elsewhere; a causal node does so where j <= i. Nodes with a computed mask, a
cache, a soft cap, or fewer heads in K than in Q are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from ompq_deploy.passes.node_settings import number

HEADS_FIRST = [0, 2, 1, 3]
KEYS_LAST = [0, 1, 3, 2]


class _Attention(pattern.RewriteRuleClassBase):
    def pattern(self, op, q, k, v):  # type: ignore[no-untyped-def]
        """The node to replace: without cache, with any settings."""
        return op.Attention(q, k, v, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, q, k, v, y, mask=None):  # type: ignore[no-untyped-def]
        """Whether it is the formula above in float32, all sizes that it takes known."""
        result = pattern.MatchResult()
        settings = y.producer().attributes
        if number(settings, "softcap"):
            return result.fail("it has a soft cap", y)
        if q.dtype != ir.DataType.FLOAT:
            return result.fail("not float32", q)
        heads = [_heads(x, settings, name) for x, name in ((q, "q_num_heads"), (k, "kv_num_heads"))]
        if None in heads or heads[0] != heads[1] or not isinstance(q.shape[-1], int):
            return result.fail("its heads differ, or sizes are not known", y)
        if number(settings, "is_causal") and not all(isinstance(x.shape[-2], int) for x in (q, k)):
            return result.fail("it is causal, and does not tell how many tokens there are", y)
        return result

    def rewrite(self, op, q, k, v, y, mask=None):  # type: ignore[no-untyped-def]
        """The formula."""
        settings = y.producer().attributes
        heads, flat = _heads(q, settings, "q_num_heads"), len(q.shape) == 3
        width = q.shape[-1] // heads if flat else q.shape[-1]
        scale = number(settings, "scale") or 1 / sqrt(width)
        seen = np.tri(q.shape[-2], k.shape[-2], dtype=bool) if number(settings, "is_causal") else None
        if flat:
            apart = op.Constant(value_ints=[0, 0, heads, -1])
            q, k, v = (op.Transpose(op.Reshape(x, apart), perm=HEADS_FIRST) for x in (q, k, v))
        scores = op.MatMul(op.Mul(q, op.Constant(value_float=scale)), op.Transpose(k, perm=KEYS_LAST))
        if mask is not None:
            scores = op.Add(scores, _added(op, mask) if mask.dtype == ir.DataType.BOOL else mask)
        if seen is not None:
            scores = op.Add(scores, _added(op, op.Constant(value=ir.tensor(seen))))
        result = op.MatMul(op.Softmax(scores, axis=-1), v)
        if flat:
            result = op.Reshape(op.Transpose(result, perm=HEADS_FIRST), op.Constant(value_ints=[0, 0, -1]))
        return result


class _Masked(_Attention):
    def pattern(self, op, q, k, v, mask):  # type: ignore[no-untyped-def, override]
        """The same with a mask, such as the bias of relative positions."""
        return op.Attention(q, k, v, mask, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, q, k, v, y, mask=None):  # type: ignore[no-untyped-def]
        """Whether the mask is a constant, too."""
        values = ir.convenience.get_const_tensor(mask)
        if values is None or values.dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL):
            return pattern.MatchResult().fail("its mask is not constant", y)
        return super().check(context, q, k, v, y)


def _added(op, seen):  # type: ignore[no-untyped-def]
    """What a mask of booleans adds."""
    return op.Where(seen, op.Constant(value_float=0.0), op.Constant(value_float=float("-inf")))


def _heads(x: ir.Value, settings: Mapping[str, ir.Attr], name: str) -> int | None:
    """The heads of a tensor; None where they are not known."""
    if x.shape is None or len(x.shape) not in (3, 4):
        return None
    heads = x.shape[1] if len(x.shape) == 4 else int(number(settings, name))
    return heads if isinstance(heads, int) and heads > 0 else None


def split_attention(model: ir.Model) -> bool:
    """Rewrite in place; True if anything changed."""
    return rewriter.RewriteRuleSet([_Attention.rule(), _Masked.rule()]).apply_to_model(model) > 0
