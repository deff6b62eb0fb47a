"""Reconstruction never makes a block worse, ends early where nothing is to be won, and goes on where it was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from onnx import helper

from ompq_deploy import torch_graph
from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.numerics import signed_range
from ompq_deploy.quantize import QuantizeSettings, quantize
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE, ReconstructSettings, reconstruct_blocks
from ompq_deploy.quantize.reconstruct.blocks import find_blocks
from tests import models
from tests.test_quantize import uniform_plan
from tests.test_refine import output_error, prepared, run, smooth_samples, varied_network

QUICK = ReconstructSettings(iterations=20, threads=1)
Network = Callable[[], onnx.ModelProto]


def test_without_torch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    with pytest.raises(BackendMissing, match=r"ompq-deploy\[torch\]"):
        quantize(graph, captured, uniform_plan(graph, 4), QuantizeSettings(effort="extensive"), samples=samples)


torch = pytest.importorskip("torch")
from ompq_deploy.quantize.reconstruct import learn, soft, walk  # noqa: E402
from ompq_deploy.quantize.reconstruct.adaround import LearnedRounding, beta_at  # noqa: E402
from ompq_deploy.quantize.reconstruct.block import BlockNetwork  # noqa: E402
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph  # noqa: E402
from ompq_deploy.torch_graph.graph import TorchGraph  # noqa: E402


def chain() -> onnx.ModelProto:
    """Three blocks of one small layer."""
    g = models.GraphBuilder(2)
    x = g.node("Relu", [g.conv("x", "first", 3, 6, strides=[2, 2])], "first_relu")
    x = g.node("Relu", [g.conv(x, "second", 6, 8)], "second_relu")
    pooled = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool")], "flatten")
    return g.model(["N", 3, 8, 8], g.gemm(pooled, "fc", 8, 6), ["N", 6])


def long_chain() -> onnx.ModelProto:
    """Seven blocks of one small layer."""
    g = models.GraphBuilder(2)
    x = "x"
    for i in range(6):
        x = g.node("Relu", [g.conv(x, f"conv{i}", 6, 6)], f"relu{i}")
    pooled = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool")], "flatten")
    return g.model(["N", 6, 6, 6], g.gemm(pooled, "fc", 6, 6), ["N", 6])


@cache
def started(network: Network = chain, bits: int = 3, bias_correction: bool = True) -> tuple[QuantizedGraph, Samples]:
    """The integers of the default effort, and some of the samples they were made with."""
    settings = QuantizeSettings(bias_correction=bias_correction)
    with TemporaryDirectory() as folder:
        graph, samples, captured = prepared(network(), Path(folder))
        start = quantize(graph, captured, uniform_plan(graph, bits), settings, samples=samples)
    return start, replace(samples, inputs={name: x[:20] for name, x in samples.inputs.items()})


def same(a: QuantizedGraph, b: QuantizedGraph) -> bool:
    return a.grids == b.grids and all(
        np.array_equal(x.codes, y.codes)
        and np.array_equal(x.scale, y.scale)
        and all(np.array_equal(bias, y.biases[node]) for node, bias in x.biases.items())
        for x, y in zip(a.layers, b.layers, strict=True)
    )


def block_error(quantized: QuantizedGraph, samples: Samples, outputs: tuple[str, ...]) -> float:
    """Squared difference from the float network at some tensors inside."""
    feeds = {name: torch.from_numpy(value) for name, value in samples.inputs.items()}
    with torch.no_grad():
        found = FakeQuantGraph(quantized)(feeds, outputs)
    exact = TorchGraph(quantized.graph)(feeds, outputs=outputs)
    return sum(float((found[name] - exact[name]).square().sum()) for name in outputs)


def output_distance(quantized: QuantizedGraph, samples: Samples) -> float:
    return block_error(quantized, samples, tuple(quantized.graph.output_names))


class Recorder:
    """Stands for `learn`, notes what it returns, and stops the run after so many blocks."""

    def __init__(self, most: int = 1000) -> None:
        self.found: list[learn.Learned] = []
        self._most = most
        self._learn = learn.learn

    def __call__(self, *arguments: object) -> learn.Learned:
        if len(self.found) == self._most:
            raise KeyboardInterrupt
        self.found.append(self._learn(*arguments))
        return self.found[-1]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_begins_with_the_codes_and_moves_by_one_at_most(bits: int) -> None:
    low, high = signed_range(bits)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(low, high + 1, (1000,), generator=generator).float()
    weight = codes + 3 * torch.randn(1000, generator=generator)
    rounding = LearnedRounding(codes, weight, low, high)
    torch.testing.assert_close(rounding.hard(), codes)
    rounding.v.data = 10 * torch.randn(1000, generator=generator)
    hard = rounding.hard()
    assert low <= hard.min() <= hard.max() <= high
    assert (hard - codes).abs().max() <= 1
    moved = hard != codes
    assert moved.any()
    assert ((hard - codes)[moved] * (weight - codes)[moved] > 0).all()


def test_indecision_is_zero_for_integers_only() -> None:
    rounding = LearnedRounding(torch.zeros(4), torch.full((4,), 0.4), -8, 7)
    assert rounding.indecision(beta_at(1.0)) > 0
    rounding.v.data = torch.tensor([9.0, -9.0, 9.0, -9.0])
    assert rounding.indecision(beta_at(0.0)) == 0
    assert beta_at(0.0) > beta_at(0.5) > beta_at(1.0) > 1


@pytest.mark.parametrize(
    ("network", "loss"),
    [(models.residual_network, "squared"), (models.residual_network, "fisher"), (varied_network, "squared")],
)
def test_no_block_gets_worse(network: Network, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started(network)
    monkeypatch.setattr(walk, "learn", recorder := Recorder())
    found = reconstruct_blocks(start, samples, replace(QUICK, iterations=50, loss=loss))
    assert all(block.after <= block.before for block in recorder.found)
    first = find_blocks(start.graph)[0].outputs
    assert loss == "fisher" or block_error(found, samples, first) <= block_error(start, samples, first)
    for before, after in zip(start.layers, found.layers, strict=True):
        low, high = signed_range(before.bits)
        assert low <= after.codes.min() <= after.codes.max() <= high
        assert np.abs(after.codes.astype(int) - before.codes).max() <= 1
        assert after.bits == before.bits


class Scaled:
    """Stands for `learn`: multiplies the scale of the block's first layer, and claims that this lowered its error."""

    def __init__(self, factor: float) -> None:
        self.seen: list[str] = []
        self._factor = factor

    def __call__(self, part: BlockNetwork, *_: object) -> learn.Learned:
        self.seen.append(part.block.name)
        with torch.no_grad():
            for i in part.layers[:1]:
                part.network.scales[i] *= self._factor
                part.network.weights[i] *= self._factor
        return learn.Learned(before=1.0, after=0.0, steps=1)


