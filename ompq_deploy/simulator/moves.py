"""The ONNX operators that rearrange values, from their specification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from ompq_deploy.export.integer.program import IntegerInterpolation, IntegerMove, IntegerSetting
from ompq_deploy.export.integer.rules import Values
from ompq_deploy.simulator.rescale import requantize


def move(operation: IntegerMove, x: Values, constants: Sequence[NDArray[Any] | None]) -> Values:
    """One operator on integers; `constants` are its further inputs."""
    settings: list[Any] = [None if value is None else np.asarray(value).tolist() for value in constants] + [None] * 4
    if operation.op == "Flatten":
        axis = operation.attributes.get("axis", 1)
        return x.reshape(math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim]), -1)
    if operation.op == "Reshape":
        keep = not operation.attributes.get("allowzero", 0)
        return x.reshape([x.shape[i] if size == 0 and keep else size for i, size in enumerate(settings[0])])
    if operation.op == "Transpose":
        return x.transpose(operation.attributes.get("perm", range(x.ndim)[::-1]))
    if operation.op == "Squeeze":
        return x.squeeze(None if settings[0] is None else tuple(settings[0]))
    if operation.op == "Unsqueeze":
        return np.expand_dims(x, tuple(settings[0]))
    if operation.op == "Slice":
        return _slice(x, *settings[:4])
    if operation.op == "Pad":
        return _pad(x, settings[0], settings[2], operation.attributes.get("mode", "constant"))
    if operation.op == "Identity":
        return x
    if operation.op in ("ReduceMax", "ReduceMin"):
        extreme = np.max if operation.op == "ReduceMax" else np.min
        return np.asarray(extreme(x, axis=tuple(settings[0]), keepdims=bool(operation.attributes["keepdims"])))
    if operation.op == "Gather":
        return np.take(x, settings[0], axis=operation.attributes.get("axis", 0))
    if operation.op == "Expand":
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(settings[0])))
    if operation.op == "Tile":
        return np.tile(x, settings[0])
    raise TypeError(f"no reference for {operation.op}")


def _slice(x: Values, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> Values:
    cut = [slice(None)] * x.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        cut[axis] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return x[tuple(cut)]


def _pad(x: Values, pads: list[int], axes: list[int] | None, mode: str) -> Values:
    chosen = axes if axes is not None else list(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(chosen):
        widths[axis] = (pads[i], pads[i + len(chosen)])
    if mode == "constant":
        return np.pad(x, widths)
    return np.pad(x, widths, mode={"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode])  # type: ignore[call-overload]


def interpolate(resize: IntegerInterpolation, x: Values) -> Values:
    """Along each axis the weighted sum of some elements."""
    total = x.astype(np.int64)
    for axis, indices, weights in zip(resize.axes, resize.indices, resize.weights, strict=True):
        total = sum(np.take(total, index, axis) * weight for index, weight in zip(indices, weights, strict=True))
    return requantize(total, resize.requantize, {})


def compute_setting(setting: IntegerSetting, read: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """One node on whole numbers, by onnx's own reference."""
    evaluator = ReferenceEvaluator(setting.node)
    values: dict[str, Any] = {name: setting.constants.get(name, read.get(name)) for name in setting.node.input if name}
    results: Any = evaluator.run(None, values)
    return np.asarray(results[0])
