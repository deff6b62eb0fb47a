"""Convolutions that add a tensor under the arithmetic `tensorrt`: QGemm, the reference and exact arithmetic agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid, QuantizedGraph, Samples
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import integer_model, unfold
from ompq_deploy.export.integer.emit.qgemm import emit_qgemm
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.in_float import MOST_OFF
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import TENSORRT, IntegerConv
from ompq_deploy.export.integer.rules import FloatRescale, Requantize, Skip, Window
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.simulator import requantize, run_program
from ompq_deploy.simulator.linear import add_bias, convolve
from ompq_deploy.verify import verify
from tests.exact import float_rescale, in_steps, whole
from tests.integer import assert_equal_to_reference, steps_from_qdq
from tests.integer import run as run_model
from tests.quantized import inputs, quantize_graph, with_zero_points

X, ADDED, OUT = Grid(scale=1.0, zero_point=77), Grid(scale=1.0, zero_point=200), Grid(scale=1.0, zero_point=30)
ZERO_POINTS = [100, 30, 128, 60, 90]


def draw(random: np.random.Generator, rank: int, groups: int, same_shift: bool) -> tuple[IntegerConv, list[int]]:
    """A convolution that adds `s`, and sizes of its input."""
    kernel, strides, dilations = ([int(n) for n in random.integers(1, 4, rank)] for _ in range(3))
    pads = [int(random.integers(k)) for k in kernel * 2]
    sizes = [int((k - 1) * d + random.integers(1, 6)) for k, d in zip(kernel, dilations, strict=True)]
    outputs, channels = (int(n) for n in random.integers(1, 5, 2))
    outputs *= groups
    shift = np.full(outputs, random.integers(0, 12)) if same_shift else random.integers(0, 31, outputs)
    rule = FloatRescale(
        scale=np.exp2(random.uniform(-16, 0, outputs)).astype(np.float32),
        low=-20,
        high=OUT.high,
        skip=Skip(tensor="s", zero_point=200, multiplier=random.integers(0, 2**23 + 1, outputs), shift=shift),
    )
    conv = IntegerConv(
        name="c",
        input="x",
        output="y",
        weights=random.integers(-128, 128, (outputs, channels, *kernel)).astype(np.int8),
        bias=random.integers(-(2**24), 2**24, outputs),
        window=Window(kernel=tuple(kernel), strides=tuple(strides), dilations=tuple(dilations), pads=tuple(pads)),
        groups=groups,
        requantize=rule,
    )
    return conv, [channels * groups, *sizes]


def emit_one(conv: IntegerConv, shapes: dict[str, Sequence[int | None]]) -> onnx.ModelProto:
    assert isinstance(conv.requantize, FloatRescale)
    writer = Writer({"x": X, "s": ADDED, "y": OUT}, shapes)
    emit_qgemm(writer, conv, conv.requantize)
    rank = conv.weights.ndim
    graph = helper.make_graph(
        writer.nodes,
        "one",
        [helper.make_tensor_value_info(f"{n}_quantized", TensorProto.UINT8, [None] * rank) for n in ("x", "s")],
        [helper.make_tensor_value_info("y_quantized", TensorProto.UINT8, None)],
        writer.initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def unfold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions too, and those whose columns are many."""
    monkeypatch.setattr(unfold, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(unfold, "MOST_BYTES", 1 << 20)


@pytest.mark.parametrize("same_shift", [True, False])
@pytest.mark.parametrize("form", ["one product", "groups", "sizes not known", "broadcast"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.usefixtures("unfold_all")
def test_any_window_gives_the_integers_of_the_reference(rank: int, form: str, same_shift: bool) -> None:
    random = np.random.default_rng(rank)
    for _ in range(8):
        conv, (channels, *sizes) = draw(random, rank, 2 if form == "groups" else 1, same_shift)
        assert isinstance(conv.requantize, FloatRescale)
        assert conv.requantize.skip is not None
        x = random.integers(0, 256, (2, channels, *sizes)).astype(np.uint8)
        total = add_bias(conv, convolve(conv, x.astype(np.int32) - X.zero_point))
        shape = (1, *total.shape[1:-1], 1) if form == "broadcast" else total.shape
        added = random.integers(0, 256, shape).astype(np.uint8)
        unknown = [None] * rank
        shapes: dict[str, Sequence[int | None]] = {
            "x": (None, channels, *(unknown if form == "sizes not known" else sizes)),
            "s": (None if shape == total.shape else 1, *shape[1:]),
            "y": (None, *(total.shape[1:2] if form == "sizes not known" else total.shape[1:])),
        }
        if form == "sizes not known":
            shapes["y"] = shapes["s"] = (None, len(conv.weights), *unknown)
        model = emit_one(conv, shapes)
        assert (Counter(node.op_type for node in model.graph.node)["ConvInteger"] == 0) == (form == "one product")
        found = run_model(model, {"x_quantized": x, "s_quantized": added})["y_quantized"].astype(int) - OUT.zero_point
        read = {"s": added.astype(np.int32) - ADDED.zero_point}
        np.testing.assert_array_equal(found, requantize(total, conv.requantize, read))
        exact = whole(total) + in_steps(conv.requantize.skip, {"s": whole(read["s"])})
        np.testing.assert_array_equal(found, float_rescale(exact, conv.requantize).astype(int))


def adding(program_of: QuantizedGraph) -> dict[str, IntegerConv]:
    """The convolutions that add a tensor, by name."""
    operations = lower(program_of, TENSORRT).operations
    return {
        op.name: op
        for op in operations
        if isinstance(op, IntegerConv) and op.requantize is not None and op.requantize.skip
    }


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("zero_points", [None, ZERO_POINTS])
def test_the_sum_is_the_real_one(residual_model: Path, bits: int, zero_points: list[int] | None) -> None:
    """Every integer is the nearest to the real sum of the same integers, but for `MOST_OFF` of a step."""
    quantized = quantize_graph(residual_model, bits)
    if zero_points:
        quantized = with_zero_points(quantized, zero_points)
    program, feeds = lower(quantized, TENSORRT), inputs(quantized.graph)
    assert_equal_to_reference(program, feeds)
    integers = run_program(program, feeds).integers
    dyadic = {op.name: op for op in lower(quantized).operations if isinstance(op, IntegerConv)}
    in_float = {name: conv for name, conv in adding(quantized).items() if isinstance(conv.requantize, FloatRescale)}
    assert in_float
    for name, conv in in_float.items():
        rule, plain = conv.requantize, dyadic[name]
        assert isinstance(rule, FloatRescale)
        assert rule.skip is not None
        layer = next(layer for layer in quantized.layers if name in layer.layer.nodes)
        grids = [np.float64(program.grids[tensor].scale) for tensor in (conv.input, rule.skip.tensor, conv.output)]
        total = add_bias(plain, convolve(plain, integers[conv.input])) * layer.scale.reshape(-1, 1, 1)
        real = (grids[0] * total + grids[1] * integers[rule.skip.tensor]) / grids[2]
        inside = (real > rule.low) & (real < rule.high)
        assert np.count_nonzero(inside) > 100
        assert np.abs(integers[conv.output] - real)[inside].max() <= 0.5 + MOST_OFF + 1e-4


def test_weights_of_few_bits_make_finer_steps(residual_model: Path) -> None:
    """Codes from -8 to 7 times 16, in steps a sixteenth as large."""
    quantized = quantize_graph(residual_model, 4)
    layers = {layer.layer.name: layer for layer in quantized.layers}
    for name, conv in adding(quantized).items():
        multiples = conv.weights.astype(int).reshape(len(conv.weights), -1) // 16
        np.testing.assert_array_equal(multiples, layers[name].codes.reshape(multiples.shape))


def scaled(quantized: QuantizedGraph, name: str, factors: np.ndarray) -> QuantizedGraph:
    """The scales of one layer's channels times `factors`."""
    layers = [
        replace(layer, scale=(layer.scale * factors).astype(np.float32)) if layer.layer.name == name else layer
        for layer in quantized.layers
    ]
    return replace(quantized, layers=tuple(layers))


@pytest.mark.parametrize(
    ("factor", "in_float", "one_shift"),
    [(1.0, True, True), (1e-3, True, False), (1e-6, False, False), (1e3, False, False)],
    ids=["as it is", "each its own shift", "steps too fine for int32", "steps too coarse"],
)
def test_one_channel_with_steps_unlike_the_others(
    residual_model: Path, factor: float, in_float: bool, one_shift: bool
) -> None:
    quantized = quantize_graph(residual_model)
    factors = np.ones(len(adding(quantized)["project"].weights))
    factors[1] = factor
    quantized = scaled(quantized, "project", factors)
    rule = adding(quantized)["project"].requantize
    assert isinstance(rule, FloatRescale if in_float else Requantize)
    if isinstance(rule, FloatRescale) and rule.skip is not None:
        assert (len(set(rule.skip.shift.tolist())) == 1) == one_shift
    assert_equal_to_reference(lower(quantized, TENSORRT), inputs(quantized.graph))


@pytest.mark.usefixtures("unfold_all")
def test_a_batch_of_none(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    assert any(node.op_type == "QGemm" for node in model.graph.node)
    assert run_model(model, {"x": np.zeros((0, 3, 16, 16), np.float32)})["y"].shape == (0, 10)


def test_a_changed_multiplier_is_found(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    program = lower(quantized, TENSORRT)
    model = integer_model(program)
    name = f"{adding(quantized)['downsample'].output}_added_multiplier"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    changed = (numpy_helper.to_array(tensor) * 1.01).astype(np.int32)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    samples = Samples(inputs=inputs(quantized.graph), labels=None, source="drawn", sha256="")
    verdict = verify(program, model, qdq_model(quantized), samples)
    assert verdict.first_departure is not None
    assert verdict.first_departure.layer == "downsample"


def test_the_check_trusts_no_declared_type(residual_model: Path) -> None:
    """QGemm without a zero-point of its output returns floats."""
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    assert float_tensors_inside(model) == ()
    product = next(node for node in model.graph.node if node.op_type == "QGemm")
    del product.input[7:]
    assert product.output[0] in float_tensors_inside(model)


@pytest.mark.parametrize("name", ["cifar10/resnet20.onnx", "other/stm_mobilenet_v2_128_0.5.onnx"])
@pytest.mark.parametrize("bits", [8, 4])
def test_real_networks(name: str, bits: int, shared: Callable[[str], Path]) -> None:
    quantized = quantize_graph(shared(f"models/{name}"), bits)
    program, feeds = lower(quantized, TENSORRT), inputs(quantized.graph, 1)
    assert any(isinstance(conv.requantize, FloatRescale) for conv in adding(quantized).values())
    assert_equal_to_reference(program, feeds, exactly=False)
    assert steps_from_qdq(quantized, program, feeds) <= 1
