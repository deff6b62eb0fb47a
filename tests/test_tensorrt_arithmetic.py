"""The arithmetic `tensorrt`: onnxruntime's kernels, the reference and exact arithmetic agree bit for bit.

What QGemm computes has tests of its own, in test_qgemm.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ompq_deploy import pipeline
from ompq_deploy.artifacts import Grid
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.emit.qlinear import emit_qlinear_conv
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC, TENSORRT, IntegerConv, IntegerMatMul
from ompq_deploy.export.integer.rules import FloatRescale, Window
from ompq_deploy.metrics import MetricSettings
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.simulator import requantize, run_program
from ompq_deploy.simulator.linear import add_bias, convolve
from tests.conftest import Run
from tests.exact import float_rescale, whole
from tests.integer import assert_equal_to_reference, quantized_case, steps_from_qdq
from tests.integer import run as run_model
from tests.quantized import inputs, quantize_graph, with_zero_points
from tests.test_integer import CASES
from tests.test_integer_operators import CASES as OPERATOR_CASES


@pytest.mark.parametrize("case", CASES | OPERATOR_CASES)
def test_every_operator_equals_the_reference_on_any_grid(case: str) -> None:
    quantized = with_zero_points(quantized_case((CASES | OPERATOR_CASES)[case]), [200, 3, 128, 255, 77])
    assert_equal_to_reference(lower(quantized, TENSORRT), inputs(quantized.graph))


@pytest.mark.parametrize("case", ["conv", "conv_depthwise", "conv_strides", "max_pool", "clip"])
def test_convolutions_equal_those_of_the_qdq_model(case: str) -> None:
    """onnxruntime runs both with one kernel and the same scales."""
    quantized = quantized_case(CASES[case])
    assert steps_from_qdq(quantized, lower(quantized, TENSORRT), inputs(quantized.graph)) == 0


def test_convolutions_are_rescaled_in_float(residual_model: Path) -> None:
    program = lower(quantize_graph(residual_model), TENSORRT)
    rules = {op.name: op.requantize for op in program.operations if isinstance(op, IntegerConv | IntegerMatMul)}
    in_float = {name for name, rule in rules.items() if isinstance(rule, FloatRescale)}
    assert in_float == {"stem", "depthwise", "main1", "main2", "project", "downsample"}
    assert {name for name in in_float if rules[name].skip} == {"project", "downsample"}
    assert rules["fc"] is None


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_large_accumulators_and_ties(zero_point: int) -> None:
    """Sums beyond 2^24, which float32 rounds, and scales that make ties of many of them."""
    random = np.random.default_rng(zero_point)
    channels, positions = 64, 256
    scale = np.exp2(-random.integers(0, 28, channels)).astype(np.float32) * random.choice([1, 1.5, 0.7], channels)
    limit = 2**31 - 2**25
    grid = Grid(scale=1.0, zero_point=zero_point)
    rule = FloatRescale(scale=scale.astype(np.float32).reshape(-1, 1, 1), low=grid.low, high=grid.high)
    conv = IntegerConv(
        name="c",
        input="x",
        output="y",
        weights=random.integers(-127, 128, (channels, 1, 1, 1)).astype(np.int8),
        bias=random.choice([0, 1, 2**24 + 1, -(2**24) - 3, limit, -limit, 12345], channels).astype(np.int64),
        window=Window(kernel=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0)),
        groups=1,
        requantize=rule,
    )
    x = np.arange(positions, dtype=np.uint8).reshape(1, 1, 16, 16)
    writer = Writer({"x": grid, "y": grid}, {})
    emit_qlinear_conv(writer, conv, rule)
    graph = helper.make_graph(
        writer.nodes,
        "one",
        [helper.make_tensor_value_info("x_quantized", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y_quantized", TensorProto.UINT8, None)],
        writer.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = run_model(model, {"x_quantized": x})["y_quantized"].astype(int) - zero_point
    total = add_bias(conv, convolve(conv, x.astype(np.int32) - zero_point))
    assert (np.abs(total) > 2**24).any()
    np.testing.assert_array_equal(found, requantize(total, rule, {}))
    np.testing.assert_array_equal(found, float_rescale(whole(total), rule).astype(int))


def test_ties_go_to_the_even_neighbour() -> None:
    rule = FloatRescale(scale=np.array([0.5], np.float32), low=-128, high=127)
    totals = np.array([-5, -3, -1, 1, 3, 5, 300]).reshape(1, 1, -1)
    assert requantize(totals, rule, {}).reshape(-1).tolist() == [-2, -2, 0, 0, 2, 2, 127]


def test_fused_clamps_inside_a_grid(residual_model: Path) -> None:
    quantized = with_zero_points(quantize_graph(residual_model), [200, 3, 128, 255, 77])
    program = lower(quantized, TENSORRT)
    nodes = integer_model(program).graph.node
    saturated = {node.output[0] for node in nodes if node.op_type == "QLinearConv"}
    assert any(node.op_type == "Clip" and node.input[0] in saturated for node in nodes)
    assert_equal_to_reference(program, {"x": 10 * inputs(quantized.graph)["x"]})


def test_both_arithmetics_round_the_same_numbers(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    feeds = inputs(quantized.graph)
    dyadic = run_program(lower(quantized, DYADIC), feeds).integers
    same = run_program(lower(quantized, TENSORRT), feeds, given=dyadic).integers
    assert max(np.abs(same[name] - dyadic[name]).max() for name in dyadic) <= 1


def test_the_check_allows_constant_scales_of_the_convolution_alone(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    assert float_tensors_inside(model) == ()
    conv = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    ratio = conv.input[4]
    conv.input[4] = "computed_ratio"
    model.graph.node.insert(0, helper.make_node("Abs", [ratio], ["computed_ratio"]))
    assert float_tensors_inside(model) == (ratio, "computed_ratio")


def test_another_arithmetic_is_refused(residual_model: Path) -> None:
    with pytest.raises(BadInput, match="'half'"):
        lower(quantize_graph(residual_model), "half")


@pytest.mark.parametrize("name", ["cifar10/resnet20.onnx", "other/stm_mobilenet_v2_128_0.5.onnx"])
def test_real_networks(name: str, shared: Callable[[str], Path]) -> None:
    quantized = quantize_graph(shared(f"models/{name}"))
    program, feeds = lower(quantized, TENSORRT), inputs(quantized.graph, 1)
    assert_equal_to_reference(program, feeds, exactly=False)
    assert steps_from_qdq(quantized, program, feeds) <= 1


@pytest.fixture
def finished(residual_model: Path, tmp_path: Path) -> Path:
    """The folder of a run under this arithmetic."""
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    settings = PlanSettings(
        size="16KB",
        calib=tmp_path / "data.npz",
        metric=MetricSettings(name="mse"),
        quantize=QuantizeSettings(effort="quick"),
        threads=1,
    )
    wanted = DeploySettings(plan=settings, out=tmp_path / "out", targets=("onnx", "integer"), arithmetic=TENSORRT)
    assert not pipeline.deploy(residual_model, wanted).failures
    return tmp_path / "out"


def test_a_run_records_its_arithmetic_and_verify_follows_it(finished: Path, run: Run) -> None:
    def operators() -> set[str]:
        return {node.op_type for node in onnx.load(finished / "model.int.onnx").graph.node}

    assert json.loads((finished / "plan.json").read_text())["arithmetic"] == TENSORRT
    assert "QLinearConv" in operators()
    assert run("verify", finished)[0] == 0
    assert run("quantize", finished / "plan.json")[0] == 0
    assert json.loads((finished / "plan.json").read_text())["arithmetic"] == DYADIC
    assert "QLinearConv" not in operators()
    assert run("verify", finished)[0] == 0
