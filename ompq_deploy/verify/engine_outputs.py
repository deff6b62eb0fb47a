"""Compare what an engine computed on another machine with the models of its folder.

The dump is one .npz: an array per graph input and per graph output, under the tensor's name, samples on axis 0.
Against each model, and for every output y of the engine and y' of the model, over all samples,

    largest difference = max |y - y'|
    SQNR               = 10 log10(||y'||^2 / ||y - y'||^2)                        in dB
    agreement          = share of positions where both are largest at the same index of the last axis

An engine is built from model.trt.onnx, so that graph in onnxruntime is what it is held to: both compute the same real
numbers and round them differently. The others quantize other tensors, or on other grids, and are for information.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.errors import BadInput
from ompq_deploy.runner import by_sample, run_model
from ompq_deploy.verify.verdict import Check

MIN_SQNR_DB = 20.0
"""Two correct executions of model.trt.onnx stay above, and a wrong layer falls below; see docs/integer-spec.md."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Dump:
    """What an engine was given and what it returned, by tensor name, samples on axis 0."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """The figures above for one output and one model; `sqnr_db` is None where nothing differs, `agreement` where the
    last axis has one element."""

    output: str
    model: str
    max_difference: float
    sqnr_db: float | None
    agreement: float | None


def read_dump(path: Path, graph: PreparedGraph) -> Dump:
    """The dump of a network's engine. Raises BadInput for anything but an .npz of its inputs and outputs."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as e:
        raise _unusable(path, f"it cannot be read: {e.strerror or e}") from e
    except (ValueError, AttributeError, zipfile.BadZipFile) as e:
        raise _unusable(path, f"it is not an .npz of plain arrays: {e}") from e
    inputs = {name: arrays[name] for name in graph.input_names if name in arrays}
    outputs = {name: arrays[name] for name in graph.output_names if name in arrays}
    if missing := sorted(set(graph.input_names) - set(inputs)):
        raise _unusable(path, f"it lacks the inputs {', '.join(missing)}")
    if not outputs:
        raise _unusable(path, f"it holds none of the outputs {', '.join(graph.output_names)}")
    lengths = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise _unusable(path, "its inputs do not hold the same number of samples on axis 0")
    count = lengths.pop()
    return Dump(inputs=inputs, outputs={name: by_sample(array, count, name) for name, array in outputs.items()})


def compare_outputs(
    dump: Dump, models: Mapping[str, onnx.ModelProto], graph: PreparedGraph, threads: int = 0
) -> tuple[OutputComparison, ...]:
    """Every output of the dump against every model, by the model's name. Raises BadInput where shapes differ."""
    samples = Samples(inputs=dump.inputs, labels=None, source="engine", sha256="")
    names = list(dump.outputs)
    found = []
    for model, loaded in models.items():
        for name, theirs in zip(names, run_model(loaded, names, samples, graph.batch, threads), strict=True):
            ours = dump.outputs[name]
            if ours.shape != theirs.shape:
                raise BadInput(
                    f"the output {name!r} is {ours.shape} in the dump and {theirs.shape} in the model",
                    where="--engine-outputs",
                    fix="give the outputs of this folder's engine, samples on axis 0",
                )
            found.append(_compare(name, model, ours.astype(np.float64), theirs.astype(np.float64)))
    return tuple(found)


def check_outputs(comparisons: tuple[OutputComparison, ...], model: str) -> Check:
    """Whether every output is as close to `model` as another correct execution of it is."""
    far = [
        f"{row.output}: {row.sqnr_db:.1f} dB, largest difference {row.max_difference:.4g}"
        for row in comparisons
        if row.model == model and row.sqnr_db is not None and not row.sqnr_db >= MIN_SQNR_DB
    ]
    detail = f"further than {MIN_SQNR_DB:g} dB from {model}: {'; '.join(far)}" if far else ""
    return Check(name="engine outputs", passed=not far, detail=detail)


def outputs_document(comparisons: tuple[OutputComparison, ...]) -> list[dict[str, Any]]:
    """The comparisons as verify.json holds them."""
    return [asdict(row) for row in comparisons]


def _compare(output: str, model: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> OutputComparison:
    """Infinities and NaN of the engine count as no signal at all: -inf dB is told as the lowest finite figure."""
    finite = np.isfinite(ours)
    difference = np.where(finite, ours - theirs, theirs)
    noise, signal = float(np.square(difference).sum()), float(np.square(theirs).sum())
    if not finite.all():
        noise = max(noise, signal)
    return OutputComparison(
        output=output,
        model=model,
        max_difference=float(np.abs(difference).max(initial=0.0)),
        sqnr_db=_decibels(signal, noise),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()) if ours.shape[-1] > 1 else None,
    )


def _decibels(signal: float, noise: float) -> float | None:
    if not noise:
        return None
    return 10 * float(np.log10(signal / noise)) if signal else -np.inf


def _unusable(path: Path, why: str) -> BadInput:
    return BadInput(
        f"this is not a dump of an engine's outputs: {why}",
        where=str(path),
        fix="write one with numpy.savez, an array per input and output under its name; see docs/integer-spec.md",
    )
