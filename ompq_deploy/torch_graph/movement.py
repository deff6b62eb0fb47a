"""ONNX operators that move, select or make values, as torch functions. Called as in `elementwise.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ompq_deploy.artifacts import Float32

PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = [x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape.tolist())]
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    head = x.shape[: axis if axis >= 0 else axis + x.ndim]
    return x.reshape(int(torch.Size(head).numel()), -1)


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(range(x.ndim))[::-1])


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    size = x.shape[axis]
    flat = torch.index_select(x, axis, torch.remainder(indices.reshape(-1).long(), size).to(x.device))
    axis %= x.ndim
    return flat.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, torch.remainder(indices.long(), x.shape[axis]))


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    count = starts.numel()
    chosen = axes.tolist() if axes is not None else list(range(count))
    strides = steps.tolist() if steps is not None else [1] * count
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), chosen, strides, strict=True):
        positions = range(x.shape[axis])[slice(start, end, step)]
        if step > 0:
            x = x.movedim(axis, 0)[positions.start : max(positions.stop, positions.start) : step].movedim(0, axis)
        else:
            x = torch.index_select(x, axis, torch.tensor(list(positions), device=x.device))
    return x


def split(x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Sequence[Tensor]:
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // (num_outputs or 1)), axis)


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    amounts = pads.tolist()
    count = len(amounts) // 2
    chosen = [axis % x.ndim for axis in (axes.tolist() if axes is not None else range(count))]
    for position, axis in enumerate(chosen):
        x = pad_axis(
            x, axis, amounts[position], amounts[count + position], mode, float(value) if value is not None else 0.0
        )
    return x


def pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str, value: float = 0.0) -> Tensor:
    """One axis padded, or cut where an amount is negative."""
    if before < 0 or after < 0:
        x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    before, after = max(before, 0), max(after, 0)
    if not before and not after:
        return x
    if mode == "constant":
        amounts = [0, 0] * (x.ndim - axis - 1) + [before, after]
        return F.pad(x, amounts, value=value)
    rows = x.movedim(axis, -1)
    lines = F.pad(rows.reshape(1, -1, rows.shape[-1]), (before, after), mode=PAD_MODES[mode])
    return lines.reshape(*rows.shape[:-1], -1).movedim(-1, axis)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(*repeats.tolist())


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def constant_of_shape(shape: Tensor, *, value: Any = None) -> Tensor:
    from onnx import numpy_helper

    fill: Float32 | Any = numpy_helper.to_array(value) if value is not None else torch.zeros(1).numpy()
    return torch.from_numpy(fill.copy()).expand(tuple(shape.tolist())).clone()


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        parts = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, depth, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b * b, h // b, w // b)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": lambda x: torch.tensor(x.numel()),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
