"""Smoothing leaves the float network as it is, and brings channels that a grid lost back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.capture.channels import channel_ranges
from ompq_deploy.passes.smooth import SMALLEST, candidates, find_smoothing, smooth
from ompq_deploy.pipeline import deploy
from ompq_deploy.prepare import prepare, rewritten
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.runtime.runner import run_model
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.verbs.quantize import write_models
from ompq_deploy.verbs.verify import verify_folder
from tests import models
from tests.models import GraphBuilder

UNEVEN = np.array([1, 1 / 40, 1 / 25, 1 / 60, 1 / 30, 1 / 50, 1 / 90, 1 / 35])
Build = Callable[[GraphBuilder, str], str]


def first_layer(g: GraphBuilder, factors: np.ndarray) -> str:
    """A SiLU whose channels differ in range as `factors` do."""
    weight = g.random.standard_normal((8, 3, 3, 3)) * factors.reshape(-1, 1, 1, 1)
    x = g.node("Conv", ["x", g.constant(weight.astype(np.float32), "first_weight")], "first", pads=[1] * 4)
    return g.node("Mul", [x, g.node("Sigmoid", [x], "gate")], "silu")


def grown(g: GraphBuilder, name: str, shape: tuple[int, ...], axis: int) -> str:
    """A weight whose input channels make up for the factors."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return g.constant((g.random.standard_normal(shape) / UNEVEN.reshape(sizes)).astype(np.float32), name)


def dense(g: GraphBuilder, x: str) -> str:
    return g.node("Conv", [x, grown(g, "weight", (6, 8, 3, 3), 1)], "reader")


def depthwise(g: GraphBuilder, x: str) -> str:
    return g.conv(g.node("Conv", [x, grown(g, "weight", (8, 1, 3, 3), 0)], "reader", group=8), "mix", 8, 6)


def tokens(g: GraphBuilder, x: str) -> str:
    rows = g.node("Reshape", [x, g.constant(np.array([0, 8, -1], np.int64), "flat")], "rows")
    return g.node("MatMul", [g.node("Transpose", [rows], "tokens", perm=[0, 2, 1]), grown(g, "w", (8, 6), 0)], "reader")


def two_readers(g: GraphBuilder, x: str) -> str:
    parts = [g.node("Conv", [x, grown(g, f"weight{i}", (8, 8, 1, 1), 1)], f"reader{i}") for i in range(2)]
    return g.conv(g.node("Add", parts, "both"), "mix", 8, 6)


def residual(g: GraphBuilder, x: str) -> str:
    branch = g.node("Conv", [x, grown(g, "weight", (8, 8, 1, 1), 1)], "reader")
    return g.conv(g.node("Add", [branch, x], "added"), "mix", 8, 6)


READERS = (dense, depthwise, tokens, two_readers)


def network(read: Build, factors: np.ndarray = UNEVEN) -> onnx.ModelProto:
    """The first layer, and what `read` makes of it."""
    g = GraphBuilder(1)
    y = read(g, first_layer(g, factors))
    return g.model(["N", 3, 8, 8], y, ["N", None, None] if read is tokens else ["N", 6, None, None])


def noise_samples(graph: PreparedGraph, count: int) -> Samples:
    x = np.random.default_rng(2).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Samples(inputs={"x": x}, labels=None, source="noise", sha256="")


def found_on(graph: PreparedGraph, samples: Samples) -> dict[str, list[int]]:
    among = candidates(graph)
    axes = {candidate.tensor: candidate.axis for candidate in among}
    return find_smoothing(graph, among, channel_ranges(graph, axes, samples))


