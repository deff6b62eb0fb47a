"""Accuracy counts what it should for every kind of model, and outputs compare as distributions do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.calib import input_specs, load_labelled, load_samples, make_preprocess
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.accuracy import are_probabilities, compare, compare_outputs, evaluate, label_ranks, predict
from tests import models


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Labelled rows of `x`, float32 (N, classes)."""

    x: np.ndarray
    labels: np.ndarray
    classes: int | None = None
    source: str = "rows of a test"
    name: str = "x"

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.x), size):
            yield {self.name: self.x[start : start + size]}


def rows(count: int = 50, classes: int = 10, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, classes)).astype(np.float32)
    return Rows(x=x, labels=random.integers(0, classes, count))


def one_node(op: str = "Identity", batch: int | str = "N", classes: int = 10, **attributes: Any) -> onnx.ModelProto:
    """y = op(x), x float32 (batch, classes)."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "test",
        [value("x", TensorProto.FLOAT, [batch, classes])],
        [value("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def integer_model(classes: int = 10) -> onnx.ModelProto:
    """x rounded to int8 steps of 1/16, and matched against 2 I in integers; the output is int32."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("MatMulInteger", ["q", "weight"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", classes])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["N", classes])],
        [
            numpy_helper.from_array(np.array(1 / 16, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
            numpy_helper.from_array(2 * np.eye(classes, dtype=np.int8), "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


# --- accuracy


def test_top_1_and_top_5_agree_with_sorting() -> None:
    data = rows(count=200)
    result = evaluate(one_node(), data)
    order = np.argsort(-data.x, axis=1)
    assert result.n == 200
    assert result.top1 == pytest.approx(100 * np.mean(order[:, 0] == data.labels))
    assert result.top5 == pytest.approx(100 * np.mean((order[:, :5] == data.labels[:, None]).any(axis=1)))
    np.testing.assert_array_equal(result.logits, data.x)


def test_of_equal_outputs_the_lower_class_comes_first() -> None:
    logits = np.zeros((10, 10), np.float32)
    assert label_ranks(logits, np.arange(10)).tolist() == list(range(10))
    result = evaluate(one_node(), Rows(x=logits, labels=np.arange(10)))
    assert (result.top1, result.top5) == (10.0, 50.0)


def test_fewer_than_five_classes() -> None:
    data = rows(classes=3)
    assert evaluate(one_node(classes=3), data).top5 == 100.0


@pytest.mark.parametrize("fixed", [1, 4, 7, 64])
def test_fixed_and_open_batch_sizes_give_the_same(fixed: int) -> None:
    data = rows()
    expected = predict(one_node(), data)
    np.testing.assert_array_equal(predict(one_node(batch=fixed), data), expected)
    np.testing.assert_array_equal(predict(one_node(), data, batch=fixed, threads=1), expected)


def test_integer_outputs_count_too() -> None:
    data = rows()
    result = evaluate(integer_model(), data)
    np.testing.assert_array_equal(result.logits, 2 * np.round(data.x * 16).clip(-128, 127))
    assert result.logits.dtype == np.float32


def test_the_first_of_several_outputs_counts() -> None:
    model = one_node()
    model.graph.node.append(helper.make_node("Neg", ["x"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    data = rows()
    np.testing.assert_array_equal(predict(model, data), data.x)


def test_a_file_gives_what_the_model_in_memory_gives(residual_model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(9))
    model = onnx.load(residual_model)
    data = load_labelled(tmp_path / "data.npz", input_specs(model))
    a, b = evaluate(residual_model, data, batch=2), evaluate(model, data, batch=9)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    samples = load_samples(tmp_path / "data.npz", input_specs(model))
    np.testing.assert_allclose(predict(model, samples), b.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "preset", "top1"), [("resnet20", "torchvision", 91.75), ("mlperf_tiny_resnet8", "raw", 90.0)]
)
def test_real_networks_on_the_demo_images(shared: Callable[[str], Path], name: str, preset: str, top1: float) -> None:
    path = shared(f"models/cifar10/{name}.onnx")
    demo = Path(__file__).resolve().parents[1] / "examples" / "demo" / "eval.npz"
    data = load_labelled(demo, input_specs(onnx.load(path)), preprocess=make_preprocess(preset))
    assert evaluate(path, data).top1 == pytest.approx(top1, abs=0.5)


# --- errors


@pytest.mark.parametrize("labels", [[0, 10], [-1, 3]])
def test_labels_beyond_the_classes_are_refused(labels: list[int]) -> None:
    data = Rows(x=rows(count=2).x, labels=np.array(labels))
    with pytest.raises(BadInput, match="10 classes") as caught:
        evaluate(one_node(), data)
    assert caught.value.where == data.source


def test_sorted_folders_must_be_as_many_as_the_classes() -> None:
    x, labels = rows(count=2).x, np.array([0, 1])
    assert evaluate(one_node(), Rows(x=x, labels=labels, classes=10)).n == 2
    with pytest.raises(BadInput, match="2 class folders"):
        evaluate(one_node(), Rows(x=x, labels=labels, classes=2))


def test_models_that_are_no_classifiers_are_refused() -> None:
    with pytest.raises(BadInput, match="no classifier"):
        evaluate(one_node("Flatten", axis=0), rows())
    with pytest.raises(BadInput, match="no classifier"):
        evaluate(one_node("ReduceMax", keepdims=0), rows())


def test_data_for_another_model_are_refused() -> None:
    with pytest.raises(BadInput, match="the model reads x, the data feed image"):
        evaluate(one_node(), Rows(x=rows().x, labels=rows().labels, name="image"))
    with pytest.raises(BadInput, match="cannot run the model on these data"):
        evaluate(one_node(classes=7), rows())


def test_an_output_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        evaluate(one_node("Log"), rows())


def test_unusable_model_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model file"):
        evaluate(tmp_path / "absent.onnx", rows())
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(BadInput, match="cannot load the model") as caught:
        evaluate(tmp_path / "bad.onnx", rows())
    assert caught.value.where == str(tmp_path / "bad.onnx")


# --- comparison


def test_a_model_agrees_with_itself() -> None:
    result = evaluate(one_node(), rows())
    comparison = compare(result, result)
    assert (comparison.n, comparison.agreement, comparison.kl) == (50, 100.0, 0.0)


def test_kl_is_that_of_the_definition() -> None:
    a, b = rows(seed=1).x, rows(seed=2).x
    p, q = softmax(a).astype(np.float64), softmax(b).astype(np.float64)
    comparison = compare_outputs(a, b)
    assert comparison.kl == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-5)
    assert comparison.agreement == pytest.approx(100 * np.mean(a.argmax(1) == b.argmax(1)))


def test_kl_is_the_same_for_logits_and_for_their_softmax() -> None:
    data, other = rows(seed=1), rows(seed=2)
    kinds = [one_node(), one_node("Softmax", axis=1)]
    values = [compare(evaluate(first, data), evaluate(second, other)).kl for first in kinds for second in kinds]
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


def test_adding_a_constant_to_logits_changes_nothing() -> None:
    a, b = rows(seed=1).x, rows(seed=2).x
    assert compare_outputs(a + 1000, b - 1000).kl == pytest.approx(compare_outputs(a, b).kl, rel=1e-3)


def test_quantized_probabilities_need_not_sum_to_one() -> None:
    p = softmax(4 * rows(classes=10).x)
    q = (np.floor(p * 255) / 256).astype(np.float32)
    assert are_probabilities(p)
    assert not are_probabilities(q)
    assert compare_outputs(p, q).kl < 0.05
    assert np.isfinite(compare_outputs(p, np.eye(10, dtype=np.float32)[p.argmax(axis=1)]).kl)


def test_kl_grows_with_the_distance() -> None:
    a, noise = rows(seed=1).x, rows(seed=2).x
    values = [compare_outputs(a, a + np.float32(scale) * noise).kl for scale in (0.01, 0.1, 1.0)]
    assert 0 < values[0] < values[1] < values[2]


def test_outputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="cannot be compared"):
        compare_outputs(rows().x, rows(classes=9).x)


def test_residual_network_runs_with_a_fixed_batch() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
    data = Rows(x=x, labels=np.zeros(5, np.int64))
    free, fixed = (predict(models.residual_network(batch), data) for batch in ("N", 2))
    np.testing.assert_allclose(free, fixed, atol=1e-5)
