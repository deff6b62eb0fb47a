"""`auto`: the contest of the metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ompq_deploy import torch_graph
from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import BitPlan, Budget, Float32, PreparedGraph, QuantizedGraph, Samples, SizeTable
from ompq_deploy.capture import capture
from ompq_deploy.errors import BackendMissing
from ompq_deploy.evaluate.fidelity import MOST_SAMPLES
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import Reference
from ompq_deploy.metrics import CONTESTANTS, REFINED, Evidence, MetricSettings, round_weights, score
from ompq_deploy.numerics import packed_bytes
from ompq_deploy.pipeline import calibrated_graph
from ompq_deploy.planning import choice, contest
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.quantize.refined_rounding import refined_rounding
from ompq_deploy.runtime.runner import run_samples
from ompq_deploy.settings import PlanSettings
from ompq_deploy.verbs.plan import write_plan
from tests import models
from tests.quantized import inputs

BITS = (2, 3, 4, 6, 8)
Pairs = list[tuple[Samples, Samples]]
FINALISTS = 3


@pytest.fixture
def graph(residual_model: Path) -> PreparedGraph:
    return prepare(residual_model)


def samples_of(graph: PreparedGraph, count: int) -> Samples:
    labels = np.random.default_rng(0).integers(0, 10, count)
    return Samples(inputs=inputs(graph, count), labels=labels, source="test", sha256="")


class Planner:
    """Plans at a mean of 3 bits, kept by metric."""

    def __init__(self, graph: PreparedGraph, samples: Samples) -> None:
        self.graph = graph
        self.parts = contest.split(samples)
        self.rounding = round_weights(graph, BITS)
        grams = contest.captured_rows(capture(graph, samples), self.parts.scored_rows)
        self.evidence = Evidence(
            graph=graph, rounding=self.rounding, samples=self.parts.scored, capture=grams,
            refined=partial(refined_rounding, graph, bits=BITS),
        )  # fmt: skip
        sizes = np.array([[packed_bytes(layer.numel, b) for b in BITS] for layer in graph.layers])
        self.sizes = SizeTable(fixed=0, bytes=sizes)
        self.budget = Budget(size_bytes=sum(packed_bytes(layer.numel, 3) for layer in graph.layers))
        self.plans: dict[str, BitPlan] = {}

    def __call__(self, metric: str) -> BitPlan:
        scores = score(self.evidence, MetricSettings(name=metric))
        self.plans[metric] = allocate(self.graph.layers, scores, self.sizes, self.budget)
        return self.plans[metric]

    def hold(self, metrics: tuple[str, ...] = CONTESTANTS, refine: contest.Refine | None = None) -> contest.Contest:
        return contest.hold_contest(self.graph, self, metrics, self.parts, self.rounding, refine=refine)


def test_the_winner_is_never_worse_than_any_metric_on_the_samples_held_out(graph: PreparedGraph) -> None:
    planner = Planner(graph, samples_of(graph, 32))
    result = planner.hold()
    held_out = planner.parts.held_out
    heads = find_heads(graph, held_out)
    reference = Reference(heads=heads, outputs=run_samples(graph, {}, heads.tensors, held_out))

    def loss(plan: BitPlan) -> float:
        weights = {name: planner.rounding.rounded(name, b) for name, b in plan.bits().items()}
        return reference.distance(run_samples(graph, weights, heads.tensors, held_out))

    measured = {metric: loss(plan) for metric, plan in planner.plans.items()}
    assert len(set(measured.values())) > 2, "the metrics all agree, so there is no contest"
    assert loss(result.plan) == min(measured.values())
    assert {entry.metric for entry in result.entries} == set(CONTESTANTS)
    for entry in result.entries:
        if entry.metric in measured:
            assert entry.loss == pytest.approx(measured[entry.metric])
            assert entry.size_bytes == planner.plans[entry.metric].size_bytes <= planner.budget.size_bytes
    assert result.plan.metric in measured


def test_finalists_are_decided_refined(graph: PreparedGraph) -> None:
    """A refinement under which the third best is perfect makes it win, and leaves the others' figures as they were."""
    planner = Planner(graph, samples_of(graph, 32))
    rounded = planner.hold()
    losses = {entry.loss for entry in rounded.entries if entry.loss is not None}
    third = sorted(losses)[FINALISTS - 1]
    favourite = next(entry.metric for entry in rounded.entries if entry.loss == third)
    refined: list[tuple[int, ...]] = []

    def outputs(plan: BitPlan, tensors: Sequence[str]) -> list[Float32]:
        refined.append(tuple(plan.bits().values()))
        perfect = plan.bits() == planner.plans[favourite].bits()
        weights = {} if perfect else {name: planner.rounding.rounded(name, 2) for name in plan.bits()}
        return run_samples(graph, weights, tensors, planner.parts.held_out)

    result = planner.hold(refine=contest.Refine(samples=planner.parts.held_out, outputs=outputs, finalists=FINALISTS))
    assert result.plan.bits() == planner.plans[favourite].bits()
    assert len(refined) == len(set(refined)) == FINALISTS
    assert [entry.loss for entry in result.entries] == [entry.loss for entry in rounded.entries]
    finalists = {entry.metric: entry.refined_loss for entry in result.entries if entry.refined_loss is not None}
    assert finalists[favourite] == 0
    assert {entry.metric for entry in rounded.entries if entry.loss is not None and entry.loss <= third} == set(
        finalists
    )


