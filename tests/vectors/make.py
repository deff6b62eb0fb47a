"""Make the test vectors: one small file per operation, with all it reads and the integers it must compute.

    python -m tests.vectors.make

Every file is an npz. `operation` is JSON: the operation's class in `export/integer/program.py` and its fields, where a
field that is an array is the name of another entry. `input.NAME` are the integers of the tensors it reads, int32,
centred on zero; `output` those it computes. Expected values are those of `tests/exact.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ompq_deploy.artifacts import Grid, QuantizedGraph
from ompq_deploy.export.integer import program as p
from ompq_deploy.export.integer.lower import lower
from tests import test_integer, test_integer_operators
from tests.exact import Whole, run_exactly, whole
from tests.integer import quantized_case
from tests.quantized import inputs, with_zero_points

FOLDER = Path(__file__).parent
ZERO_POINTS = (128, 40, 0, 255, 117)
OPERATORS = test_integer.CASES | test_integer_operators.CASES

VECTORS: dict[str, tuple[str, type]] = {
    "conv": ("conv", p.IntegerConv),
    "conv_grouped": ("conv_grouped", p.IntegerConv),
    "conv_depthwise": ("conv_depthwise", p.IntegerConv),
    "conv_dilations": ("conv_dilations", p.IntegerConv),
    "conv_tensorrt": ("conv", p.IntegerConv),
    "conv_residual": ("residual_with_constant", p.IntegerConv),
    "conv_residual_tensorrt": ("residual_with_constant", p.IntegerConv),
    "zero_insertion": ("conv_transpose_uneven", p.IntegerZeroInsertion),
    "conv_transpose": ("conv_transpose_groups", p.IntegerConv),
    "matmul": ("attention", p.IntegerMatMul),
    "matmul_tensorrt": ("matmul_residual", p.IntegerMatMul),
    "tensor_product": ("product_of_matrices", p.IntegerTensorProduct),
    "product": ("squeeze_and_excite", p.IntegerProduct),
    "quotient": ("signed_quotient", p.IntegerQuotient),
    "max": ("max", p.IntegerExtreme),
    "norm": ("reduce_l2", p.IntegerNorm),
    "sum": ("unfused_sum", p.IntegerSum),
    "sum_affine": ("sub_constant_first", p.IntegerSum),
    "table": ("exp_of_the_input", p.IntegerTable),
    "concat": ("concat", p.IntegerConcat),
    "average_pool": ("average_pool_without_pads", p.IntegerAveragePool),
    "max_pool": ("max_pool_dilated", p.IntegerMaxPool),
    "mean": ("reduce_mean", p.IntegerMean),
    "instance_norm": ("instance_norm", p.IntegerNormalization),
    "layer_norm": ("layer_norm", p.IntegerNormalization),
    "softmax": ("softmax_of_the_input", p.IntegerSoftmax),
    "resize_linear": ("resize_linear_pytorch", p.IntegerInterpolation),
    "resize_cubic": ("resize_cubic", p.IntegerInterpolation),
    "pad_reflect": ("pad_reflect", p.IntegerMove),
    "slice": ("slice", p.IntegerMove),
    "transpose": ("transpose", p.IntegerMove),
    "gather": ("resize_nearest", p.IntegerMove),
}
"""The operator case and the operation in its program that each file is about; the last such operation counts."""
IN_FLOAT = ("conv_tensorrt", "conv_residual_tensorrt", "matmul_tensorrt")
"""Those under the arithmetic `tensorrt`."""


def vector(name: str) -> dict[str, np.ndarray]:
    """The entries of one file."""
    case, kind = VECTORS[name]
    quantized = coarse(with_zero_points(quantized_case(OPERATORS[case]), ZERO_POINTS))
    program = lower(quantized, p.TENSORRT if name in IN_FLOAT else p.DYADIC)
    known = run_exactly(program, inputs(quantized.graph, 1, seed=7))
    operations = [op for op in program.operations if isinstance(op, kind) and p.leaves_integers(op)]
    operation = max(operations, key=lambda op: "tested" in op.output)
    arrays: dict[str, np.ndarray] = {}
    fields = _fields(operation, "", arrays)
    reads = {part: known[part] for part in _reads(operation)}
    arrays |= {f"input.{part}": value.astype(np.int32) for part, value in reads.items()}
    arrays["operation"] = np.array(json.dumps({"class": type(operation).__name__, **fields}))
    arrays["output"] = known[operation.output].astype(np.int32)
    return arrays


def coarse(quantized: QuantizedGraph) -> QuantizedGraph:
    """The graph with 10 bits in every scale, so that every machine, rounding float sums in its own way, makes the same
    vectors."""

    def rounded(values: Any) -> Any:
        mantissa, exponent = np.frexp(np.asarray(values, np.float64))
        return np.ldexp(np.rint(np.ldexp(mantissa, 10)), exponent - 10)

    def changed(grid: Grid) -> Grid:
        step = 1 << max(grid.bits - 8, 0)
        zero_point = min(round(grid.zero_point / step) * step, (1 << grid.bits) - 1)
        return dataclasses.replace(grid, scale=float(rounded(grid.scale)), zero_point=zero_point)

    return dataclasses.replace(
        quantized,
        layers=tuple(
            dataclasses.replace(layer, scale=rounded(layer.scale).astype(np.float32)) for layer in quantized.layers
        ),
        grids={name: changed(grid) for name, grid in quantized.grids.items()},
        wide_grids={name: changed(grid) for name, grid in quantized.wide_grids.items()},
    )


def read(stored: dict[str, np.ndarray]) -> tuple[Any, dict[str, Whole]]:
    """The operation that a file holds, and the integers it reads, by tensor name."""
    fields = json.loads(str(stored["operation"]))
    known = {key.removeprefix("input."): whole(value) for key, value in stored.items() if key.startswith("input.")}
    return _built(fields, stored), known


def _reads(operation: p.Operation) -> list[str]:
    names = list(getattr(operation, "inputs", ())) or [p.first_input(operation)]
    skip = getattr(getattr(operation, "requantize", None), "skip", "")
    return [*names, skip] if skip else names


def _fields(value: Any, path: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A dataclass as JSON; its arrays go into `arrays` under their path."""
    return {
        field.name: _plain(getattr(value, field.name), f"{path}{field.name}", arrays)
        for field in dataclasses.fields(value)
    }


def _plain(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        arrays[path] = np.asarray(value)
        return {"array": path}
    if dataclasses.is_dataclass(value):
        return {"class": type(value).__name__, **_fields(value, f"{path}.", arrays)}
    if isinstance(value, tuple):
        return [_plain(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
    return dict(value) if isinstance(value, dict) else value


def _built(value: Any, stored: dict[str, np.ndarray]) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return tuple(_built(item, stored) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return stored[value["array"]]
    if "class" not in value:
        return value
    make: Callable[..., Any] = getattr(p, value["class"])
    return make(**{name: _built(item, stored) for name, item in value.items() if name != "class"})


def main() -> None:
    """Write every file."""
    for name in VECTORS:
        np.savez_compressed(FOLDER / f"{name}.npz", **vector(name))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
