"""Refinement leaves less output error than rounding, whatever the layers' kind, and the same on every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import ompq_deploy.metrics.output_error as kl
from ompq_deploy.artifacts import Capture, Grid, Layer, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.capture import capture
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.numerics import signed_range
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings, columns, quantize, rounding_problem
from ompq_deploy.quantize.activations import activation_grids, symmetric_grid
from ompq_deploy.quantize.covariance import Accumulator
from ompq_deploy.quantize.gptq import damped, second_order_codes
from ompq_deploy.quantize.output_grids import output_errors
from ompq_deploy.quantize.refine import OutputWeights, RefineSettings, head_of, refine
from ompq_deploy.quantize.refined_rounding import refined_rounding
from ompq_deploy.quantize.stream import Stream, pieces
from tests import models
from tests.test_quantize import uniform_plan

COUNT = 64
Network = Callable[[], onnx.ModelProto]


def smooth_samples(graph: PreparedGraph, count: int = COUNT, seed: int = 0) -> Samples:
    """Low-pass noise: neighbouring elements are correlated, as in images."""
    random = np.random.default_rng(seed)
    shape = [d.dim_value for d in graph.model.graph.input[0].type.tensor_type.shape.dim][1:]
    coarse = random.standard_normal((count, *[max(1, size // 4) if i else size for i, size in enumerate(shape)]))
    for axis, size in enumerate(shape[1:], start=2):
        coarse = np.repeat(coarse, -(-size // coarse.shape[axis]), axis=axis).take(np.arange(size), axis=axis)
    x = coarse + 0.1 * random.standard_normal((count, *shape))
    return Samples(inputs={"x": x.astype(np.float32)}, labels=None, source="noise", sha256="")


def run(model: onnx.ModelProto, samples: Samples, batch: int, *, as_written: bool = False) -> np.ndarray:
    """The outputs; `as_written` keeps onnxruntime from fusing Q/DQ nodes into integer kernels."""
    options = ort.SessionOptions()
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in samples.batches(batch)])


def prepared(model: onnx.ModelProto, folder: Path) -> tuple[PreparedGraph, Samples, Capture]:
    graph = prepare(models.save(model, folder / "model.onnx"))
    samples = smooth_samples(graph)
    return graph, samples, capture(graph, samples, histograms=True)


def output_error(quantized: QuantizedGraph, samples: Samples) -> float:
    batch = quantized.graph.batch or COUNT
    reference = run(quantized.graph.model, samples, batch)
    return float(np.square(run(qdq_model(quantized), samples, batch) - reference).mean())


def varied_network() -> onnx.ModelProto:
    """Strides, dilation, groups, asymmetric pads, ConvTranspose, MatMul on rank 3, a Gemm that is not transposed."""
    g = models.GraphBuilder(5)
    x = g.node("Relu", [g.conv("x", "strided", 3, 8, strides=[2, 2], pads=[0, 1, 2, 1])], "relu1")
    x = g.node("Relu", [g.conv(x, "dilated", 8, 12, dilations=[2, 2], pads=[2, 2, 2, 2])], "relu2")
    x = g.node("Relu", [g.conv(x, "grouped", 12, 12, groups=3)], "relu3")
    up = g.constant((g.random.standard_normal((12, 6, 4, 4)) / 8).astype(np.float32), "up_weight")
    x = g.node("Relu", [g.node("ConvTranspose", [x, up], "up", strides=[2, 2], pads=[1, 1, 1, 1])], "relu4")
    rows = g.node("Reshape", [x, g.constant(np.array([0, 6, 256], np.int64), "shape")], "rows")
    mix = g.constant((g.random.standard_normal((256, 20)) / 16).astype(np.float32), "mix_weight")
    x = g.node("Relu", [g.node("MatMul", [rows, mix], "mix")], "relu5")
    last = g.constant((g.random.standard_normal((120, 5)) / 11).astype(np.float32), "last_weight")
    return g.model(["N", 3, 16, 16], g.node("Gemm", [g.node("Flatten", [x], "flat"), last], "last"), ["N", 5])


def automatic_pads() -> onnx.ModelProto:
    """Pads that the runtime chooses, odd in total, at either end, and none where a stride passes over a kernel."""
    g = models.GraphBuilder(6)
    x = "x"
    for i, where in enumerate(("SAME_UPPER", "SAME_LOWER")):
        weight = g.constant(g.random.standard_normal((3, 3, 3, 3)).astype(np.float32), f"down_weight{i}")
        x = g.node("Conv", [x, weight], f"down{i}", strides=[2, 2], auto_pad=where)
    for i, where in enumerate(("SAME_UPPER", "SAME_LOWER")):
        weight = g.constant(g.random.standard_normal((3, 3, 3, 3)).astype(np.float32), f"up_weight{i}")
        x = g.node("ConvTranspose", [x, weight], f"up{i}", strides=[2, 2], auto_pad=where)
    for i, settings in enumerate(
        (
            {"output_shape": [32, 31]},
            {"auto_pad": "SAME_UPPER", "output_shape": [62, 60]},
            {"auto_pad": "SAME_LOWER", "output_padding": [1, 0]},
        )
    ):
        weight = g.constant(g.random.standard_normal((3, 3, 3, 3)).astype(np.float32) / 4, f"to_weight{i}")
        x = g.node("ConvTranspose", [x, weight], f"to{i}", strides=[2, 2], **settings)
    weight = g.constant(g.random.standard_normal((3, 3, 2, 2)).astype(np.float32), "apart_weight")
    x = g.node("ConvTranspose", [x, weight], "apart", strides=[3, 2], auto_pad="SAME_UPPER")
    return g.model(["N", 3, 16, 16], x, ["N", 3, "H", "W"])


def grouped_transposes() -> onnx.ModelProto:
    """ConvTransposes whose groups share the scales of their output channels, with and without a bias."""
    g = models.GraphBuilder(7)
    x = g.node("Relu", [g.conv("x", "first", 3, 8)], "relu")
    for name, inputs in (("plain", []), ("biased", [g.constant(np.ones(8, np.float32), "bias")])):
        weight = g.constant((g.random.standard_normal((8, 4, 3, 3)) / 6).astype(np.float32), f"{name}_weight")
        x = g.node(
            "Relu", [g.node("ConvTranspose", [x, weight, *inputs], name, group=2, strides=[2, 2])], f"{name}_relu"
        )
    return g.model(["N", 3, 6, 6], g.conv(x, "last", 8, 2), ["N", 2, 27, 27])


def test_a_layer_of_many_inputs_is_rounded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, samples, captured = prepared(varied_network(), tmp_path)
    others, plan = smooth_samples(graph, seed=1), uniform_plan(graph, 3)
    whole, nearest = (
        output_error(quantize(graph, captured, plan, QuantizeSettings(effort=effort), samples=samples), others)
        for effort in ("default", "quick")
    )
    monkeypatch.setattr(columns, "MOST_COLUMNS", 70)
    assert [columns.parts(layer) for layer in graph.layers] == [1, 2, 1, 3, 4, 2]
    quantized = quantize(graph, captured, plan, QuantizeSettings(effort="default"), samples=samples)
    assert whole != output_error(quantized, others) < 0.8 * nearest


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("network", [models.residual_network, varied_network, grouped_transposes])
def test_less_error_than_rounding_on_other_samples(
    network: Callable[[], onnx.ModelProto], bits: int, tmp_path: Path
) -> None:
    graph, samples, captured = prepared(network(), tmp_path)
    others = smooth_samples(graph, seed=1)
    errors = {}
    for effort in ("quick", "default"):
        settings = QuantizeSettings(effort=effort)
        quantized = quantize(graph, captured, uniform_plan(graph, bits), settings, samples=samples)
        low, high = signed_range(bits)
        assert all(low <= q.codes.min() and q.codes.max() <= high for q in quantized.layers)
        errors[effort] = output_error(quantized, others)
    assert errors["default"] < 0.7 * errors["quick"]


def test_the_same_seed_gives_the_same_integers(residual_model: Path, tmp_path: Path) -> None:
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    first, second = (quantize(graph, captured, uniform_plan(graph, 4), samples=samples, seed=3) for _ in range(2))
    for a, b in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.scale, b.scale)
        for node, bias in a.biases.items():
            np.testing.assert_array_equal(bias, b.biases[node])


def one_layer(groups: int, op: str = "Conv") -> onnx.ModelProto:
    g = models.GraphBuilder(7)
    weight = g.constant(g.random.standard_normal((12, 12 // groups, 3, 3)).astype(np.float32), "weight")
    y = g.node(op, ["x", weight], "layer", group=groups, pads=[1, 1, 1, 1])
    return g.model(["N", 12, 8, 8], y, ["N", 12, 8, 8])


def refined(graph: PreparedGraph, samples: Samples, channels: np.ndarray | None) -> QuantizedGraph:
    """At 3 bits, with `channels` for A."""
    grids = activation_grids(capture(graph, samples), "minmax", symmetric=False)
    known = {} if channels is None else {"layer": (channels, channels)}
    layers = refine(graph, samples, {"layer": 3}, grids, RefineSettings(), lambda _: OutputWeights(channels=known))
    return QuantizedGraph(graph=graph, layers=layers, grids=grids, calibrated_symmetric={}, wide_grids={})


SUMMED = np.full((12, 12), 0.9) + 0.1 * np.eye(12)
"""A of a network that reads little but the sum of the channels."""


@pytest.mark.parametrize("groups", [1, 3])
def test_errors_of_channels_that_matter_together_cancel(groups: int, tmp_path: Path) -> None:
    graph = prepare(models.save(one_layer(groups), tmp_path / "m.onnx"))
    samples = smooth_samples(graph)
    exact = run(graph.model, samples, COUNT)
    alone, together = (run(qdq_model(refined(graph, samples, a)), samples, COUNT) - exact for a in (None, SUMMED))
    of_sums = [np.square(e.reshape(COUNT, groups, -1, 8, 8).sum(axis=2)).mean() for e in (alone, together)]
    assert of_sums[1] < 0.7 * of_sums[0]
    assert np.square(together).mean() > np.square(alone).mean()


@pytest.mark.parametrize(("groups", "op"), [(12, "Conv"), (3, "ConvTranspose")])
def test_channels_with_nothing_to_share_are_rounded_alone(groups: int, op: str, tmp_path: Path) -> None:
    graph = prepare(models.save(one_layer(groups, op), tmp_path / "m.onnx"))
    samples = smooth_samples(graph)
    (alone,), (together,) = (refined(graph, samples, a).layers for a in (None, SUMMED))
    assert np.array_equal(alone.codes, together.codes)
    assert np.array_equal(alone.scale, together.scale)


def test_a_sample_and_its_copies_are_on_one_side_of_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = models.GraphBuilder(0)
    weight = g.constant(g.random.standard_normal((4, 3, 1, 1)).astype(np.float32), "weight")
    graph = prepare(
        models.save(g.model(["N", 3, 4, 4], g.node("Conv", ["x", weight], "conv"), ["N", 4, 4, 4]), tmp_path / "m.onnx")
    )
    colours = np.random.default_rng(1).standard_normal((5, 3, 1, 1)).astype(np.float32)
    images = Samples(  # of one colour each, so that flips and shifts leave them as they are
        inputs={"x": np.broadcast_to(colours, (5, 3, 4, 4)).copy()}, labels=None, source="", sha256="", layout="NCHW"
    )
    grids = activation_grids(capture(graph, images), "minmax", symmetric=False)
    seen: list[tuple[np.ndarray, ...]] = []

    def noted(halves: tuple[np.ndarray, ...], *_: object) -> float:
        seen.append(halves)
        return 0.0

    monkeypatch.setattr(rounding_problem, "best_shrinkage", noted)
    for copies in (1, 3):
        refine(graph, images, {"conv": 4}, grids, RefineSettings(copies=copies, augment="flip+crop"))
    once, thrice = seen
    for a, b in zip(once, thrice, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_images_are_refined_with_copies_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    asked: list[tuple[int, str]] = []

    def noted(
        graph: PreparedGraph, samples: Samples, bits: object, grids: object, settings: RefineSettings, *_: object
    ) -> object:
        asked.append((settings.copies, settings.augment))
        return refine(graph, samples, {q.name: 4 for q in graph.layers}, captured_grids, settings)

    captured_grids = quantize(graph, captured, uniform_plan(graph, 4), QuantizeSettings(effort="quick")).grids
    monkeypatch.setattr("ompq_deploy.quantize.refine", noted)
    for layout, augment in (("NCHW", "auto"), ("NCHW", "flip"), (None, "auto")):
        quantize(
            graph,
            captured,
            uniform_plan(graph, 4),
            QuantizeSettings(augment=augment),
            samples=replace(samples, layout=layout),
        )
    monkeypatch.setattr("ompq_deploy.quantize.MOST_NUMBERS", 3 * COUNT * 8 * 16 * 16)
    quantize(graph, captured, uniform_plan(graph, 4), samples=replace(samples, layout="NCHW"))
    assert asked == [(8, "flip+crop"), (8, "flip"), (8, "none"), (3, "flip+crop")]


def test_a_fixed_batch_changes_little(tmp_path: Path) -> None:
    errors = []
    for batch in ("N", 1):
        graph, samples, captured = prepared(models.residual_network(batch), tmp_path)
        errors.append(output_error(quantize(graph, captured, uniform_plan(graph, 4), samples=samples), samples))
    assert errors[1] < 1.5 * errors[0]


def test_without_bias_correction_biases_stay(tmp_path: Path) -> None:
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    plan = uniform_plan(graph, 4)
    plain = quantize(graph, captured, plan, QuantizeSettings(bias_correction=False), samples=samples)
    rounded = quantize(graph, captured, plan, QuantizeSettings(bias_correction=False, effort="quick"))
    for a, b in zip(plain.layers, rounded.layers, strict=True):
        assert list(a.biases) == list(b.biases)
        for node, bias in a.biases.items():
            np.testing.assert_array_equal(bias, b.biases[node])
    assert output_error(plain, samples) < output_error(rounded, samples)


def test_refinement_asks_for_samples(tmp_path: Path) -> None:
    graph, _, captured = prepared(models.residual_network(), tmp_path)
    with pytest.raises(BadInput, match="samples"):
        quantize(graph, captured, uniform_plan(graph, 4))


@pytest.mark.parametrize("network", [varied_network, automatic_pads])
def test_columns_rebuild_the_output_of_every_layer(network: Network, tmp_path: Path) -> None:
    """Y = W X + b with the columns at all positions, against onnxruntime."""
    graph, samples, _ = prepared(network(), tmp_path)
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    layers = {layer.name: layer for layer in graph.layers}
    stream = Stream(graph, samples, {}, 1)
    for piece in pieces(graph):
        if not piece:
            stream.step()
            continue
        node, layer = piece[0], layers[piece[0].name]

        def check(batch: int, output: np.ndarray, node: onnx.NodeProto = node, layer: Layer = layer) -> None:
            x = stream.value(batch, node.input[0])
            positions = np.arange(columns.output_positions(layer, output))
            inputs = columns.input_columns(layer, node, x, output.shape[2:], positions, 0)
            rows = columns.output_rows(layer, output, positions)
            weight = columns.weight_columns(layer, weights[layer.name])
            bias = index.constant(node.input[2]).reshape(layer.groups, -1, 1) if len(node.input) > 2 else 0
            np.testing.assert_allclose(weight.swapaxes(1, 2) @ inputs + bias, rows, rtol=1e-3, atol=1e-4)

        np.testing.assert_array_equal(
            columns.weight_from_columns(layer, columns.weight_columns(layer, weights[layer.name])), weights[layer.name]
        )
        stream.step(tap=node.output[0], watch=check)


def test_the_quantized_stream_computes_what_the_qdq_model_does(tmp_path: Path) -> None:
    """Walk the quantized stream with the layers' integers and compare its logits with the exported model's."""
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    quantized = quantize(graph, captured, uniform_plan(graph, 4), samples=samples)
    index = GraphIndex(graph.model)
    layers = {q.layer.name: q for q in quantized.layers}
    stream = Stream(graph, samples, quantized.grids, 1)
    found: list[np.ndarray] = []
    for piece in pieces(graph):
        if not piece:
            stream.step()
            continue
        q = layers[piece[0].name]
        grid = layer_grid(index, graph.activations, piece[0].input[0])
        head = head_of(piece[0], q, quantized.grids[grid])
        if piece[-1].output[0] in graph.output_names:
            stream.step(head, tap=piece[-1].output[0], watch=lambda _, y: found.append(y))
        else:
            stream.step(head)
    expected = run(qdq_model(quantized), samples, COUNT, as_written=True)
    difference = np.abs(np.concatenate(found) - expected) / np.abs(expected).max()
    assert difference.max() < 1e-2
    assert (difference < 1e-3).mean() > 0.98, "more than ties, which may go either way"


def test_output_errors_ignore_what_no_weight_reads(tmp_path: Path) -> None:
    """One input channel is a hundred times larger than the others, and multiplied by zero."""
    g = models.GraphBuilder()
    model = g.model(["N", 4, 8, 8], g.conv("x", "conv", 4, 4), ["N", 4, 8, 8])
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv_weight")
    values = numpy_helper.to_array(weight).copy()
    values[:, 2] = 0
    weight.CopyFrom(numpy_helper.from_array(values, "conv_weight"))
    graph = prepare(models.save(model, tmp_path / "model.onnx"))
    x = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)
    x[:, 2] *= 100
    samples = Samples(inputs={"x": x}, labels=None, source="noise", sha256="")
    coarse, fine = (symmetric_grid(float(np.abs(part).max())) for part in (x, np.delete(x, 2, axis=1)))
    one_sided = replace(fine, zero_point=0)
    errors = output_errors(graph, samples, [{"x": grid} for grid in (coarse, fine, one_sided)])["x"]
    assert errors[1] < 0.01 * errors[0]
    assert errors[1] < 0.01 * errors[2]
    captured = capture(graph, samples, histograms=True)
    settings = QuantizeSettings(effort="quick", calibration_method="output")
    chosen = quantize(graph, captured, uniform_plan(graph, 8), settings, samples=samples)
    assert chosen.grids["x"].scale < coarse.scale
    assert chosen.symmetric_grids["x"].scale < coarse.scale


def test_moments_of_large_and_constant_inputs() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 6, 3000)) + 1000
    x[1] = random.uniform(1, 1000, (6, 1))
    y = np.stack([x[:, 0] - x[:, 1], 3 * x[:, 2]], axis=1)
    sums = Accumulator()
    for part in np.array_split(np.arange(3000), 4):
        sums.add(x[:, :, part].astype(np.float32), y[:, :, part].astype(np.float32))
    moments = sums.moments()
    np.testing.assert_allclose(moments.input_mean, x.mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(moments.hessian[0], np.cov(x[0], bias=True), atol=1e-3)
    np.testing.assert_allclose(moments.cross[0], np.cov(x[0], y[0], bias=True)[:6, 6:], atol=1e-3)
    counts = random.integers(0, 4, 3000)
    weighted, repeated = Accumulator(), Accumulator()
    weighted.add(x.astype(np.float32), y.astype(np.float32), counts.astype(np.float32))
    repeated.add(np.repeat(x, counts, axis=2).astype(np.float32), np.repeat(y, counts, axis=2).astype(np.float32))
    for name in ("hessian", "cross", "input_mean", "output_mean"):
        np.testing.assert_allclose(getattr(weighted.moments(), name), getattr(repeated.moments(), name), atol=1e-2)
    assert weighted.moments().count == counts.sum()
    parts = []
    for part in (np.arange(700), np.arange(700, 3000)):
        sums = Accumulator()
        sums.add(x[:, :, part].astype(np.float32), y[:, :, part].astype(np.float32))
        parts.append(sums.moments())
    merged = parts[0].merged(parts[1])
    np.testing.assert_allclose(merged.hessian, moments.hessian, atol=1e-3)
    np.testing.assert_allclose(merged.cross, moments.cross, atol=1e-2)
    np.testing.assert_allclose(merged.output_mean, moments.output_mean, rtol=1e-6)
    zero = moments.around_zero(np.array([[0.0, 1000.0]] * 2))
    np.testing.assert_allclose(zero.hessian[0], x[0] @ x[0].T / 3000, rtol=1e-6)
    np.testing.assert_allclose(zero.cross[0], x[0] @ (y[0] - [[0], [1000]]).T / 3000, rtol=1e-4)
    codes, scale = second_order_codes(random.standard_normal((2, 6, 3)), damped(moments.hessian, 0.01), 4)
    assert np.isfinite(scale).all()
    assert codes.any()


@pytest.mark.parametrize("count", [6, 2])
def test_what_fills_up_a_fixed_batch_does_not_count(count: int, tmp_path: Path) -> None:
    open_batch = prepare(models.save(models.residual_network(), tmp_path / "open.onnx"))
    fixed = prepare(models.save(models.residual_network(batch=4), tmp_path / "fixed.onnx"))
    samples = smooth_samples(open_batch, count)
    grids = {name: Grid(scale=0.05) for name in open_batch.activations}
    bits = {layer.name: 3 for layer in open_batch.layers}
    found, expected = (refine(graph, samples, bits, grids, RefineSettings()) for graph in (fixed, open_batch))
    for a, b in zip(found, expected, strict=True):
        assert (a.codes != b.codes).mean() < 0.01
        np.testing.assert_allclose(a.scale, b.scale, rtol=0.02)
    rounding, other = (refined_rounding(graph, samples, (2, 4)) for graph in (fixed, open_batch))
    for name, errors in rounding.errors.items():
        np.testing.assert_allclose(errors, other.errors[name], atol=1e-5)
    heads = find_heads(open_batch, samples)
    losses, expected_losses = (kl.output_error(graph, heads, samples, rounding).loss for graph in (fixed, open_batch))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