def test_a_plan_that_reckons_with_refinement_is_refined_whatever_its_rank(graph: PreparedGraph) -> None:
    planner = Planner(graph, samples_of(graph, 32))
    rounded = planner.hold()
    ranked = sorted((e for e in rounded.entries if e.loss is not None), key=lambda e: e.loss or 0)
    last = ranked[-1].metric

    def outputs(plan: BitPlan, tensors: Sequence[str]) -> list[Float32]:
        perfect = plan.bits() == planner.plans[last].bits()
        weights = {} if perfect else {name: planner.rounding.rounded(name, 2) for name in plan.bits()}
        return run_samples(graph, weights, tensors, planner.parts.held_out)

    for seeded, winner in (((), ranked[0].metric), ((last,), last)):
        refine = contest.Refine(samples=planner.parts.held_out, outputs=outputs, finalists=1, seeded=seeded)
        assert planner.hold(refine=refine).plan.bits() == planner.plans[winner].bits()


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    """What contests of refined plans round by and judge by, as they are held."""
    pairs: Pairs = []
    quantize, run_model = choice.quantize, choice.run_model

    def refining(*args: Any, samples: Samples, **settings: Any) -> QuantizedGraph:
        pairs.append((samples, samples))
        return quantize(*args, samples=samples, **settings)

    def judging(model: Any, tensors: Any, samples: Samples, *rest: Any) -> list[Float32]:
        pairs[-1] = (pairs[-1][0], samples)
        return run_model(model, tensors, samples, *rest)

    monkeypatch.setattr(choice, "quantize", refining)
    monkeypatch.setattr(choice, "run_model", judging)
    return pairs


