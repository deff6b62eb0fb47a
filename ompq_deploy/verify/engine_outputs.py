"""Compare what an engine computed on another machine with the models of its folder.

The dump is one .npz: an array per graph input and per graph output, under the tensor's name, samples on axis 0.
Against each model, and for every output y of the engine and y' of the model, over all samples,

    largest difference = max |y - y'|
    SQNR               = 10 log10(||y'||^2 / ||y - y'||^2)                        in dB
    agreement          = share of positions where both are largest at the same index of the last axis

An engine is built from model.trt.onnx, so that graph in onnxruntime is what it is held to: both compute the same real
numbers and round them differently. Such differences turn codes by a step here and there, far fewer than quantization
itself moved, so that the engine must lie as close to that graph as the float network does, but for a margin:

    required = max(20 dB, SQNR of the float network against model.trt.onnx - 6 dB)

The other models quantize other tensors, or on other grids, and are for information.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.calib.input_spec import InputSpec, input_specs
from ompq_deploy.errors import BadInput
from ompq_deploy.runtime.batches import by_sample
from ompq_deploy.runtime.runner import run_model
from ompq_deploy.verify.verdict import Check

MIN_SQNR_DB = 20.0
MARGIN_DB = 6.0
"""Two correct executions of model.trt.onnx stay above both, and a wrong layer falls below; see docs/tensorrt.md."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Dump:
    """What an engine was given and what it returned, by tensor name, samples on axis 0."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """The figures above for one output and one model; `sqnr_db` is None where nothing differs, `agreement` where the
    last axis has one element, `required_db` where nothing is required."""

    output: str
    model: str
    max_difference: float
    sqnr_db: float | None
    required_db: float | None
    agreement: float | None

    @property
    def close(self) -> bool:
        """Whether the engine is as close to this model as it must be."""
        return self.required_db is None or self.sqnr_db is None or self.sqnr_db >= self.required_db


def read_dump(path: Path, graph: PreparedGraph) -> Dump:
    """The dump of a network's engine. Raises BadInput for anything but an .npz of its inputs and outputs."""
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise _unusable(path, "it is no .npz")
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except OSError as e:
        raise _unusable(path, f"it cannot be read: {e.strerror or e}") from e
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise _unusable(path, f"it is not an .npz of plain arrays: {e}") from e
    held = f"it holds {', '.join(arrays) or 'nothing'}"
    if missing := [name for name in graph.input_names if name not in arrays]:
        raise _unusable(path, f"it lacks the inputs {', '.join(missing)}; {held}")
    outputs = {name: arrays[name] for name in graph.output_names if name in arrays}
    if not outputs:
        raise _unusable(path, f"it lacks the outputs {', '.join(graph.output_names)}; {held}")
    if wrong := [name for name, array in outputs.items() if array.dtype.kind not in "biuf"]:
        raise _unusable(path, f"its outputs {', '.join(wrong)} are no numbers")
    inputs = {spec.name: _as_input(path, arrays[spec.name], spec) for spec in input_specs(graph.model)}
    lengths = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise _unusable(path, "its inputs do not hold the same number of samples on axis 0")
    count = lengths.pop()
    if uneven := [name for name, array in outputs.items() if array.ndim == 0 or len(array) % count]:
        raise _unusable(path, f"its outputs {', '.join(uneven)} are not for the {count} samples of its inputs")
    return Dump(inputs=inputs, outputs={name: by_sample(array, count, name) for name, array in outputs.items()})


def _as_input(path: Path, array: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
    """A dumped input in the type that the graph takes; only the width of a number may change."""
    same_kind = np.can_cast(array.dtype, spec.dtype, "same_kind")
    if not same_kind or not spec.admits(array.astype(spec.dtype)):
        raise _unusable(path, f"the input {spec.name!r} is {spec}, not {array.dtype} {array.shape}")
    return array.astype(spec.dtype)


def compare_dump(
    dump: Dump, built_from: str, models: Mapping[str, onnx.ModelProto], graph: PreparedGraph, threads: int = 0
) -> tuple[OutputComparison, ...]:
    """Every output of the dump against every model, by the model's name; `built_from` is the one the engine was made
    of. Raises BadInput where shapes differ."""
    samples = Samples(inputs=dump.inputs, labels=None, source="engine", sha256="")

    def outputs_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
        found = run_model(model, list(dump.outputs), samples, graph.batch, threads)
        return {name: values.astype(np.float64) for name, values in zip(dump.outputs, found, strict=True)}

    real, rows = outputs_of(graph.model), []
    for model, loaded in models.items():
        for name, theirs in outputs_of(loaded).items():
            ours = dump.outputs[name]
            if ours.shape != theirs.shape:
                raise BadInput(
                    f"the output {name!r} is {ours.shape} in the dump and {theirs.shape} in the model",
                    where="--engine-outputs",
                    fix="give the outputs of this folder's engine, samples on axis 0",
                )
            required = _required(real[name], theirs) if model == built_from else None
            rows.append(_compare(name, model, ours.astype(np.float64), theirs, required))
    return tuple(rows)


def check_outputs(comparisons: Iterable[OutputComparison]) -> Check:
    """Whether every output is as close to the graph the engine was built from as another correct execution of it."""
    far = [
        f"{row.output} is {row.sqnr_db:.1f} dB from {row.model}, {row.required_db:.1f} are required "
        f"(largest difference {row.max_difference:.4g})"
        for row in comparisons
        if not row.close
    ]
    return Check(name="engine outputs", passed=not far, detail="; ".join(far))


def outputs_document(comparisons: Iterable[OutputComparison]) -> list[dict[str, Any]]:
    """The comparisons as verify.json holds them."""
    return [asdict(row) for row in comparisons]


def _required(real: NDArray[np.float64], quantized: NDArray[np.float64]) -> float:
    lost = _decibels(float(np.square(quantized).sum()), float(np.square(real - quantized).sum()))
    return MIN_SQNR_DB if lost is None else max(MIN_SQNR_DB, lost - MARGIN_DB)


def _compare(
    output: str, model: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], required: float | None
) -> OutputComparison:
    """Where the engine has infinities or NaN, nothing of the signal is left: 0 dB at most."""
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
        required_db=required,
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()) if ours.shape[-1] > 1 else None,
    )


def _decibels(signal: float, noise: float) -> float | None:
    """None where there is no noise; finite where there is no signal."""
    if not noise:
        return None
    return 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def _unusable(path: Path, why: str) -> BadInput:
    return BadInput(
        f"this is not a dump of an engine's outputs: {why}",
        where=str(path),
        fix="write one with numpy.savez, an array per input and output under its name; see docs/tensorrt.md",
    )
