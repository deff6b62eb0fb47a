"""onnxruntime, the reference and exact arithmetic agree bit for bit: generated graphs, other widths, stored vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy.artifacts import Grid, QuantizedGraph
from ompq_deploy.export.integer.emit.normalize import emit_square_root
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.simulator.normalize import square_root
from tests import models
from tests.exact import evaluate
from tests.integer import assert_equal_to_reference, quantized_case, settings
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph
from tests.vectors import make

ort.set_default_logger_severity(3)
CHANNELS = 4
Step = Callable[[GraphBuilder, list[str], str], str]


def _last(kind: str, **attributes: object) -> Step:
    return lambda g, made, name: g.node(kind, [made[-1]], name, **attributes)


def _pair(kind: str) -> Step:
    return lambda g, made, name: g.node(kind, [made[-1], made[int(g.random.integers(len(made)))]], name)


def _conv(g: GraphBuilder, made: list[str], name: str) -> str:
    groups, kernel = int(g.random.choice([1, 2, 4])), int(g.random.choice([1, 3]))
    return g.conv(made[-1], name, CHANNELS, CHANNELS, kernel=kernel, groups=groups)


def _conv_transpose(g: GraphBuilder, made: list[str], name: str) -> str:
    weight = g.constant(g.random.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32), f"{name}_weight")
    return g.node("ConvTranspose", [made[-1], weight], name, pads=[1, 1, 1, 1])


def _joined(g: GraphBuilder, made: list[str], name: str) -> str:
    other = made[int(g.random.integers(len(made)))]
    joined = g.node("Concat", [made[-1], other], f"{name}_joined", axis=1)
    return g.conv(joined, name, 2 * CHANNELS, CHANNELS, kernel=1)


def _normalized(g: GraphBuilder, made: list[str], name: str) -> str:
    parameters = [
        g.constant(g.random.standard_normal(CHANNELS).astype(np.float32), f"{name}_{part}") for part in ("a", "b")
    ]
    return g.node("InstanceNormalization", [made[-1], *parameters], name)


def _scaled(g: GraphBuilder, made: list[str], name: str) -> str:
    factors = g.constant(g.random.standard_normal((CHANNELS, 1, 1)).astype(np.float32), f"{name}_factors")
    return g.node("Mul", [made[-1], factors], name)


def _resized(g: GraphBuilder, made: list[str], name: str) -> str:
    down = g.node("AveragePool", [made[-1]], f"{name}_down", kernel_shape=[2, 2], strides=[2, 2])
    mode = str(g.random.choice(["nearest", "linear"]))
    return g.node("Resize", [down, "", "", settings(g, f"{name}_sizes", 6, 6)], name, mode=mode, axes=[2, 3])


STEPS: dict[str, Step] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "relu": _last("Relu"),
    "sigmoid": _last("Sigmoid"),
    "leaky": _last("LeakyRelu"),
    "pool": _last("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average": _last("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "softmax": _last("Softmax", axis=1),
    "add": _pair("Add"),
    "sub": _pair("Sub"),
    "mul": _pair("Mul"),
    "div": _pair("Div"),
    "max": _pair("Max"),
    "min": _pair("Min"),
    "matmul": _pair("MatMul"),
    "joined": _joined,
    "normalized": _normalized,
    "scaled": _scaled,
    "resized": _resized,
}


def random_network(seed: int, length: int = 10) -> onnx.ModelProto:
    """`length` operators in a row, some reading earlier tensors too, between two convolutions."""
    g = GraphBuilder(seed)
    made = [g.conv("x", "first", 3, CHANNELS)]
    for place in range(length):
        kind = str(g.random.choice(list(STEPS)))
        made.append(STEPS[kind](g, made, f"{kind}{place}"))
    return g.model(["N", 3, 6, 6], g.conv(made[-1], "last", CHANNELS, 2), ["N", 2, 6, 6], opset=21)


def with_random_grids(quantized: QuantizedGraph, seed: int) -> QuantizedGraph:
    """Other zero-points, and scales up to three times finer or coarser, on all grids."""
    random = np.random.default_rng(seed)

    def changed(grid: Grid) -> Grid:
        scale = float(np.float32(grid.scale * 10.0 ** random.uniform(-0.5, 0.5)))
        return dataclasses.replace(grid, scale=scale, zero_point=int(random.integers(1 << grid.bits)))

    grids = {name: changed(grid) for name, grid in quantized.grids.items()}
    wide = {name: changed(grid) for name, grid in quantized.wide_grids.items()}
    return dataclasses.replace(quantized, grids=grids, wide_grids=wide)


@pytest.mark.parametrize("seed", range(12))
def test_generated_networks(seed: int, tmp_path: Path) -> None:
    quantized = quantize_graph(models.save(random_network(seed), tmp_path / "m.onnx"))
    assert_equal_to_reference(lower(quantized), inputs(quantized.graph, 2))
    odd = with_random_grids(quantized, seed)
    assert_equal_to_reference(lower(odd), {"x": 100 * inputs(quantized.graph, 1, seed)["x"]})


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("case", make.OPERATORS)
def test_activations_of_other_widths(case: str, bits: int) -> None:
    """All grids but that of the last layer, whose int32 accumulator is returned."""
    quantized = quantized_case(make.OPERATORS[case])
    index = GraphIndex(quantized.graph.model)
    last = layer_grid(index, quantized.graph.activations, quantized.graph.layers[-1].inputs[0])
    grids = {
        name: dataclasses.replace(
            grid,
            bits=bits,
            zero_point=grid.zero_point * ((1 << bits) - 1) // 255,
            scale=float(np.float32(grid.scale * 255 / ((1 << bits) - 1))),
        )
        for name, grid in quantized.grids.items()
        if name != last
    }
    changed = dataclasses.replace(quantized, grids={**quantized.grids, **grids})
    assert_equal_to_reference(lower(changed), inputs(quantized.graph, 1))


def test_square_roots() -> None:
    """Newton's five steps, the float root and math.isqrt, around all powers of four, squares and the limits."""
    random = np.random.default_rng(0)
    roots = np.concatenate([1 << np.arange(31), random.integers(1, 1 << 31, 2000), [(1 << 31) - 1]]).astype(np.int64)
    squares = roots * roots
    x = np.concatenate([squares - 1, squares, squares + 1, random.integers(1, 1 << 62, 2000)])
    x = x[(x > 0) & (x < 1 << 62)].reshape(-1, 1)
    writer = Writer({}, {})
    result = emit_square_root(writer, "x", "r")
    graph = helper.make_graph(
        writer.nodes,
        "root",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [None, 1])],
        [helper.make_tensor_value_info(result, TensorProto.INT64, None)],
        writer.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = [math.isqrt(int(value)) for value in x.reshape(-1)]
    assert session.run(None, {"x": x})[0].reshape(-1).tolist() == expected
    assert square_root(x).reshape(-1).tolist() == expected


@pytest.mark.parametrize("name", make.VECTORS)
def test_stored_vectors_are_those_made_now(name: str) -> None:
    """Files that a device's kernels are tested with; `python -m tests.vectors.make` writes them anew."""
    stored, made = dict(np.load(make.FOLDER / f"{name}.npz")), make.vector(name)
    assert set(stored) == set(made)
    for key, value in made.items():
        np.testing.assert_array_equal(stored[key], value, err_msg=key)


@pytest.mark.parametrize("name", make.VECTORS)
def test_stored_vectors_hold_all_that_the_result_depends_on(name: str) -> None:
    stored = dict(np.load(make.FOLDER / f"{name}.npz"))
    operation, known = make.read(stored)
    np.testing.assert_array_equal(evaluate(operation, known).astype(np.int64), stored["output"])