@pytest.mark.parametrize("small", [True, False])
def test_the_whole_job_judges_every_sample_by_integers_that_have_not_seen_it(
    small: bool,
    residual_model: Path,
    tmp_path: Path,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = prepare(residual_model)
    np.savez(tmp_path / "calib.npz", **samples_of(graph, 32).inputs)
    monkeypatch.setattr(choice, "SMALL", 4e9 if small else 0)
    found = {}
    for effort in ("quick", "default"):
        settings = PlanSettings(size="10%", size_of="weights", bits=BITS, samples=32, calib=tmp_path / "calib.npz")
        settings = replace(settings, quantize=QuantizeSettings(effort=effort))
        write_plan(residual_model, settings, tmp_path / effort)
        found[effort] = json.loads((tmp_path / effort / "plan.json").read_text())["contest"]
        assert bool(pairs) == (effort == "default")
    assert [e["metric"] for e in found["quick"]["entries"]] == [m for m in CONTESTANTS if m != REFINED]
    assert [e["metric"] for e in found["default"]["entries"]] == [m for m in CONTESTANTS if small or m != "kl"]
    rounds = 4 if small else 1
    for seen, unseen in pairs:
        assert (len(seen), len(unseen)) == (24, 8)
        assert len(np.unique(np.concatenate([seen.inputs["x"], unseen.inputs["x"]]), axis=0)) == 32
    for i in range(0, len(pairs), rounds):
        judged = np.concatenate([unseen.inputs["x"] for _, unseen in pairs[i : i + rounds]])
        assert len(np.unique(judged, axis=0)) == 8 * rounds
    assert found["default"]["refined_samples"] == 8 * rounds
    assert found["quick"]["refined_samples"] is None
    assert all(entry["refined_loss"] is None for entry in found["quick"]["entries"])
    refined = {e["metric"]: e["refined_loss"] for e in found["default"]["entries"] if e["refined_loss"] is not None}
    assert found["default"]["winner"] == min(refined, key=refined.__getitem__)


@pytest.mark.parametrize(
    ("small", "further", "sizes", "judges"),
    [
        (True, 40, (32, 40), 40),
        (True, 300, (32, 256), 256),
        (True, 20, (24, 8), 32),
        (False, 20, (32, 20), 20),
        (False, 40, (32, 32), 32),
        (False, 5, (24, 8), 8),
    ],
)
def test_further_samples_judge_where_they_are_more_than_can_be_left_out(
    small: bool,
    further: int,
    sizes: tuple[int, int],
    judges: int,
    residual_model: Path,
    tmp_path: Path,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each plan is refined once then; on small networks every plan is."""
    graph = prepare(residual_model)
    np.savez(tmp_path / "calib.npz", **samples_of(graph, 32 + further + MOST_SAMPLES).inputs)
    monkeypatch.setattr(choice, "SMALL", 4e9 if small else 0)
    settings = PlanSettings(size="10%", size_of="weights", bits=BITS, calib=tmp_path / "calib.npz")
    settings = replace(settings, samples=32, rounding_samples=512)
    contest = write_plan(residual_model, settings, tmp_path / "out")["contest"]
    assert {(len(seen), len(unseen)) for seen, unseen in pairs} == {sizes}
    both = np.concatenate([part.inputs["x"] for part in pairs[0]])
    assert len(np.unique(both, axis=0)) == sum(sizes)
    assert contest["refined_samples"] == judges
    held = [entry for entry in contest["entries"] if not entry["skipped"]]
    assert all(entry["refined_loss"] for entry in held) == (small and further > 32)


def test_with_few_samples_and_no_others_the_best_plans_alone_are_refined(
    residual_model: Path, tmp_path: Path, pairs: Pairs
) -> None:
    np.savez(tmp_path / "calib.npz", **samples_of(prepare(residual_model), 8).inputs)
    settings = PlanSettings(size="10%", size_of="weights", bits=BITS, calib=tmp_path / "calib.npz", samples=8)
    write_plan(residual_model, settings, tmp_path / "out")
    assert len(pairs) <= choice.FINALISTS["default"] + 1


@pytest.mark.parametrize(
    ("effort", "large", "wanted"), [("default", 0, False), ("extensive", 0, True), ("default", 1e11, True)]
)
def test_further_samples_are_loaded_for_a_plan_where_any_is_refined(
    effort: str, large: float, wanted: bool, residual_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "calib.npz", **samples_of(prepare(residual_model), 60).inputs)
    monkeypatch.setattr(choice, "LARGE", large)
    settings = PlanSettings(size="10%", calib=tmp_path / "calib.npz", samples=32, rounding_samples=512)
    settings = replace(settings, quantize=QuantizeSettings(effort=effort))
    assert (calibrated_graph(residual_model, settings, quantizing=False).further is not None) == wanted
    assert calibrated_graph(residual_model, settings).further is not None


def test_without_torch_it_goes_on_with_the_rest_and_says_so(
    graph: PreparedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    planner = Planner(graph, samples_of(graph, 16))
    result = planner.hold()
    skipped = {entry.metric: entry.skipped for entry in result.entries if entry.skipped}
    assert set(skipped) == {"mpqco", "hawq"}
    assert all("torch is not installed" in reason for reason in skipped.values())
    assert result.plan.metric not in skipped


def test_where_every_metric_fails_the_reason_is_raised(graph: PreparedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="torch"):
        Planner(graph, samples_of(graph, 16)).hold(("mpqco", "hawq"))


def test_the_samples_of_the_contest_are_not_those_of_the_scores(graph: PreparedGraph) -> None:
    samples = samples_of(graph, 64)
    parts = contest.split(samples)
    assert (len(parts.scored), len(parts.held_out)) == (48, 16)
    together = np.concatenate([parts.scored.inputs["x"], parts.held_out.inputs["x"]])
    assert len(np.unique(together, axis=0)) == 64
    assert parts.scored.labels is not None
    assert samples.labels is not None
    np.testing.assert_array_equal(parts.scored.labels, samples.labels[list(parts.scored_rows)])
    assert parts.note == ""


def test_a_few_samples_are_shared_and_the_record_says_so(graph: PreparedGraph) -> None:
    parts = contest.split(samples_of(graph, 8))
    assert len(parts.scored) == len(parts.held_out) == 8
    assert "fewer than 16 samples" in parts.note


def test_the_grams_of_the_scored_samples_are_those_a_capture_of_them_alone_gives(graph: PreparedGraph) -> None:
    samples = samples_of(graph, 16)
    parts = contest.split(samples)
    whole = contest.captured_rows(capture(graph, samples), parts.scored_rows)
    alone = capture(graph, parts.scored)
    for layer in graph.layers:
        np.testing.assert_allclose(whole.grams[layer.name], alone.grams[layer.name], rtol=1e-4, atol=1e-3)


def test_the_plan_records_the_whole_contest(residual_model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    settings = PlanSettings(size="10KB", bits=BITS, calib=tmp_path / "data.npz")
    write_plan(residual_model, settings, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "plan.json").read_text())
    record = document["contest"]
    assert document["metric"] == "auto"
    assert document["metric_chosen"] == record["winner"]
    assert (record["scored_samples"], record["held_out_samples"]) == (24, 8)
    assert [entry["metric"] for entry in record["entries"]] == list(CONTESTANTS)
    decisive = {e["metric"]: e["refined_loss"] for e in record["entries"] if e["refined_loss"] is not None}
    assert decisive[record["winner"]] == min(decisive.values())
    assert set(document["timings"]) >= {"contest_s", "score_s", "solve_s"}


def test_no_metric_is_asked_where_the_widest_widths_fit(residual_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **samples_of(prepare(residual_model), 32).inputs)
    settings = PlanSettings(size="100%", bits=BITS, calib=tmp_path / "calib.npz")
    document = write_plan(residual_model, settings, tmp_path / "out")
    assert {layer["weight_bits"] for layer in document["layers"]} == {max(BITS)}
    assert document["contest"] is None
    assert "no metric was asked" in document["metric_note"]


def test_a_network_too_large_to_refine_takes_the_plan_that_reckons_with_it(
    residual_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "calib.npz", **samples_of(prepare(residual_model), 32).inputs)
    monkeypatch.setattr(choice, "SMALL", 0)
    monkeypatch.setattr(choice, "LARGE", 0)
    monkeypatch.setattr(choice, "quantize", None)  # whoever refines a plan fails
    settings = PlanSettings(size="10%", size_of="weights", bits=BITS, samples=32, calib=tmp_path / "calib.npz")
    document = write_plan(residual_model, settings, tmp_path / "out")
    record = document["contest"]
    assert document["metric_chosen"] == record["winner"] == REFINED
    assert all(entry["refined_loss"] is None for entry in record["entries"])
    assert record["refined_samples"] is None
    assert f"that of {REFINED} is taken" in record["note"]


def test_it_tells_how_far_it_has_come(residual_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **samples_of(prepare(residual_model), 32).inputs)
    settings = PlanSettings(size="10%", size_of="weights", bits=BITS, samples=32, calib=tmp_path / "calib.npz")
    told: list[str] = []
    write_plan(residual_model, settings, tmp_path / "out", lambda name, _: told.append(name))
    assert "contest: orm" in told
    layers = len(prepare(residual_model).layers)
    assert {f"contest: kl-refined: measuring layer {i}/{layers}" for i in range(1, layers + 1)} <= set(told)
    assert any(name.startswith("contest: plan of kl-refined: rounding, part 2/") for name in told)


def test_work_counts_samples_and_covariances(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    pooled = g.node("GlobalAveragePool", [g.conv("x", "depthwise", 4, 4, groups=4)], "pool")
    y = g.gemm(g.node("Flatten", [pooled], "flat"), "last", 4, 10)
    graph = prepare(models.save(g.model(["N", 4, 6, 5], y, ["N", 10]), tmp_path / "m.onnx"))
    assert choice.work(graph, 7) == 7 * (4 * 9 * 6 * 5 + 40) + 4 * 9**3 + 4**3