def test_what_moves_the_outputs_away_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    monkeypatch.setattr(walk, "learn", Scaled(1.5))
    assert same(reconstruct_blocks(start, samples, QUICK), start)


def test_what_brings_the_outputs_back_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    off = replace(start, layers=tuple(replace(q, scale=q.scale / np.float32(2)) for q in start.layers))
    monkeypatch.setattr(walk, "learn", Scaled(2.0))
    found = reconstruct_blocks(off, samples, QUICK)
    restored = [
        bool(np.array_equal(q.scale, before.scale)) for q, before in zip(found.layers, start.layers, strict=True)
    ]
    assert any(restored)
    assert output_distance(found, samples) < output_distance(off, samples)


def test_chance_is_not_taken_for_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that helps as many held-out samples as it harms is undone."""
    start, samples = started()
    measured = iter([np.array([1.0, 1.0, 1.0, 1.0]), *[np.array([0.5, 1.4, 0.5, 1.4])] * 9])
    monkeypatch.setattr(walk._Judge, "_measured", lambda *_: next(measured))
    monkeypatch.setattr(walk, "learn", Scaled(1.5))
    assert same(reconstruct_blocks(start, samples, QUICK), start)


def test_the_walk_begins_with_the_last_block_and_ends_where_it_is_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started(long_chain)
    monkeypatch.setattr(walk, "learn", harmful := Scaled(1.5))
    reconstruct_blocks(start, samples, QUICK)
    blocks = [block.name for block in find_blocks(start.graph)]
    assert len(blocks) > walk.IN_VAIN
    assert harmful.seen == blocks[: -walk.IN_VAIN - 1 : -1]


def test_what_is_kept_lets_the_walk_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started(long_chain)
    monkeypatch.setattr(walk, "learn", learned := Scaled(1.5))
    monkeypatch.setattr(walk._Judge, "gains", lambda self, number: number % walk.IN_VAIN == 0)
    reconstruct_blocks(start, samples, QUICK)
    assert learned.seen == [block.name for block in find_blocks(start.graph)][::-1]


def test_only_the_last_blocks_are_tried_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    monkeypatch.setattr(walk, "MOST_NUMBERS", 1)
    monkeypatch.setattr(walk, "learn", learned := Scaled(1.5))
    reconstruct_blocks(start, samples, QUICK)
    assert learned.seen == [find_blocks(start.graph)[-1].name]


def early_head() -> onnx.ModelProto:
    """A head made by the first block, which nothing else reads, and one by the last."""
    g = models.GraphBuilder(3)
    x = g.node("Relu", [g.conv("x", "first", 3, 6, strides=[2, 2])], "first_relu")
    early = g.conv(x, "early", 6, 2)
    late = g.conv(g.node("Relu", [g.conv(x, "second", 6, 8)], "second_relu"), "late", 8, 2)
    model = g.model(["N", 3, 8, 8], late, ["N", 2, 4, 4])
    model.graph.output.append(helper.make_tensor_value_info(early, onnx.TensorProto.FLOAT, ["N", 2, 4, 4]))
    return model


@pytest.mark.parametrize("loss", ["squared", "fisher"])
def test_a_head_made_early_is_compared_too(loss: str) -> None:
    start, samples = started(early_head)
    found = reconstruct_blocks(start, samples, replace(QUICK, loss=loss))
    assert output_distance(found, samples) <= output_distance(start, samples)


def test_learning_lowers_the_error_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    monkeypatch.setattr(walk, "learn", recorder := Recorder())
    monkeypatch.setattr(walk._Judge, "gains", lambda *_: True)
    found = reconstruct_blocks(start, samples, replace(QUICK, iterations=150))
    assert min(block.after / block.before for block in recorder.found) < 0.98
    assert any((a.codes != b.codes).any() for a, b in zip(start.layers, found.layers, strict=True))


def test_a_block_that_cannot_improve_ends_early_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without learning rates nothing changes, so no window improves."""
    for name in ("ROUNDING_RATE", "RATIO_RATE", "BIAS_RATE"):
        monkeypatch.setattr(soft, name, 0.0)
    monkeypatch.setattr(learn, "WINDOW", 5)
    monkeypatch.setattr(walk, "learn", recorder := Recorder())
    start, samples = started()
    found = reconstruct_blocks(start, samples, replace(QUICK, iterations=60))
    assert all(block.steps < 60 for block in recorder.found)
    assert same(found, FakeQuantGraph(start).quantized())


