"""`auto`: solve under every metric, and keep the plan whose outputs differ least from the float network.

    winner = argmin over metrics of  d(f(x; w), f(x; Q(w)))          mean over samples that no metric has seen

Q(w) are the weights rounded as the plan says; d is the root of the output KL, or the relative error of the head that
errs most (`distance` in `evaluate/heads.py`, which says why the root). Every fourth sample is held out; with fewer than
`FEWEST_TO_SPLIT` samples the metrics and the contest share them all, and the record says so.

Where the run will refine its rounding, that is what decides: the best plans are refined on three quarters of the
samples, those that the metrics saw, and d of the whole quantized network counts, for a classifier at the temperature
`SOFTENED`. On small networks each quarter is left out in turn, so that all samples decide (`folds`); where the
data hold more samples than that, plans are refined once, by all that calibrate, and further ones decide. Refinement
undoes most of what rounding to nearest costs, and not the same share for every plan: on MobileNetV2 at a mean of 4.2
bits the plan of `mpqco` is the best of five when rounded (0.44) and `orm`'s third (0.59); refined they are at 0.27
and 0.20, and so they are on other images. What is left is so small that at temperature 1 one or two unsure samples
decide: over five contests of five to seven plans (ResNet-20, MobileNetV2) the winner's d on other images was 10 %
above the best plan's at 1, 6 % at 4, and the rank correlation 0.58 and 0.79. Over three contests of seven (ResNet-20,
ResNet-8) one quarter ranked 0.79, 0.82 and 0.75 and once took a plan of 35 % more KL; all four 0.89, 0.96 and 0.75.
Over seven other contests of eight (ResNet-20 at 3 to 5 bits, ResNet-8 at 3 and 4) the winner's KL on other images was
17 % above the best plan's by four quarters, 12 % by 128 further samples and 7 % by 256, in a third of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import BitPlan, Capture, Float32, PreparedGraph, Samples
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import SOFTENED, Reference
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runtime.batches import select
from ompq_deploy.runtime.runner import run_samples

HELD_OUT_EVERY = 4
FEWEST_TO_SPLIT = 16
UNREFINED_NOTE = "the network is too large to refine plans for the contest: that of {} is taken"
SHARED_NOTE = f"fewer than {FEWEST_TO_SPLIT} samples: metrics were scored, and rounded plans compared, on the same ones"


Widths = tuple[int, ...]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples the metrics see, those the contest is decided on, and their places among all samples."""

    scored: Samples
    held_out: Samples
    scored_rows: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Refine:
    """`outputs(plan, tensors)` are some tensors of the float network as a plan's quantized network computes them on
    `samples`, samples on axis 0. The integers that compute a sample's must not come from it.

    The best `finalists` are refined, and the plans of the metrics `seeded`, which reckon with refinement; where that
    leaves one plan, it wins as it is.
    """

    samples: Samples
    outputs: Callable[[BitPlan, Sequence[str]], Sequence[Float32]]
    finalists: int
    seeded: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One metric: the loss of its plan on the held-out samples, rounded and, for a finalist, refined; or why there is
    none. `seconds` to score, solve and measure; a plan equal to an earlier one is not measured again."""

    metric: str
    loss: float | None
    size_bytes: int | None
    seconds: float
    skipped: str = ""
    refined_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The winning plan and the whole contest. `measure` names d; `refined_on` samples decided between finalists."""

    plan: BitPlan
    entries: tuple[Entry, ...]
    measure: str
    scored: int
    held_out: int
    refined_on: int | None
    note: str

    def document(self) -> dict[str, Any]:
        """The contest as JSON values, for plan.json."""
        return {
            "measure": self.measure,
            "scored_samples": self.scored,
            "held_out_samples": self.held_out,
            "refined_samples": self.refined_on,
            "note": self.note,
            "winner": self.plan.metric,
            "entries": [asdict(entry) for entry in self.entries],
        }


def split(samples: Samples) -> Split:
    """Every fourth sample held out."""
    ((scored, held_out),) = folds(len(samples), every=False)
    return Split(
        scored=select(samples, scored),
        held_out=select(samples, held_out),
        scored_rows=tuple(scored.tolist()),
        note=SHARED_NOTE if len(scored) == len(samples) else "",
    )


