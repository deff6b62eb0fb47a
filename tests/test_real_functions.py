"""Functions that become tables are those of the ONNX standard."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy.graph.real_functions import ELEMENTWISE, PLAIN, WITH_SETTINGS, apply

ort.set_default_logger_severity(3)
BINARY = {"Add", "Div", "Max", "Min", "Mul", "Pow", "PRelu", "Sub"}
SETTINGS = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 1.5},
    "Gelu": {"approximate": "tanh"},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.2},
    "Selu": {"alpha": 1.2, "gamma": 0.8},
    "Shrink": {"lambd": 0.7, "bias": 0.2},
    "ThresholdedRelu": {"alpha": 0.5},
}
NEWER_THAN_THE_RUNTIME = {"Swish"}


def in_onnxruntime(op: str, operands: list[np.ndarray], settings: dict[str, object]) -> np.ndarray:
    names = ["x", "y", "z"][: len(operands)]
    values = dict(zip(names, operands, strict=True))
    graph = helper.make_graph(
        [helper.make_node(op, names, ["out"], **settings)],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in values.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, values)[0]


@pytest.mark.parametrize("settings", ["default", "given"])
@pytest.mark.parametrize("op", sorted(ELEMENTWISE - NEWER_THAN_THE_RUNTIME))
def test_functions_equal_onnxruntimes(op: str, settings: str) -> None:
    chosen = SETTINGS.get(op, {}) if settings == "given" else {}
    x = np.concatenate([np.linspace(-6, 6, 241), [-80, 80, 0.5, 1.5, -0.5]]).astype(np.float32)
    if op in ("Log", "Sqrt", "Pow", "Reciprocal"):
        x = np.abs(x) + np.float32(0.01)
    if op == "Acosh":
        x = np.abs(x) + np.float32(1.01)
    if op in ("Acos", "Asin", "Atanh"):
        x = x / np.float32(81)
    operands = [x, np.array(1.7, np.float32)] if op in BINARY else [x]
    if op == "PRelu":
        operands[1] = operands[1].reshape(1)
    if op == "Clip":
        operands = [x, np.array(-1.5, np.float32), np.array(2.5, np.float32)]
    ours = apply(op, [operand.astype(np.float64) for operand in operands], chosen)
    np.testing.assert_allclose(ours, in_onnxruntime(op, operands, chosen), rtol=2e-5, atol=2e-6)


def test_swish_is_silu_at_a_slope() -> None:
    x = np.linspace(-6, 6, 25)
    np.testing.assert_allclose(apply("Swish", [x], {"alpha": 1.5}), x / (1 + np.exp(-1.5 * x)))


def test_a_bound_of_clip_may_be_left_out() -> None:
    assert apply("Clip", [np.array([-5.0, 5.0]), None, 1.0], {}).tolist() == [-5.0, 1.0]
    assert apply("Clip", [np.array([-5.0, 5.0]), -1.0], {}).tolist() == [-1.0, 5.0]


@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize("count", [1, 3])
def test_extremes_take_any_number_of_operands(count: int, op: str) -> None:
    operands = list(np.random.default_rng(0).standard_normal((count, 7)).astype(np.float32))
    np.testing.assert_array_equal(apply(op, operands, {}), in_onnxruntime(op, operands, {}))


def test_no_operator_is_listed_twice() -> None:
    assert set(PLAIN).isdisjoint(WITH_SETTINGS)
