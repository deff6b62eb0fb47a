"""Every sensitivity against its formula, worked out by hand on networks small enough for that."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Layer, PreparedGraph, Samples, Scores
from ompq_deploy.capture import capture
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import SOFTENED, Reference
from ompq_deploy.graph.part import returning
from ompq_deploy.metrics import CONTESTANTS, REFINED, Evidence, MetricSettings, orm, round_weights, score
from ompq_deploy.metrics.granularity import groups
from ompq_deploy.metrics.hawq import trace
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.refined_rounding import refined_rounding
from ompq_deploy.runtime.runner import run_samples
from tests import models
from tests.quantized import inputs

BITS = (2, 4, 8)
NEEDS_TORCH = ("mpqco", "hawq")


def samples_of(graph: PreparedGraph, count: int = 16, labels: np.ndarray | None = None) -> Samples:
    return Samples(inputs=inputs(graph, count), labels=labels, source="test", sha256="")


def evidence_of(graph: PreparedGraph, samples: Samples, bits: tuple[int, ...] = BITS) -> Evidence:
    return Evidence(
        graph=graph, rounding=round_weights(graph, bits), samples=samples, capture=capture(graph, samples),
        refined=partial(refined_rounding, graph, bits=bits, threads=1), threads=1,
    )  # fmt: skip


def scores_of(graph: PreparedGraph, metric: str, samples: Samples | None = None, **settings: object) -> Scores:
    if metric in NEEDS_TORCH:
        pytest.importorskip("torch")
    return score(evidence_of(graph, samples or samples_of(graph)), MetricSettings(name=metric, **settings))  # type: ignore[arg-type]


@pytest.fixture
def residual(residual_model: Path) -> PreparedGraph:
    return prepare(residual_model)


def perceptron(softmax: bool = False) -> ModelProto:
    """relu(x W1) W2, 6 inputs, 5 hidden, 4 classes, and Softmax where asked for."""
    random = np.random.default_rng(4)
    weights = [random.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (5, 4))]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("MatMul", ["a", "w2"], ["z"], name="second"),
    ]
    nodes += [helper.make_node("Softmax", ["z"], ["p"], name="softmax", axis=1)] if softmax else []
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("p" if softmax else "z", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, ("w1", "w2"), strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(params=[False, True], ids=["logits", "probabilities"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> PreparedGraph:
    return prepare(models.save(perceptron(request.param), tmp_path / "perceptron.onnx"))


class Forward:
    """The perceptron in NumPy, float64."""

    def __init__(self, graph: PreparedGraph, x: np.ndarray) -> None:
        weights = graph.layer_weights()
        self.w1, self.w2 = weights["first"].astype(np.float64), weights["second"].astype(np.float64)
        self.x = x.astype(np.float64)
        self.active = self.x @ self.w1 > 0
        self.a = np.maximum(self.x @ self.w1, 0)
        z = self.a @ self.w2
        self.p = np.exp(z - z.max(axis=1, keepdims=True))
        self.p /= self.p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_mpqco_is_its_formula(small: PreparedGraph, labelled: bool) -> None:
    x = inputs(small, 12)["x"]
    net = Forward(small, x)
    labels = np.random.default_rng(0).integers(0, 4, 12) if labelled else net.p.argmax(axis=1)
    delta = net.p - np.eye(4)[labels]
    first = np.einsum("ni,nj->nij", net.x, (delta @ net.w2.T) * net.active)
    second = np.einsum("ni,nj->nij", net.a, delta)
    rounding = round_weights(small, BITS)
    expected = [
        [0.5 * np.mean(np.einsum("nij,ij->n", g, rounding.errors[name][column]) ** 2) for column in range(len(BITS))]
        for name, g in (("first", first), ("second", second))
    ]
    found = scores_of(small, "mpqco", samples_of(small, 12, labels if labelled else None))
    np.testing.assert_allclose(found.loss, expected, rtol=1e-3)


def test_labels_of_another_data_set_are_refused(small: PreparedGraph) -> None:
    with pytest.raises(BadInput, match="do not fit a model of 4 classes"):
        scores_of(small, "mpqco", samples_of(small, 3, np.array([0, 1, 4])))


def test_the_hutchinson_trace_is_the_trace_of_the_exact_hessian(small: PreparedGraph) -> None:
    """For logits z: H_z = diag(p) - p p^T; the net is linear in either weight while no ReLU switches."""
    pytest.importorskip("torch")
    from ompq_deploy import torch_graph
    from ompq_deploy.metrics.gradients import Problem, hessian_probes

    samples = samples_of(small, 6)
    net = Forward(small, samples.inputs["x"])
    curvature = np.einsum("nc,cd->ncd", net.p, np.eye(4)) - np.einsum("nc,nd->ncd", net.p, net.p)
    into_hidden = np.einsum("jc,ncd,jd->nj", net.w2, curvature, net.w2) * net.active
    first = np.mean((net.x**2).sum(axis=1) * into_hidden.sum(axis=1))
    second = np.mean((net.a**2).sum(axis=1) * np.trace(curvature, axis1=1, axis2=2))
    problem = Problem(
        network=torch_graph.load(small, "the test"),
        graph=small,
        heads=find_heads(small, samples),
        samples=samples,
        seed=0,
    )
    probes = hessian_probes(problem, 400)
    error = probes.std(axis=0, ddof=1) / np.sqrt(len(probes))
    np.testing.assert_array_less(np.abs(trace(probes) - [first, second]), 4 * error)
    assert (error < 0.1 * np.array([first, second])).all()


def test_a_trace_hidden_by_noise_counts_as_its_standard_error() -> None:
    probes = np.array([[-3.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-3.0, 2.0]])
    np.testing.assert_allclose(trace(probes), [np.sqrt(16 / 3) / 2, 2.0])


def test_kl_of_one_layer_is_the_divergence_of_the_whole_network_with_that_layer_rounded(
    residual: PreparedGraph,
) -> None:
    evidence = evidence_of(residual, samples_of(residual, 8))
    tensors = evidence.heads.tensors
    reference = Reference(heads=evidence.heads, outputs=run_samples(residual, {}, tensors, evidence.samples))
    expected = [
        [
            reference.divergence(run_samples(residual, {layer.name: weight}, tensors, evidence.samples), SOFTENED)
            for weight in (evidence.rounding.rounded(layer.name, width) for width in BITS)
        ]
        for layer in residual.layers
    ]
    np.testing.assert_allclose(score(evidence, MetricSettings(name="kl")).loss, expected, rtol=1e-3, atol=1e-7)


def test_refined_weights_are_scored_on_samples_that_they_have_not_seen(residual: PreparedGraph) -> None:
    evidence = evidence_of(residual, samples_of(residual, 12))
    seen: list[Samples] = []
    found: list[Rounding] = []

    def refined(samples: Samples, **_: object) -> Rounding:
        seen.append(samples)
        found.append(refined_rounding(residual, samples, BITS, threads=1))
        return found[-1]

    scores = score(replace(evidence, refined=refined), MetricSettings(name=REFINED))
    everything = evidence.samples.inputs["x"]
    unseen = everything[[not (row == seen[0].inputs["x"]).all(axis=(1, 2, 3)).any() for row in everything]]
    assert (len(seen[0]), len(unseen)) == (6, 6)
    others = replace(evidence.samples, inputs={"x": unseen}, labels=None)
    expected = score(replace(evidence, rounding=found[0], samples=others), MetricSettings(name="kl"))
    np.testing.assert_allclose(scores.loss, expected.loss, rtol=1e-6)
    assert scores.metric == REFINED


def test_refined_weights_leave_less_of_a_layers_output_than_nearest_ones(residual: PreparedGraph) -> None:
    samples = samples_of(residual, 48)
    refined, nearest = refined_rounding(residual, samples, BITS), round_weights(residual, BITS)

    def error(layer: Layer, rounding: Rounding, width: int) -> float:
        output = next(node for node in residual.model.graph.node if node.name == layer.nodes[0]).output[0]
        graph = replace(residual, model=returning(residual.model, [output]))
        (exact,) = run_samples(graph, {}, [output], samples)
        (moved,) = run_samples(graph, {layer.name: rounding.rounded(layer.name, width)}, [output], samples)
        return float(np.square(moved - exact).sum())

    for layer in residual.layers:
        for width in BITS:
            assert error(layer, refined, width) < error(layer, nearest, width), (layer.name, width)


def test_without_refined_weights_the_metric_says_so(residual: PreparedGraph) -> None:
    evidence = replace(evidence_of(residual, samples_of(residual, 8)), refined=None)
    with pytest.raises(BadInput, match="no refined weights"):
        score(evidence, MetricSettings(name=REFINED))


@pytest.mark.parametrize("metric", ["kl", "mpqco", "hawq", "mse", "orm"])
def test_a_layer_whose_weights_lie_on_the_grid_costs_nothing(metric: str, tmp_path: Path) -> None:
    model = models.residual_network()
    weight = next(t for t in model.graph.initializer if t.name == "main2_weight")
    signs = np.random.default_rng(0).integers(-1, 2, weight.dims).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(signs * 0.25, weight.name))
    graph = prepare(models.save(model, tmp_path / "model.onnx"))
    row = [layer.name for layer in graph.layers].index("main2")
    loss = scores_of(graph, metric).loss
    assert loss[row].max() < 1e-10
    assert np.delete(loss[:, 0], row).min() > 1e-9


@pytest.mark.parametrize("metric", CONTESTANTS)
def test_every_metric_gives_finite_losses_that_do_not_grow_with_the_bits(metric: str, residual: PreparedGraph) -> None:
    found = scores_of(residual, metric)
    assert found.loss.shape == (len(residual.layers), len(BITS))
    assert np.isfinite(found.loss).all()
    assert (found.loss >= 0).all()
    assert (found.loss[:, 0] > found.loss[:, -1]).all()
    assert found.importance.shape == (len(residual.layers),)
    assert found.note == ""


@pytest.mark.parametrize("metric", ["mpqco", "hawq", "kl"])
def test_a_network_that_is_no_classifier_falls_back_to_output_errors_and_says_so(metric: str, tmp_path: Path) -> None:
    g = models.GraphBuilder(1)
    y = g.conv(g.node("Relu", [g.conv("x", "down", 3, 8)], "relu"), "up", 8, 3)
    graph = prepare(models.save(g.model(["N", 3, 16, 16], y, ["N", 3, 16, 16]), tmp_path / "image.onnx"))
    found = scores_of(graph, metric)
    assert "no classifier" in found.note
    assert (found.loss[:, 0] > found.loss[:, -1]).all()


def test_mpqco_of_an_image_is_half_its_expected_output_error(tmp_path: Path) -> None:
    """A single linear layer: E_r <r, J dw>^2 = ||dy||^2 exactly, up to the noise of the random signs."""
    g = models.GraphBuilder(1)
    model = g.model(["N", 3, 8, 8], g.conv("x", "only", 3, 4), ["N", 4, 8, 8])
    graph = prepare(models.save(model, tmp_path / "image.onnx"))
    samples = samples_of(graph, 400)
    heads = find_heads(graph, samples)
    reference = Reference(heads=heads, outputs=run_samples(graph, {}, heads.tensors, samples))
    rounded = run_samples(graph, {"only": round_weights(graph, BITS).rounded("only", 2)}, heads.tensors, samples)
    expected = 0.5 * reference.divergence(rounded)
    assert scores_of(graph, "mpqco", samples).loss[0, 0] == pytest.approx(expected, rel=0.25)


def test_a_softmax_at_the_end_is_seen_through(small: PreparedGraph) -> None:
    heads = find_heads(small, samples_of(small, 1))
    assert heads.tensors == ("z",)
    assert heads.classifier


def test_blocks_stages_and_the_net_are_read_off_the_graph(residual: PreparedGraph) -> None:
    assert [layer.name for layer in residual.layers] == [
        "stem", "depthwise", "project", "main1", "main2", "downsample", "fc",
    ]  # fmt: skip
    assert groups(residual, "layer") == [0, 1, 2, 3, 4, 5, 6]
    assert groups(residual, "block") == [0, 1, 1, 2, 2, 2, 3]
    assert groups(residual, "stage") == [0, 0, 0, 1, 1, 1, 2]
    assert groups(residual, "net") == [0] * 7


@pytest.mark.parametrize("granularity", ["block", "stage", "net"])
def test_a_group_shares_one_importance(granularity: str, residual: PreparedGraph) -> None:
    importance = scores_of(residual, "orm", granularity=granularity).importance
    number = np.array(groups(residual, granularity))
    for group in np.unique(number):
        assert len(np.unique(importance[number == group])) == 1


@pytest.mark.parametrize("function", orm.FUNCTIONS)
def test_every_decreasing_function_is_positive_and_decreases(function: str) -> None:
    random = np.random.default_rng(2)
    matrix = orm.orm_matrix([x @ x.T for x in random.standard_normal((6, 10, 30)) + random.standard_normal((10, 30))])
    theta = orm.importance(matrix, 1.0, function)
    assert (theta > 0).all()
    assert (np.diff(theta[np.argsort(orm.gamma(matrix))]) <= 0).all()
