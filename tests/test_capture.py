"""Capture against NumPy on the tensors themselves, and its two ways of running against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy.artifacts import Capture, PreparedGraph, Samples
from ompq_deploy.capture import capture
from ompq_deploy.capture.histograms import BINS, LARGEST_SHARE, bin_counts, evenly
from ompq_deploy.capture.instrument import bounds
from ompq_deploy.capture.one_pass import exposed, one_pass_model
from ompq_deploy.capture.stream import gram_matrix, groups_below, run_streamed
from ompq_deploy.errors import BadInput
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.prepare import prepare
from ompq_deploy.runtime.sessions import brief_options, start
from tests import models

TOLERANCE = 1e-5


def samples_of(x: np.ndarray, name: str = "x") -> Samples:
    return Samples(inputs={name: x}, labels=None, source="test", sha256="")


def random_samples(graph: PreparedGraph, count: int, seed: int = 0) -> Samples:
    value = graph.model.graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    return samples_of(x, value.name)


def tensors(graph: PreparedGraph, samples: Samples, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The named tensors of all samples, float64, one sample at a time, so that axis 0 is the sample."""
    wanted = [name for name in dict.fromkeys(names) if name not in graph.input_names]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    session = start(model, brief_options())
    runs = [session.run(wanted, dict(feed)) for feed in samples.batches(graph.batch or 1)]
    found = {name: np.concatenate([run[i] for run in runs]) for i, name in enumerate(wanted)}
    return {name: value.astype(np.float64) for name, value in (found | dict(samples.inputs)).items()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_equals_numpy(graph: PreparedGraph, samples: Samples, found: Capture) -> None:
    values = tensors(graph, samples, [*(layer.output for layer in graph.layers), *graph.activations])
    assert set(found.grams) == {layer.name for layer in graph.layers}
    assert set(found.ranges) == set(found.means) == set(graph.activations)
    for layer in graph.layers:
        rows = values[layer.output].reshape(len(samples), -1)
        assert found.grams[layer.name].dtype == np.float64
        assert relative_error(found.grams[layer.name], rows @ rows.T) < TOLERANCE, layer.name
    for name in graph.activations:
        value = values[name]
        np.testing.assert_allclose(found.ranges[name], (value.min(), value.max()), rtol=1e-5, atol=1e-6)
        expected = value.mean(axis=tuple(axis for axis in range(value.ndim) if axis != 1))
        np.testing.assert_allclose(found.means[name], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def graph(residual_model: Path) -> PreparedGraph:
    return prepare(residual_model)


def token_network(tmp_path: Path, tokens_first: bool) -> PreparedGraph:
    """MatMul, Relu, MatMul on (N, 5 tokens, 8 features), or inside on (5, N, features)."""
    g = models.GraphBuilder()
    w1 = g.constant(g.random.standard_normal((8, 6)).astype(np.float32), "w1")
    w2 = g.constant(g.random.standard_normal((6, 7)).astype(np.float32), "w2")
    x = g.node("Transpose", ["x"], "swap", perm=[1, 0, 2]) if tokens_first else "x"
    hidden = g.node("Relu", [g.node("MatMul", [x, w1], "first")], "relu")
    y = g.node("MatMul", [hidden, w2], "second")
    y = g.node("Transpose", [y], "swap_back", perm=[1, 0, 2]) if tokens_first else y
    return prepare(models.save(g.model(["N", 5, 8], y, ["N", 5, 7]), tmp_path / "tokens.onnx"))


def test_one_pass_equals_numpy(graph: PreparedGraph) -> None:
    samples = random_samples(graph, 7)
    found = capture(graph, samples)
    assert not found.streamed
    assert found.count == 7
    assert not found.histograms
    assert_equals_numpy(graph, samples, found)


@pytest.mark.parametrize("limit", [1, 1 << 16, 1 << 30])
def test_streaming_equals_one_pass(graph: PreparedGraph, limit: int) -> None:
    samples = random_samples(graph, 6)
    whole, parts = capture(graph, samples), run_streamed(graph, samples, 0, limit)
    for name, gram in whole.grams.items():
        assert relative_error(parts.grams[name], gram) < TOLERANCE, name
    for name, value_range in whole.ranges.items():
        np.testing.assert_allclose(parts.ranges[name], value_range, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(parts.means[name], whole.means[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "streamed"), [(1, True), (2, True), (4, False)])
def test_fixed_batch(tmp_path: Path, batch: int, streamed: bool) -> None:
    graph = prepare(models.save(models.residual_network(batch=batch), tmp_path / "fixed.onnx"))
    samples = random_samples(graph, 4)
    found = capture(graph, samples)
    assert found.streamed is streamed
    assert_equals_numpy(graph, samples, found)


def test_fixed_batch_that_samples_do_not_fill(tmp_path: Path) -> None:
    graph = prepare(models.save(models.residual_network(batch=2), tmp_path / "fixed.onnx"))
    with pytest.raises(BadInput, match="3 samples do not fill batches of 2"):
        capture(graph, random_samples(graph, 3))


def test_missing_input(graph: PreparedGraph) -> None:
    with pytest.raises(BadInput, match="no array for the graph input 'x'"):
        capture(graph, samples_of(np.zeros((2, 3, 16, 16), np.float32), "images"))


def test_samples_that_the_model_fails_on(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.node("Add", [g.conv("x", "first", 3, 4), g.constant(np.zeros((4, 8, 8), np.float32), "places")], "sum")
    model = g.model(["N", 3, "H", "W"], g.conv(y, "second", 4, 2), ["N", 2, "H", "W"])
    graph = prepare(models.save(model, tmp_path / "m.onnx"))
    with pytest.raises(BadInput, match="cannot run the float model on the samples") as caught:
        capture(graph, samples_of(np.zeros((2, 3, 6, 6), np.float32), "x"))
    assert "--input-shape" in caught.value.fix


@pytest.mark.parametrize("batch", ["N", 1])
def test_a_network_that_overflows_is_refused_by_the_tensor(batch: int | str, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    grown = g.node("Exp", [g.node("Exp", [g.conv("x", "first", 3, 4)], "large")], "overflow")
    model = g.model([batch, 3, 8, 8], g.conv(grown, "second", 4, 2), [batch, 2, 8, 8])
    graph = prepare(models.save(model, tmp_path / "m.onnx"))
    with pytest.raises(BadInput, match="'overflow_out' holds NaN or infinite"):
        capture(graph, samples_of(10 * random_samples(graph, 2).inputs["x"], "x"), histograms=True)


def test_channels_of_tokens_are_the_last_axis(tmp_path: Path) -> None:
    graph = token_network(tmp_path, tokens_first=False)
    samples = random_samples(graph, 4)
    found = capture(graph, samples)
    assert not found.streamed
    assert found.means["x"].shape == (8,)
    np.testing.assert_allclose(found.means["x"], samples.inputs["x"].mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("count", [3, 5])
def test_samples_off_axis_0_are_streamed(tmp_path: Path, count: int) -> None:
    """5 samples of 5 tokens: the shape at run time alone could not tell which axis is the batch."""
    straight, swapped = token_network(tmp_path, tokens_first=False), token_network(tmp_path, tokens_first=True)
    samples = random_samples(straight, count)
    expected, found = capture(straight, samples), capture(swapped, samples)
    assert found.streamed
    for name, gram in expected.grams.items():
        assert relative_error(found.grams[name], gram) < TOLERANCE


@pytest.mark.parametrize("position", [2, 4])
@pytest.mark.parametrize("first", [0.0, 3.0, 6.0])
@pytest.mark.parametrize("extremes", [(0.25, 5.5), (-1.0, 5.5), (0.25, 8.0), (-1.0, 8.0)])
def test_ranges_behind_clip_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int, first: float, extremes: tuple[float, float]
) -> None:
    """One sample, probed or not, holds the extremes, at the bounds or short of them; the first reaches one or none."""
    g = models.GraphBuilder()
    g.constant(np.ones((1, 1, 1, 1), np.float32), "weight")
    zero, six = g.constant(np.array(0, np.float32), "zero"), g.constant(np.array(6, np.float32), "six")
    inside = g.node("Clip", [g.node("Conv", ["x", "weight"], "inner"), zero, six], "clip")
    outside = g.node("Conv", [inside, "weight"], "outer")
    graph = prepare(models.save(g.model(["N", 1, 4, 4], outside, ["N", 1, 4, 4]), tmp_path / "clip.onnx"))
    monkeypatch.setattr("ompq_deploy.capture.instrument.LARGE", 1)
    x = np.full((5, 1, 4, 4), 3, np.float32)
    x[0] = first
    x[position, 0, 0, :2] = extremes
    clipped = np.clip(x, 0, 6)
    assert capture(graph, samples_of(x)).ranges["clip_out"] == (clipped.min(), clipped.max())


def test_bounds(graph: PreparedGraph) -> None:
    index = GraphIndex(graph.model)
    assert bounds(index, "stem_relu_out") == {"min": 0.0}
    assert bounds(index, "depthwise_clip_out") == {"min": 0.0, "max": 6.0}
    assert bounds(index, "project_out") == bounds(index, "x") == {}


def test_only_small_results_leave_the_session(graph: PreparedGraph) -> None:
    count = 12
    model = one_pass_model(*exposed(graph))
    widest = max(layer.channels for layer in graph.layers)
    session = ort.InferenceSession(model.SerializeToString(), brief_options(), providers=["CPUExecutionProvider"])
    results = session.run(None, dict(random_samples(graph, count).inputs))
    assert len(results) == len(graph.layers) + 3 * len(graph.activations)
    assert max(result.size for result in results) <= count * max(count, widest)


def test_taps_follow_the_tensor_they_reduce(graph: PreparedGraph) -> None:
    """No tensor waits for its taps: nothing else runs between a tensor and the last of its taps."""
    nodes = list(one_pass_model(*exposed(graph)).graph.node)
    is_tap = [node.name.startswith("ompq_capture/") for node in nodes]
    made = {name: i for i, node in enumerate(nodes) for name in node.output}
    for i, node in enumerate(nodes):
        if is_tap[i]:
            start_of_run = max(made.get(name, -1) for name in node.input)
            between = [other for j, other in enumerate(nodes[start_of_run + 1 : i], start_of_run + 1) if not is_tap[j]]
            assert all(other.op_type == "ReorderOutput" for other in between)


def test_histograms_count_every_element_of_small_tensors(graph: PreparedGraph) -> None:
    samples = random_samples(graph, 5)
    found = capture(graph, samples, histograms=True)
    values = tensors(graph, samples, graph.activations)
    assert set(found.histograms) == set(graph.activations)
    for name, histogram in found.histograms.items():
        assert histogram.counts.size == 2 * BINS
        assert histogram.counts.sum() == values[name].size
        assert histogram.counts[:BINS].sum() == (values[name] < 0).sum()
        assert histogram.magnitudes[-1] > 0
        assert histogram.limit == max(map(abs, found.ranges[name]))


def test_large_tensors_are_sampled_evenly_over_rows_and_columns() -> None:
    rows, columns = np.indices((256, 256), dtype=np.float32)
    for coordinate in (rows, columns):
        chosen = evenly(coordinate)
        assert LARGEST_SHARE / 2 < chosen.size <= LARGEST_SHARE
        assert abs(chosen.mean() - coordinate.mean()) < 1
        assert len(np.unique(chosen)) == 256


def test_bins() -> None:
    x = np.array([0.0, -0.5, 0.5, 1.0, -2.0, 1.9999], np.float32)
    counts = bin_counts(x, 2.0)
    found = {int(bin_) - BINS: int(counts[bin_]) for bin_ in np.flatnonzero(counts)}
    assert found == {-BINS: 1, -513: 1, 0: 1, 512: 1, 1024: 1, 2047: 1}
    assert bin_counts(np.zeros(9, np.float32), 0.0)[BINS] == 9


def test_gram_of_a_long_row_keeps_its_precision() -> None:
    x = np.random.default_rng(0).random((4, 300_000), dtype=np.float32)
    assert relative_error(gram_matrix(x), x.astype(np.float64) @ x.T.astype(np.float64)) < 1e-6


def test_groups_keep_the_order_and_the_limit() -> None:
    assert groups_below(10, {"a": 4, "b": 6, "c": 1, "d": 30, "e": 2}) == [["a", "b"], ["c"], ["d"], ["e"]]


@pytest.mark.parametrize(
    ("model", "streamed"),
    [("cifar10/vit_small.onnx", False), ("other/yolox_nano.onnx", True), ("other/ultraface_slim320.onnx", True)],
)
def test_networks_as_people_have_them(shared: Callable[[str], Path], model: str, streamed: bool) -> None:
    graph = prepare(shared(f"models/{model}"))
    samples = random_samples(graph, 2)
    found = capture(graph, samples)
    assert found.streamed is streamed
    values = tensors(graph, samples, (layer.output for layer in graph.layers))
    for layer in graph.layers:
        rows = values[layer.output].reshape(2, -1)
        assert relative_error(found.grams[layer.name], rows @ rows.T) < TOLERANCE, layer.name
    assert all(
        low <= found.means[name].min() <= found.means[name].max() <= high for name, (low, high) in found.ranges.items()
    )
