"""ONNX operators that work element by element, reduce axes, or contract them, as torch functions.

Every function takes the node's inputs in order (None for one left out) and its attributes by name, with the
defaults of opset 21.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, 10: torch.float16, 11: torch.float64}  # fmt: skip


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
         transA: int = 0, transB: int = 0) -> Tensor:  # fmt: skip
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    if low is None or high is None or not x.is_floating_point() or low >= high:
        return torch.clamp(x, low, high)
    return F.hardtanh(x, float(low), float(high))  # its gradient takes a fifth of the time of that of clamp


def div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(a: Tensor, b: Tensor) -> Tensor:
    """A Python exponent where there is one: torch then knows exact gradients at zero."""
    return (
        torch.pow(a, float(b)) if b.numel() == 1 and a.is_floating_point() and not b.requires_grad else torch.pow(a, b)
    )


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(DTYPES[to])


def cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    total = x.flip(along).cumsum(along).flip(along) if reverse else x.cumsum(along)
    return total - x if exclusive else total


def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return torch.argmax(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), dim=axis, keepdim=bool(keepdims))


def reducer(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    """A Reduce* operator from a torch reduction over dimensions."""

    def run(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = tuple(axes.tolist()) if axes is not None else ()
        if not chosen and noop_with_empty_axes:
            return x
        return function(x, chosen or tuple(range(x.ndim)), bool(keepdims))

    return run


def folder(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator with any number of inputs from one with two."""
    return lambda *tensors: reduce(function, tensors)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


def shrink(x: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    return torch.where(x.abs() > lambd, x - bias * torch.sign(x), torch.zeros_like(x))


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


def dropout(x: Tensor, *_: Tensor | None, **__: Any) -> Sequence[Tensor]:
    return (x,)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": argmax,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cast": cast,
    "Ceil": torch.ceil,
    "Celu": celu,
    "Clip": clip,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "CumSum": cumsum,
    "Div": div,
    "Dropout": dropout,
    "Einsum": einsum,
    "Elu": elu,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": gelu,
    "Gemm": gemm,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda x: x * hard_sigmoid(x, alpha=1 / 6),
    "Identity": lambda x: x,
    "LeakyRelu": leaky_relu,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": log_softmax,
    "MatMul": torch.matmul,
    "Max": folder(torch.maximum),
    "Mean": lambda *tensors: sum(tensors) / len(tensors),
    "Min": folder(torch.minimum),
    "Mish": F.mish,
    "Mod": mod,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": torch.reciprocal,
    "ReduceL1": reducer(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": reducer(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": reducer(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": reducer(lambda x, axes, keep: torch.amax(x, axes, keepdim=keep)),
    "ReduceMean": reducer(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": reducer(lambda x, axes, keep: torch.amin(x, axes, keepdim=keep)),
    "ReduceSum": reducer(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceSumSquare": reducer(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "Relu": torch.relu,
    "Round": torch.round,
    "Selu": selu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Shrink": shrink,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softmax": softmax,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": folder(torch.add),
    "Swish": swish,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "ThresholdedRelu": thresholded_relu,
    "Where": torch.where,
}