@pytest.mark.parametrize("read", READERS)
def test_the_network_computes_what_it_did(read: Build, tmp_path: Path) -> None:
    graph = prepare(models.save(network(read), tmp_path / "m.onnx"))
    samples = noise_samples(graph, 8)
    smoothing = found_on(graph, samples)
    assert smoothing
    assert all(SMALLEST <= k <= 0 for channels in smoothing.values() for k in channels)
    after = rewritten(graph, smooth(graph, smoothing))
    onnx.checker.check_model(after.model, full_check=True)
    assert [layer.name for layer in after.layers] == [layer.name for layer in graph.layers]
    assert {f"{name}_smooth" for name in smoothing} <= set(after.activations)
    (before,), (now,) = (run_model(g.model, g.output_names, samples, None) for g in (graph, after))
    np.testing.assert_allclose(now, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("activation", ["", "Relu", "LeakyRelu"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_layers_weights_take_the_factors_of_what_it_makes(activation: str, biased: bool, tmp_path: Path) -> None:
    g = GraphBuilder(1)
    weight = (g.random.standard_normal((8, 3, 3, 3)) * UNEVEN.reshape(-1, 1, 1, 1)).astype(np.float32)
    bias = [g.constant((g.random.standard_normal(8) * UNEVEN).astype(np.float32), "bias")] if biased else []
    x = g.node("Conv", ["x", g.constant(weight, "first_weight"), *bias], "first", pads=[1] * 4)
    x = g.node(activation, [x], "active") if activation else x
    y = dense(g, x)
    graph = prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 6, None, None]), tmp_path / "m.onnx"))
    samples = noise_samples(graph, 8)
    smoothing = found_on(graph, samples)
    assert list(smoothing) == [x]
    after = rewritten(graph, smooth(graph, smoothing))
    assert [node.op_type for node in after.model.graph.node] == [node.op_type for node in graph.model.graph.node]
    (before,), (now,) = (run_model(g.model, g.output_names, samples, None) for g in (graph, after))
    np.testing.assert_allclose(now, before, atol=1e-5 * np.abs(before).max())
    ranges = [channel_ranges(of, {x: -3}, samples)[x] for of in (graph, after)]
    np.testing.assert_allclose(ranges[1], ranges[0] * np.exp2(-np.array(smoothing[x], np.float64)), rtol=1e-5)


def test_ranges_are_those_of_the_channels(tmp_path: Path) -> None:
    graph = prepare(models.save(network(dense), tmp_path / "m.onnx"))
    samples = noise_samples(graph, 40)
    tensor, r = next(iter(channel_ranges(graph, {c.tensor: c.axis for c in candidates(graph)}, samples).items()))
    (values,) = run_model(graph.model, [tensor], samples, None)
    np.testing.assert_allclose(r, np.abs(values).max(axis=(0, 2, 3)))


def test_what_an_addition_reads_too_is_left_alone(tmp_path: Path) -> None:
    graph = prepare(models.save(network(residual), tmp_path / "m.onnx"))
    assert "silu_out" not in {candidate.tensor for candidate in candidates(graph)}


def test_even_and_dead_channels_are_left_alone(tmp_path: Path) -> None:
    for factors in (np.ones(8), np.array([1, 1, 1, 1, 1, 1, 1e-6, 0])):
        graph = prepare(models.save(network(lambda g, x: g.conv(x, "reader", 8, 6), factors), tmp_path / "m.onnx"))
        assert candidates(graph)
        assert not found_on(graph, noise_samples(graph, 8))


@pytest.mark.parametrize("read", READERS)
def test_the_output_gains_and_every_verb_knows_the_factors(read: Build, tmp_path: Path) -> None:
    model = models.save(network(read), tmp_path / "m.onnx")
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((96, 3, 8, 8)).astype(np.float32))
    errors = {}
    for on in (False, True):
        quantized = QuantizeSettings(smooth=on)
        plan = PlanSettings(size="99%", bits=(8,), calib=data, quantize=quantized)
        settings = DeploySettings(plan=plan, out=tmp_path / str(on), targets=("onnx", "integer"))
        report = deploy(model, settings).report
        errors[on] = report["heads"]["rows"][0]["qdq"]["relative_error"]
    assert errors[True] < 0.5 * errors[False]
    folder = tmp_path / "True"
    assert json.loads((folder / "plan.json").read_text())["smoothing"]
    assert verify_folder(folder, None, None)["passed"]
    before = (folder / "model.qdq.onnx").read_bytes()
    write_models(folder / "plan.json", None, ("onnx",), folder)
    assert (folder / "model.qdq.onnx").read_bytes() == before
