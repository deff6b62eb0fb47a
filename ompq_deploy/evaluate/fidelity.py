"""How far each head of a deployed model is from the float model's, on the same samples.

With y and y' the head's values in the float and the deployed model, and ||.|| over its elements and all samples,

    relative error = sqrt(mean_n ||y'_n - y_n||^2 / V)                 1: no better than a constant; V: heads.py, over
                                                                       the calibration samples
    SQNR           = 10 log10(||y||^2 / ||y' - y||^2)                  in dB
    cosine         = <y, y'> / (||y|| ||y'||)

The last two are the figures other tools print. Both look fine where a head is mostly a constant; the first does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.evaluate.head_search import output_heads
from ompq_deploy.evaluate.heads import Head
from ompq_deploy.runtime.batches import select
from ompq_deploy.runtime.runner import run_model

MOST_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The figures above for one head. `sqnr_db` is None where nothing differs."""

    relative_error: float
    sqnr_db: float | None
    cosine: float


def fidelity_document(
    graph: PreparedGraph,
    models: Mapping[str, onnx.ModelProto],
    calibration: Samples,
    held_out: Samples | None,
    *,
    threads: int = 0,
) -> dict[str, Any]:
    """Every head of the graph and, under the name of each of `models`, its fidelity, as JSON values.

    `models` have the graph's inputs and outputs. They run on `held_out`, samples other than the calibration's, or where
    there are none on at most `MOST_SAMPLES` of those. Raises BadInput where an output's shape depends on the sample.
    """
    heads = output_heads(graph, calibration, threads)
    samples = held_out or select(calibration, np.arange(min(MOST_SAMPLES, len(calibration))))
    reference = run_model(graph.model, graph.output_names, samples, graph.batch, threads)
    rows = [_description(head) for head in heads]
    for name, model in models.items():
        outputs = run_model(model, graph.output_names, samples, graph.batch, threads)
        for row, figures in zip(rows, fidelities(heads, graph.output_names, reference, outputs), strict=True):
            row[name] = asdict(figures)
    return {"samples": len(samples), "source": samples.source, "held_out": held_out is not None, "rows": rows}


def fidelities(
    heads: Sequence[Head], tensors: Sequence[str], reference: Sequence[Float32], other: Sequence[Float32]
) -> list[Fidelity]:
    """The figures of each of `heads` from two models' `tensors`, samples on axis 0."""
    pairs = {name: (a, b) for name, a, b in zip(tensors, reference, other, strict=True)}
    return [_fidelity(head, *pairs[head.tensor]) for head in heads]


def _fidelity(head: Head, output: Float32, other_output: Float32) -> Fidelity:
    reference, other = head.of(output), head.of(other_output)
    noise = float(np.square(other - reference).sum())
    energies = [float(np.square(values).sum()) for values in (reference, other)]
    norms = float(np.sqrt(energies[0] * energies[1]))
    if norms > 0:
        cosine = float((reference * other).sum()) / norms
    else:
        cosine = 1.0 if energies[0] == energies[1] else 0.0
    return Fidelity(
        relative_error=float(np.sqrt(noise / len(reference) / head.variation)),
        sqnr_db=10 * float(np.log10(energies[0] / noise)) if noise > 0 and energies[0] > 0 else None,
        cosine=cosine,
    )


def _description(head: Head) -> dict[str, Any]:
    """`elements` is [start, stop] per axis of one sample, or None where they form no box."""
    box = head.box
    return {
        "tensor": head.tensor,
        "elements": [[axis.start, axis.stop] for axis in box] if box is not None else None,
        "shape": [axis.stop - axis.start for axis in box] if box is not None else [len(head.elements)],
        "layers": list(head.layers),
    }
