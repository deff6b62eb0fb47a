"""A network's heads: found from its graph, compared by what depends on the input, kept wide where they need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import BitPlan, Budget, PreparedGraph, Samples, SizeTable
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate import head_search
from ompq_deploy.evaluate.head_search import find_heads, output_heads
from ompq_deploy.evaluate.heads import Head, Heads, Reference, log_softmax, variation
from ompq_deploy.metrics import Evidence, MetricSettings, round_weights, score
from ompq_deploy.numerics import packed_bytes
from ompq_deploy.planning.contest import hold_contest, split
from ompq_deploy.prepare import prepare
from ompq_deploy.runtime.runner import run_samples
from tests import models
from tests.quantized import inputs

BITS = (2, 3, 4, 5, 6, 8)
LARGE, PRECISE = 24, 2
"""Channels of the two heads."""


def detector(batch: int | str = "N") -> onnx.ModelProto:
    """Two heads joined by Concat, Reshape and Transpose: one of large outputs, and a small one that is 1 +- 0.02."""
    g = models.GraphBuilder(3)
    trunk = g.node("Relu", [g.conv("x", "trunk", 3, 8)], "trunk_relu")
    large = g.conv(trunk, "large", 8, LARGE)
    small = g.node("Relu", [g.conv(trunk, "before", 8, 4, kernel=1)], "before_relu")
    small = g.conv(small, "precise", 4, PRECISE, kernel=1)
    for tensor in g.initializers:
        values = numpy_helper.to_array(tensor)
        if tensor.name == "precise_weight":
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(0.01), tensor.name))
        if tensor.name == "precise_bias":
            tensor.CopyFrom(numpy_helper.from_array(np.ones_like(values), tensor.name))
        if tensor.name == "large_weight":
            tensor.CopyFrom(numpy_helper.from_array(values * 10, tensor.name))
    shape = g.constant(np.array([0, LARGE + PRECISE, 64], np.int64), "shape")
    rows = g.node("Reshape", [g.node("Concat", [large, small], "join", axis=1), shape], "rows")
    y = g.node("Transpose", [rows], "transposed", perm=[0, 2, 1])
    return g.model([batch, 3, 8, 8], y, [batch, 64, LARGE + PRECISE])


@pytest.fixture
def graph(tmp_path: Path) -> PreparedGraph:
    return prepare(models.save(detector(), tmp_path / "detector.onnx"))


def samples_of(graph: PreparedGraph, count: int = 16) -> Samples:
    return Samples(inputs=inputs(graph, count), labels=None, source="test", sha256="")


def reference_of(graph: PreparedGraph, samples: Samples) -> Reference:
    heads = find_heads(graph, samples)
    return Reference(heads=heads, outputs=run_samples(graph, {}, heads.tensors, samples))


def planned(graph: PreparedGraph, metric: str, mean_bits: float = 3.2) -> BitPlan:
    """The plan of weights alone, under one metric or the contest of those without torch."""
    samples = samples_of(graph, 32)
    rounding = round_weights(graph, BITS)
    parts = split(samples)
    sizes = np.array([[packed_bytes(layer.numel, b) for b in BITS] for layer in graph.layers])
    budget = Budget(size_bytes=int(mean_bits * sum(layer.numel for layer in graph.layers) / 8))
    evidence = Evidence(graph=graph, rounding=rounding, samples=parts.scored, capture=None)

    def solve(name: str) -> BitPlan:
        scores = score(evidence, MetricSettings(name=name))
        return allocate(graph.layers, scores, SizeTable(fixed=0, bytes=sizes), budget)

    if metric != "auto":
        return solve(metric)
    return hold_contest(graph, solve, ("kl", "mse", "size"), parts, rounding).plan


@pytest.mark.parametrize("batch", ["N", 1])
def test_branches_of_one_output_are_heads_of_their_own(batch: int | str, tmp_path: Path) -> None:
    graph = prepare(models.save(detector(batch), tmp_path / "detector.onnx"))
    large, precise = output_heads(graph, samples_of(graph))
    assert (large.layers, precise.layers) == (("large",), ("precise",))
    assert large.box == (slice(0, 64), slice(0, LARGE))
    assert precise.box == (slice(0, 64), slice(LARGE, LARGE + PRECISE))


def test_what_two_layers_decide_together_is_one_head(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    trunk = g.node("Relu", [g.conv("x", "trunk", 3, 8)], "relu")
    both = g.node("Add", [g.conv(trunk, "left", 8, 4), g.conv(trunk, "right", 8, 4)], "sum")
    graph = prepare(models.save(g.model(["N", 3, 8, 8], both, ["N", 4, 8, 8]), tmp_path / "sum.onnx"))
    (head,) = output_heads(graph, samples_of(graph))
    assert head.layers == ("left", "right")
    assert len(head.elements) == 4 * 8 * 8


def test_elements_that_form_no_box_are_told_apart_too() -> None:
    assert Head(tensor="y", layers=(), shape=(2, 3), elements=np.array([0, 1, 5]), variation=1.0).box is None


def test_one_number_per_sample_is_a_head(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.node("Squeeze", [g.gemm("x", "fc", 6, 1), g.constant(np.array([1]), "axis")], "squeezed")
    graph = prepare(models.save(g.model(["N", 6], y, ["N"]), tmp_path / "m.onnx"))
    (head,) = output_heads(graph, samples_of(graph))
    assert head.box == ()
    assert head.of(np.arange(3.0)).tolist() == [[0.0], [1.0], [2.0]]


def two_heads() -> Heads:
    parts = tuple(
        Head(tensor="y", layers=(), shape=(5,), elements=np.array(elements), variation=scale)
        for elements, scale in (([0, 1, 3], 2.0), ([2, 4], 0.01))
    )
    return Heads(classifier=False, tensors=("y",), parts=parts)


def test_the_measures_are_their_formulas() -> None:
    random = np.random.default_rng(0)
    y = random.standard_normal((7, 5)).astype(np.float32)
    moved = y + random.standard_normal((7, 5)).astype(np.float32) * np.float32(0.1)
    squared = []
    for elements, scale in (([0, 1, 3], 2.0), ([2, 4], 0.01)):
        squared.append(np.square(moved - y)[:, elements].sum(axis=1) / scale)
    reference = Reference(heads=two_heads(), outputs=[y])
    assert reference.divergence([moved]) == pytest.approx(np.mean(squared), rel=1e-5)
    assert reference.distance([moved]) == pytest.approx(np.sqrt(squared).mean(axis=1).max(), rel=1e-5)
    np.testing.assert_allclose(reference.per_sample([moved]), np.sqrt(np.mean(squared, axis=0)), rtol=1e-5)


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_variation_is_the_variance_over_all_samples_summed_over_the_head(batch: int | str, tmp_path: Path) -> None:
    graph = prepare(models.save(detector(batch), tmp_path / "detector.onnx"))
    samples = samples_of(graph, 21)
    samples = replace(samples, inputs={"x": np.random.default_rng(0).random((21, 3, 8, 8), np.float32)})
    (y,) = run_samples(graph, {}, graph.output_names, samples)
    for head in output_heads(graph, samples):
        assert head.variation == pytest.approx(head.of(y).var(axis=0, ddof=1).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("energy", "spread", "expected"), [(10.0, 0.5, 0.5), (10.0, 0.0, 10.0), (10.0, 1e-13, 10.0), (0.0, 0.0, 1.0)]
)
def test_a_head_that_never_varies_counts_its_energy(energy: float, spread: float, expected: float) -> None:
    assert variation(energy, spread) == expected


def test_a_classifier_is_compared_by_output_kl(residual_model: Path) -> None:
    graph = prepare(residual_model)
    reference = reference_of(graph, samples_of(graph))
    assert reference.heads.classifier
    logits = reference.outputs[0]
    moved = logits + np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
    p, q = log_softmax(logits), log_softmax(moved)
    kl = np.sum(np.exp(p) * (p - q), axis=1)
    assert reference.divergence([moved]) == np.mean(np.maximum(kl, 0))
    assert reference.distance([moved]) == np.mean(np.sqrt(np.maximum(kl, 0)))
    assert np.array_equal(reference.per_sample([moved]), np.sqrt(np.maximum(kl, 0)))


def test_a_temperature_lets_sure_samples_count() -> None:
    """One unsure sample decides at temperature 1; softened, nine sure ones that moved further do."""
    logits = np.zeros((10, 3), np.float32)
    logits[1:, 0] = 30
    unsure, sure = logits.copy(), logits.copy()
    unsure[0, 1] = 0.5
    sure[1:, 1] = 15
    heads = Heads(classifier=True, tensors=("logits",))
    reference = Reference(heads=heads, outputs=[logits])
    assert reference.distance([unsure]) > reference.distance([sure])
    assert reference.distance([unsure], 4.0) < reference.distance([sure], 4.0)


@pytest.mark.parametrize("metric", ["kl", "mpqco", "hawq", "auto"])
def test_the_plan_keeps_a_precise_head_wide(metric: str, graph: PreparedGraph) -> None:
    if metric in ("mpqco", "hawq"):
        pytest.importorskip("torch")
    bits = planned(graph, metric).bits()
    assert min(bits["before"], bits["precise"]) >= bits["large"] + 2


def test_measured_by_energy_the_constant_would_hide_it(graph: PreparedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_search, "variation", lambda energy, spread: energy)
    bits = planned(graph, "kl").bits()
    assert max(bits["before"], bits["precise"]) < bits["large"]


def test_outputs_whose_shape_depends_on_the_sample_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="only"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("NonZero", ["r"], ["places"], name="places"),
        helper.make_node("Transpose", ["places"], ["y"], name="turn", perm=[1, 0]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "selecting",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 2])],
            [numpy_helper.from_array(np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    graph = prepare(models.save(model, tmp_path / "selecting.onnx"))
    random = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)
    samples = Samples(inputs={"x": random}, labels=None, source="test", sha256="")
    with pytest.raises(BadInput, match="cannot be compared sample by sample"):
        run_samples(graph, {}, graph.output_names, samples)


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ("other/ultraface_slim320.onnx", {"scores": 4, "boxes": 4}),
        ("other/yolox_nano.onnx", {"output": 9}),
        ("other/fast_style_transfer_starry_night_256.onnx", {"output": 1}),
    ],
)
def test_strides_and_branches_of_real_detectors(
    model: str, outputs: dict[str, int], shared: Callable[[str], Path]
) -> None:
    graph = prepare(shared(f"models/{model}"))
    heads = output_heads(graph, samples_of(graph, 1))
    assert {name: sum(head.tensor == name for head in heads) for name in outputs} == outputs
    assert all(len(head.layers) == 1 and head.box is not None for head in heads)
    for name in outputs:
        elements = np.concatenate([head.elements for head in heads if head.tensor == name])
        np.testing.assert_array_equal(np.sort(elements), np.arange(len(elements)))
