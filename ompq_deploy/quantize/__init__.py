"""Turn a plan into integers: codes and scales for every weight, a grid for every activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ompq_deploy.artifacts import BitPlan, Capture, Grid, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.augment import chosen_augmentation, copies_for, rows_for
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.wide_grids import wide_grids
from ompq_deploy.quantize.activations import METHODS, activation_grids
from ompq_deploy.quantize.nearest import rounded_to_nearest
from ompq_deploy.quantize.output_grids import output_errors
from ompq_deploy.quantize.reconstruct import ReconstructSettings, reconstruct_blocks
from ompq_deploy.quantize.refine import RefineSettings, Weigh, refine
from ompq_deploy.runtime.batches import joined
from ompq_deploy.runtime.timing import Listener
from ompq_deploy.torch_graph import load, require_torch

EFFORTS = ("quick", "default", "extensive")
"""quick rounds to nearest, at the scale of least weight error; default rounds for least output error (`refine.py`);
extensive learns on from there, block by block (`reconstruct/`, needs torch)."""
FISHER_USES = ("auto", "on", "off")
"""Whether the rounding of every effort but quick weights a layer's errors by what they do to the network's outputs
(`fisher.py`); auto: where torch can run the network, and a layer has fewer than WIDE bits."""
WIDE = 8
"""Rounding to so many bits errs less than the activations do, and gradients take longer than all the rest."""

OUTPUT = "output"
ROWS = 512
MOST_NUMBERS = 160_000_000
"""Images are repeated until they are ROWS, or the largest tensor takes so many numbers over all of them. MobileNetV2
comes to 128 images, which keeps a run of `default` within two minutes on two cores; 512 left more KL at 1.5 MiB."""

CALIBRATION_METHODS = (*METHODS, OUTPUT)

SYMMETRIC_GRIDS = "symmetric"
ACTIVATION_GRIDS = ("asymmetric", SYMMETRIC_GRIDS)


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """`effort` is how hard to work on the rounding, `fisher` one of FISHER_USES, `augment` how few images become more
    to round by (`augment.py`); how activations are calibrated, on which kind of grid; whether biases absorb the mean
    error; whether the prepared graph's weights are balanced across layers beforehand (`passes/equalize.py`), and
    activations of very uneven channels smoothed (`passes/smooth.py`). `reconstruct_loss` and `reconstruct_drop` are
    `loss` and `drop` of `ReconstructSettings`, which the effort extensive reads."""

    effort: str = "default"
    fisher: str = "auto"
    augment: str = "auto"
    calibration_method: str = "mse"
    activation_grid: str = "asymmetric"
    bias_correction: bool = True
    equalize: bool = False
    smooth: bool = True
    reconstruct_loss: str = "squared"
    reconstruct_drop: float = 0.5


def quantize(
    graph: PreparedGraph,
    capture: Capture,
    plan: BitPlan,
    settings: QuantizeSettings | None = None,
    *,
    samples: Samples | None = None,
    further: Samples | None = None,
    seed: int = 0,
    threads: int = 0,
    checkpoint: Path | None = None,
    tell: Listener | None = None,
) -> QuantizedGraph:
    """Codes, scales and biases for `plan`. Every effort but quick reads `samples`, those of the capture, and rounds by
    `further` ones too.

    `checkpoint` is that of `reconstruct_blocks`, which the effort extensive ends with; `tell` hears how far the work
    has come.

    Raises BadInput for an unknown effort, use of `fisher`, calibration method, kind of grid or loss, and where samples
    are missing; BackendMissing where extensive, or `fisher` "on", find no torch.
    """
    settings = settings or QuantizeSettings()
    _check(settings, samples)
    augment = chosen_augmentation(settings.augment, samples.layout if samples else None)
    learning = ReconstructSettings(
        loss=settings.reconstruct_loss, drop=settings.reconstruct_drop, biases=settings.bias_correction,
        augment=augment, seed=seed, threads=threads,
    )  # fmt: skip
    kinds = (True,) if settings.activation_grid == SYMMETRIC_GRIDS else (False, True)
    note = ""
    grids, *others = _calibrated(graph, capture, settings.calibration_method, kinds, samples, seed, threads)
    if settings.effort == "quick" or samples is None:
        layers = rounded_to_nearest(graph, capture, plan, grids, settings.bias_correction)
    else:
        samples = joined(samples, further)
        refinement = RefineSettings(
            bias_correction=settings.bias_correction, seed=seed, threads=threads, augment=augment,
            copies=copies_for(len(samples), _largest_activation(graph), ROWS, MOST_NUMBERS),
        )  # fmt: skip
        weigh, note = _weigh(graph, samples, plan, settings.fisher, seed, threads)
        layers = refine(graph, samples, plan.bits(), grids, refinement, weigh, tell)
    quantized = QuantizedGraph(
        graph=graph,
        layers=layers,
        grids=grids,
        calibrated_symmetric=others[0] if others else {},
        wide_grids=wide_grids(capture.wide_ranges),
        note=note,
    )
    if settings.effort != "extensive" or samples is None:
        return quantized
    return reconstruct_blocks(quantized, samples, learning, checkpoint=checkpoint, tell=tell)


def most_rows(graph: PreparedGraph) -> int:
    """How many images, or copies of them, weights are rounded by at most."""
    return rows_for(_largest_activation(graph), ROWS, MOST_NUMBERS)


def _check(settings: QuantizeSettings, samples: Samples | None) -> None:
    for flag, value, known in (
        ("--effort", settings.effort, EFFORTS),
        ("--fisher", settings.fisher, FISHER_USES),
        ("--activation-grid", settings.activation_grid, ACTIVATION_GRIDS),
    ):
        if value not in known:
            raise BadInput(f"unknown choice {value!r}", where=flag, fix=f"choose one of {', '.join(known)}")
    if samples is None and (settings.effort != "quick" or settings.calibration_method == OUTPUT):
        raise BadInput(
            f"effort {settings.effort!r} with calibration method {settings.calibration_method!r} needs the samples",
            where="--effort",
            fix="give the calibration samples, or use quick and mse",
        )
    if settings.effort == "extensive":
        require_torch("--effort extensive", "choose --effort default")


def _weigh(
    graph: PreparedGraph, samples: Samples, plan: BitPlan, use: str, seed: int, threads: int
) -> tuple[Weigh | None, str]:
    """What tells how much errors matter to the outputs, or None, and a note where that was to be had only by torch."""
    if use == "off" or (use == "auto" and min(plan.bits().values()) >= WIDE):
        return None, ""
    try:
        network = load(graph, "--fisher on", "choose --fisher off")
    except BackendMissing as e:
        if use == "on":
            raise
        return None, f"errors are not weighted by what they do to the outputs: {e.what}"
    from ompq_deploy.evaluate.head_search import find_heads
    from ompq_deploy.quantize.fisher import output_weights

    heads = find_heads(graph, samples, threads)
    return lambda rows: output_weights(network, graph, heads, rows, len(samples), seed, threads), ""


def _largest_activation(graph: PreparedGraph) -> int:
    """Numbers per sample in the largest activation."""
    return max(map(GraphIndex(graph.model).numbers, graph.activations))


def _calibrated(
    graph: PreparedGraph,
    capture: Capture,
    method: str,
    kinds: Sequence[bool],
    samples: Samples | None,
    seed: int,
    threads: int,
) -> list[dict[str, Grid]]:
    """The grids of all activations, once for each of `kinds`: True is symmetric."""
    if method != OUTPUT or samples is None:
        return [activation_grids(capture, method, symmetric=kind) for kind in kinds]
    families = [[activation_grids(capture, each, symmetric=kind) for each in METHODS] for kind in kinds]
    errors = output_errors(graph, samples, list(chain.from_iterable(families)), seed=seed, threads=threads)
    best = {name: error.reshape(len(kinds), -1).argmin(axis=1) for name, error in errors.items()}
    return [{name: family[best[name][i]][name] for name in best} for i, family in enumerate(families)]
