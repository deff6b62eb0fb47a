"""Have a MaxPool pad by itself where a Pad of the lowest number stands in front of it.

Converters from TensorFlow write padding so. What a MaxPool pads never is the largest, and no tensor holds the infinite.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

LOWEST = float(np.finfo(np.float32).min)
SPATIAL = 2
"""The first axis along which a pool slides."""


class _PadAndMaxPool(pattern.RewriteRuleClassBase):
    def pattern(self, op, x, pads, value):  # type: ignore[no-untyped-def]
        """A MaxPool that alone reads a Pad, both with any settings."""
        padded = op.Pad(x, pads, value, _allow_other_attributes=True, _outputs=["padded"])
        return op.MaxPool(padded, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, x, pads, value, padded, y):  # type: ignore[no-untyped-def]
        """Whether the pads lie around the windows alone, hold the lowest number, and no window can lie within them."""
        result = pattern.MatchResult()
        pad, pool = padded.producer().attributes, y.producer().attributes
        if "mode" in pad and pad["mode"].as_string() != "constant":
            return result.fail("it repeats values", padded)
        if pads.const_value is None or value.const_value is None or value.const_value.numpy().max() > LOWEST:
            return result.fail("its pads are not known to be the lowest number", padded)
        if "auto_pad" in pool and pool["auto_pad"].as_string() not in ("NOTSET", "VALID"):
            return result.fail("its pads depend on its sizes", y)
        total = _pads_together(pads, pool)
        given = pads.const_value.numpy().reshape(2, -1)
        if given[:, :SPATIAL].any() or given.min() < 0:
            return result.fail("it pads samples or channels, or crops", padded)
        if any(pad >= size for pad, size in zip(total, 2 * pool["kernel_shape"].as_ints(), strict=True)):
            return result.fail("a window may lie within the pads", y)
        return result

    def rewrite(self, op, x, pads, value, padded, y):  # type: ignore[no-untyped-def]
        """The pool with the pads of both."""
        settings = {name: setting.value for name, setting in y.producer().attributes.items()}
        settings.pop("auto_pad", None)
        settings["pads"] = _pads_together(pads, y.producer().attributes)
        return op.MaxPool(x, **settings)


def _pads_together(pads: ir.Value, pool: dict[str, ir.Attr]) -> list[int]:
    """The pads of a Pad along the spatial axes plus those of the pool behind it, as the pool tells them."""
    assert pads.const_value is not None
    given = pads.const_value.numpy().reshape(2, -1)[:, SPATIAL:].reshape(-1)
    own = pool["pads"].as_ints() if "pads" in pool else np.zeros_like(given)
    return [int(pad) for pad in given + own]


def fuse_pad_into_pool(model: ir.Model) -> bool:
    """Fuse in place; True if anything changed."""
    return rewriter.RewriteRuleSet([_PadAndMaxPool.rule()]).apply_to_model(model) > 0
