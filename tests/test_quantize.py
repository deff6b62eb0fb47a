"""quantize: integers that hold the bias, grids for every activation, and less error with bias correction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from ompq_deploy.artifacts import BitPlan, Budget, Capture, PlannedLayer, PreparedGraph, Samples, SolverRecord
from ompq_deploy.capture import capture
from ompq_deploy.errors import BadInput
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import ACTIVATION_GRIDS, QuantizeSettings, quantize
from tests import models
from tests.quantized import inputs


def samples_of(graph: PreparedGraph, count: int = 32) -> Samples:
    return Samples(inputs=inputs(graph, count), labels=None, source="noise", sha256="")


def uniform_plan(graph: PreparedGraph, bits: int) -> BitPlan:
    rows = tuple(
        PlannedLayer(name=q.name, op=q.op, weight_bits=bits, activation_bits=8, numel=q.numel, bytes=0, score=0.0)
        for q in graph.layers
    )
    solver = SolverRecord(name="none", status="NONE", objective=0, bound=0, seconds=0)
    return BitPlan(layers=rows, budget=Budget(size_bytes=1), size_bytes=0, metric="none", solver=solver)


def outputs(model: onnx.ModelProto, samples: Samples) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, dict(samples.inputs))[0]


def prepared(path: Path) -> tuple[PreparedGraph, Samples, Capture]:
    graph = prepare(path)
    samples = samples_of(graph)
    return graph, samples, capture(graph, samples, histograms=True)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_every_activation_gets_both_kinds_of_grid(method: str, residual_model: Path) -> None:
    graph, _, captured = prepared(residual_model)
    settings = QuantizeSettings(effort="quick", calibration_method=method)
    quantized = quantize(graph, captured, uniform_plan(graph, 8), settings)
    symmetric = quantize(graph, captured, uniform_plan(graph, 8), replace(settings, activation_grid="symmetric"))
    assert set(quantized.grids) == set(quantized.symmetric_grids) == set(graph.activations)
    assert min(grid.scale for grid in quantized.grids.values()) > 0
    assert all(grid.zero_point == 0 for name, grid in quantized.grids.items() if "relu" in name or "clip" in name)
    assert 0 < quantized.grids["x"].zero_point < 255
    assert {grid.zero_point for grid in symmetric.grids.values()} == {128}
    assert quantized.symmetric_grids == symmetric.symmetric_grids == symmetric.grids


def test_asymmetric_grids_leave_less_error(residual_model: Path) -> None:
    graph, samples, captured = prepared(residual_model)
    reference = outputs(graph.model, samples)
    errors = {}
    for kind in ACTIVATION_GRIDS:
        settings = QuantizeSettings(effort="quick", activation_grid=kind)
        model = qdq_model(quantize(graph, captured, uniform_plan(graph, 8), settings))
        errors[kind] = np.square(outputs(model, samples) - reference).mean()
    assert errors["asymmetric"] < 0.7 * errors["symmetric"]


def test_an_unknown_kind_of_grid_is_refused(residual_model: Path) -> None:
    graph, _, captured = prepared(residual_model)
    with pytest.raises(BadInput, match="unknown choice 'signed'"):
        quantize(graph, captured, uniform_plan(graph, 8), QuantizeSettings(effort="quick", activation_grid="signed"))


def test_bias_correction_removes_the_mean_error_of_each_class(residual_model: Path) -> None:
    graph, samples, captured = prepared(residual_model)
    reference = outputs(graph.model, samples)
    errors = {}
    for corrected in (False, True):
        settings = QuantizeSettings(effort="quick", bias_correction=corrected)
        model = qdq_model(quantize(graph, captured, uniform_plan(graph, 3), settings))
        errors[corrected] = np.abs((outputs(model, samples) - reference).mean(axis=0)).mean()
    assert errors[True] < errors[False]


def corrected_layers(path: Path) -> set[str]:
    """The layers whose bias the effort quick moves by the mean error of their inputs."""
    graph, _, captured = prepared(path)
    plain, moved = (
        quantize(graph, captured, uniform_plan(graph, 3), QuantizeSettings(effort="quick", bias_correction=on)).layers
        for on in (False, True)
    )
    return {
        b.layer.name
        for a, b in zip(plain, moved, strict=True)
        if any((b.biases[n] != a.biases[n]).any() for n in a.biases)
    }


def test_a_bias_takes_the_means_of_what_its_layer_reads(residual_model: Path) -> None:
    assert corrected_layers(residual_model) == {layer.name for layer in prepare(residual_model).layers}


@pytest.mark.parametrize("moved", ["Reshape", "Transpose"])
def test_means_per_token_are_not_taken_for_means_per_channel(moved: str, tmp_path: Path) -> None:
    """As many tokens as channels, so that sizes alone do not tell one from the other."""
    g = models.GraphBuilder()
    x = g.gemm(g.node("Reshape", ["x", g.constant(np.array([-1, 6]), "rows")], "flat"), "first", 6, 6)
    tokens = g.node("Reshape", [x, g.constant(np.array([-1, 6, 6]), "tokens")], "apart")
    shifted = g.node(
        "Add", [tokens, g.constant(g.random.standard_normal((6, 1)).astype(np.float32), "shift")], "shifted"
    )
    if moved == "Reshape":
        last = g.gemm(g.node("Reshape", [shifted, "rows"], "together"), "last", 6, 5)
    else:
        kernel = g.constant(g.random.standard_normal((5, 6, 1)).astype(np.float32), "last_weight")
        bias = g.constant(np.ones(5, np.float32), "last_bias")
        last = g.node("Conv", [g.node("Transpose", [shifted], "turned", perm=[0, 2, 1]), kernel, bias], "last")
    path = models.save(g.model(["N", 6, 6], last, ["M", 5] if moved == "Reshape" else ["N", 5, 6]), tmp_path / "m.onnx")
    assert "last" not in corrected_layers(path)


def test_a_dead_channel_keeps_its_bias(tmp_path: Path) -> None:
    model = models.residual_network()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = numpy_helper.to_array(stored["main1_weight"]).copy()
    bias = numpy_helper.to_array(stored["main1_bias"]).copy()
    weight[2], bias[2] = weight[2] * 1e-22, 1.5
    stored["main1_weight"].CopyFrom(numpy_helper.from_array(weight, "main1_weight"))
    stored["main1_bias"].CopyFrom(numpy_helper.from_array(bias, "main1_bias"))
    graph, _, captured = prepared(models.save(model, tmp_path / "dead.onnx"))
    quantized = quantize(graph, captured, uniform_plan(graph, 8), QuantizeSettings(effort="quick"))
    layer = next(q for q in quantized.layers if q.layer.name == "main1")
    grid = quantized.grids["add1_relu_out"].scale
    held = layer.bias_codes("main1", grid) * layer.bias_scale(grid)
    np.testing.assert_allclose(held[2], 1.5, rtol=1e-3)
    np.testing.assert_allclose(held, layer.biases["main1"], atol=float(layer.bias_scale(grid).max()))