def test_the_qdq_model_computes_what_was_learned() -> None:
    start, samples = started(models.residual_network, 4)
    found = reconstruct_blocks(start, samples, QUICK)
    feeds = {name: torch.from_numpy(value) for name, value in samples.inputs.items()}
    (outputs,) = (value.detach().numpy() for value in FakeQuantGraph(found)(feeds).values())
    expected = run(qdq_model(found), samples, len(samples), as_written=True)
    assert np.abs(outputs - expected).max() <= 0.02 * np.abs(expected).max()
    assert np.median(np.abs(outputs - expected)) <= 1e-5 * np.abs(expected).max()


def test_the_same_seed_gives_the_same_integers() -> None:
    start, samples = started()
    settings = replace(QUICK, drop=0.5, loss="fisher", seed=3)
    assert same(reconstruct_blocks(start, samples, settings), reconstruct_blocks(start, samples, settings))


def test_random_bytes_are_uniform_and_independent() -> None:
    draws = soft.random_bytes(torch.Size((125, 8, 257)), torch.Generator().manual_seed(0))
    assert draws.shape == (125, 8, 257)
    counts = np.bincount(draws.numpy().ravel(), minlength=256)
    chi_squared = np.square(counts - 257_000 / 256).sum() / (257_000 / 256)
    assert chi_squared < 330  # of 255 degrees of freedom, beyond the 0.999 quantile
    assert abs(np.corrcoef(draws.numpy().ravel()[:-1], draws.numpy().ravel()[1:])[0, 1]) < 0.01
    for place in range(8):  # of the byte within its draw
        assert abs(draws.numpy().ravel()[place::8].mean() - 127.5) < 2