def folds(count: int, *, every: bool) -> list[tuple[Rows, Rows]]:
    """Places of the samples to refine with and of those to judge by, of `count`: those of `split`, or with `every` each
    quarter left out in turn."""
    rows = np.arange(count)
    if count < FEWEST_TO_SPLIT:
        return [(rows, rows)]
    quarters = [rows % HELD_OUT_EVERY == i for i in range(0 if every else HELD_OUT_EVERY - 1, HELD_OUT_EVERY)]
    return [(rows[~quarter], rows[quarter]) for quarter in quarters]


def captured_rows(capture: Capture, rows: Sequence[int]) -> Capture:
    """The capture with the Gram matrices of some of its samples; everything else as it is."""
    chosen = np.ix_(rows, rows)
    return replace(capture, grams={name: gram[chosen] for name, gram in capture.grams.items()})


def hold_contest(
    graph: PreparedGraph,
    solve: Callable[[str], BitPlan],
    metrics: Sequence[str],
    samples: Split,
    rounding: Rounding,
    *,
    refine: Refine | None = None,
    threads: int = 0,
) -> Contest:
    """Plans by `solve` under each of `metrics`, measured on the held-out samples, the best of them refined.

    A metric that lacks torch, or cannot use the samples, is skipped with its reason. Raises what the last metric
    raised where all are.
    """
    heads = find_heads(graph, samples.scored, threads)
    reference = Reference(heads=heads, outputs=run_samples(graph, {}, heads.tensors, samples.held_out, threads))
    rounded: dict[Widths, float] = {}
    plans: dict[str, BitPlan] = {}
    entries: list[Entry] = []
    failure: BackendMissing | BadInput | None = None
    for metric in metrics:
        started = time.perf_counter()
        try:
            plan = solve(metric)
        except (BackendMissing, BadInput) as e:
            failure = e
            entries.append(Entry(metric=metric, loss=None, size_bytes=None, seconds=_since(started), skipped=e.what))
            continue
        widths = _widths(plan)
        if widths not in rounded:
            weights = {name: rounding.rounded(name, b) for name, b in plan.bits().items()}
            outputs = run_samples(graph, weights, heads.tensors, samples.held_out, threads)
            rounded[widths] = reference.distance(outputs)
        plans[metric] = plan
        entries.append(Entry(metric=metric, loss=rounded[widths], size_bytes=plan.size_bytes, seconds=_since(started)))
    if not plans:
        assert failure is not None
        raise failure
    finalists = _finalists(rounded, plans, refine)
    decisive = {widths: rounded[widths] for widths in finalists}
    refined_on = None
    if refine is not None and len(finalists) > 1:
        refined_on = len(refine.samples)
        reference = Reference(heads=heads, outputs=run_samples(graph, {}, heads.tensors, refine.samples, threads))
        decisive, entries = _refined(plans, entries, finalists, refine, reference)
    winner = min(plans, key=lambda metric: decisive.get(_widths(plans[metric]), np.inf))
    unasked = UNREFINED_NOTE.format(winner) if refine is not None and not refine.finalists else ""
    return Contest(
        plan=plans[winner],
        entries=tuple(entries),
        measure=heads.measure,
        scored=len(samples.scored),
        held_out=len(samples.held_out),
        refined_on=refined_on,
        note=" ".join(filter(None, (samples.note, heads.note, unasked))),
    )


def _refined(
    plans: Mapping[str, BitPlan],
    entries: Sequence[Entry],
    finalists: Sequence[Widths],
    refine: Refine,
    reference: Reference,
) -> tuple[dict[Widths, float], list[Entry]]:
    """The distances of the refined finalists, and the entries with them."""
    known: dict[Widths, float] = {}
    result: list[Entry] = []
    for entry in entries:
        plan = plans.get(entry.metric)
        if plan is not None and _widths(plan) in finalists:
            started, widths = time.perf_counter(), _widths(plan)
            if widths not in known:
                known[widths] = reference.distance(refine.outputs(plan, reference.heads.tensors), SOFTENED)
            seconds = round(entry.seconds + _since(started), 4)
            entry = replace(entry, refined_loss=known[widths], seconds=seconds)
        result.append(entry)
    return known, result


def _finalists(known: Mapping[Widths, float], plans: Mapping[str, BitPlan], refine: Refine | None) -> list[Widths]:
    """The plans that refinement decides between; or the one that needs no more."""
    ranked = sorted(known, key=known.__getitem__)
    if refine is None:
        return ranked[:1]
    seeded = [_widths(plans[metric]) for metric in refine.seeded if metric in plans]
    return list(dict.fromkeys([*ranked[: refine.finalists], *seeded])) or ranked[:1]


def _widths(plan: BitPlan) -> Widths:
    return tuple(plan.bits().values())


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)