def test_copies_of_a_sample_held_out_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    batches: list[int] = []
    draw = learn._Batches.draw

    def noted(self: learn._Batches) -> list[torch.Tensor]:
        pieces = draw(self)
        batches.extend(int(row) for piece in pieces for row in piece)
        return pieces

    monkeypatch.setattr(learn._Batches, "draw", noted)
    reconstruct_blocks(
        start, replace(samples, layout="NCHW"), replace(QUICK, augment="flip+crop", rows=3 * len(samples))
    )
    learned_from = {row for row in range(3 * len(samples)) if row % len(samples) % learn.HELD_OUT}
    assert set(batches) == learned_from


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"drop": 1.0}, {"loss": "absolute"}, {"rows": 0}, {"iterations": 0}):
        with pytest.raises(BadInput, match="cannot be used"):
            ReconstructSettings(**wrong)


def test_a_killed_run_goes_on_to_the_same_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, samples = started()
    monkeypatch.setattr(walk, "learn", every := Recorder())
    whole = reconstruct_blocks(start, samples, QUICK)
    checkpoint = tmp_path / CHECKPOINT_FILE
    monkeypatch.setattr(walk, "learn", Recorder(most=2))
    with pytest.raises(KeyboardInterrupt):
        reconstruct_blocks(start, samples, QUICK, checkpoint=checkpoint)
    monkeypatch.setattr(walk, "learn", rest := Recorder())
    assert same(reconstruct_blocks(start, samples, QUICK, checkpoint=checkpoint), whole)
    assert len(rest.found) == len(every.found) - 2


@pytest.mark.parametrize("damaged", [False, True])
def test_the_checkpoint_of_another_run_is_not_used(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, samples = started()
    checkpoint = tmp_path / CHECKPOINT_FILE
    reconstruct_blocks(start, samples, replace(QUICK, seed=1), checkpoint=checkpoint)
    if damaged:
        checkpoint.write_bytes(b"half of a file")
    monkeypatch.setattr(walk, "learn", recorder := Recorder())
    found = reconstruct_blocks(start, samples, QUICK, checkpoint=checkpoint)
    assert len(recorder.found) > 0
    assert same(found, reconstruct_blocks(start, samples, QUICK))


def test_a_checkpoint_is_bound_to_model_samples_integers_and_settings() -> None:
    start, samples = started()
    own = walk.identity(start, samples, QUICK)
    others = [
        walk.identity(started(varied_network)[0], samples, QUICK),
        walk.identity(start, replace(samples, sha256="other"), QUICK),
        walk.identity(start, replace(samples, layout="NCHW"), QUICK),
        walk.identity(started(bits=4)[0], samples, QUICK),
        walk.identity(start, samples, replace(QUICK, seed=1)),
    ]
    assert all(other != own for other in others)


def test_progress_tells_blocks_and_time_left() -> None:
    start, samples = started()
    told: list[str] = []
    reconstruct_blocks(start, samples, replace(QUICK, iterations=10), tell=lambda text, seconds: told.append(text))
    assert [text.split()[1] for text in told] == ["1/3", "2/3", "3/3"]
    assert told[-1].endswith("0:00 left")


def test_biases_that_may_not_move_stay() -> None:
    start, samples = started(bias_correction=False)
    found = reconstruct_blocks(start, samples, replace(QUICK, biases=False))
    for a, b in zip(start.layers, found.layers, strict=True):
        for node, bias in a.biases.items():
            np.testing.assert_array_equal(bias, b.biases[node])


def test_the_effort_hands_its_settings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, samples, captured = prepared(models.residual_network(), tmp_path)
    calls: list[tuple[ReconstructSettings, Path]] = []

    def noted(
        start: QuantizedGraph, _: Samples, settings: ReconstructSettings, *, checkpoint: Path, tell: None
    ) -> QuantizedGraph:
        calls.append((settings, checkpoint))
        return start

    monkeypatch.setattr("ompq_deploy.quantize.reconstruct_blocks", noted)
    settings = QuantizeSettings(
        effort="extensive", bias_correction=False, reconstruct_loss="fisher", reconstruct_drop=0.25
    )
    quantize(
        graph, captured, uniform_plan(graph, 4), settings, samples=samples, seed=5, threads=1, checkpoint=tmp_path / "x"
    )
    assert calls == [(ReconstructSettings(loss="fisher", drop=0.25, biases=False, seed=5, threads=1), tmp_path / "x")]


def fixed_batch() -> onnx.ModelProto:
    return models.residual_network(4)


def test_a_fixed_batch() -> None:
    start, _ = started(fixed_batch)
    samples = smooth_samples(start.graph, count=18)
    found = reconstruct_blocks(start, samples, replace(QUICK, loss="fisher"))
    assert output_error(found, smooth_samples(start.graph, count=16)) < 1.5 * output_error(
        start, smooth_samples(start.graph, count=16)
    )
