"""Compare three executions of one quantized network: NumPy reference, integer-only ONNX, Q/DQ ONNX.

The integer-only model must equal the reference in every integer. The Q/DQ model rounds differently: onnxruntime
requantizes in fp32, ties to even, where the specification multiplies by M / 2^shift and rounds half up. So it is
compared layer by layer, each layer fed the integers that the Q/DQ model had, which keeps one layer's rounding from
reaching the next; and once more from end to end, where such differences add up. What rounding on 16-bit grids turns
over (`rounding.py`) is allowed beside that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ompq_deploy.artifacts import Grid, Samples
from ompq_deploy.errors import GateFailed
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import accumulator, storage_zero, stored
from ompq_deploy.export.integer.program import IntegerProgram, leaves_accumulator, leaves_integers
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.part import returning
from ompq_deploy.runtime.runner import ORT_FAILURES, start_without_spinning
from ompq_deploy.simulator import ProgramRun, run_program
from ompq_deploy.verify.endings import EndingTally, compared_endings, endings_check
from ompq_deploy.verify.rounding import Rounded, most_by_chance, rounded_before
from ompq_deploy.verify.tally import Tally, exact_share
from ompq_deploy.verify.verdict import Check, Departure, LayerVerdict, Verdict

MAX_DIFFERENT = 0.01
"""Of the results that are rounded once: those close to a tie, since fp32 carries 24 bits and M 31. Real networks have
0.0001 and less. They differ by one step."""

MOST_NUMBERS = 2**25
"""Numbers of all tensors of the samples that run at a time; each is held several times, 29 bytes in all."""

Arrays = dict[str, NDArray[Any]]


def verify(
    program: IntegerProgram,
    integer_model: onnx.ModelProto,
    qdq_model: onnx.ModelProto,
    samples: Samples,
    *,
    max_samples: int = 4,
    threads: int = 0,
) -> Verdict:
    """Run all three on up to `max_samples` samples and compare.

    `layers`, `exact_fraction` and `max_lsb` are layer by layer, and so is the decision. `end_to_end` lets rounding
    differences travel from layer to layer; `output_difference` is the largest ||integer - Q/DQ|| / ||Q/DQ|| over the
    graph outputs.
    """
    grids, names = program.graph.activations, QdqNames(program.graph)
    endings = {name: EndingTally() for name in compared_endings(program)}
    integer_session = _session(integer_model, _integer_tensors(program), threads)
    qdq_session = _session(qdq_model, [*map(names.quantized, grids), *map(names.tensor, endings)], threads)
    forced, free = ({name: Tally() for name in grids} for _ in range(2))
    against_reference = {step: Tally() for step in _steps(program)}
    outputs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in program.graph.output_names}
    count = 0
    for feed in _feeds(samples, program, max_samples):
        count += len(next(iter(feed.values())))
        integer, qdq = _run(integer_session, feed), _run(qdq_session, feed)
        for step, ours, theirs in _against_reference(program, run_program(program, feed), integer):
            against_reference[step].add(ours, theirs)
        given = {name: _from_storage(qdq[names.quantized(name)], program.grids[name]) for name in grids}
        layerwise = run_program(program, feed, given=given)
        for name in grids:
            forced[name].add(layerwise.integers[name], given[name])
            free[name].add(_from_storage(integer[stored(name)], program.grids[name]), given[name])
        for name, tally in endings.items():
            tally.add(layerwise.floats[name], qdq[names.tensor(name)])
        for name, pairs in outputs.items():
            pairs.append((integer[name], qdq[name]))
    floats = float_tensors_inside(integer_model)
    differs = next((step for step, tally in against_reference.items() if tally.different), None)
    deviates = _deviation(program, forced)
    return Verdict(
        checks=(
            _reference_check(differs, against_reference),
            Check(name="integer-only", passed=not floats, detail=f"floats inside: {', '.join(floats)}" * bool(floats)),
            _qdq_check(deviates, forced),
            endings_check(program, endings),
        ),
        first_departure=differs or deviates,
        samples=count,
        matches_reference=differs is None,
        float_tensors_inside=floats,
        exact_fraction=exact_share(forced.values()),
        max_lsb=max(tally.steps for tally in forced.values()),
        end_to_end_exact_fraction=exact_share(free.values()),
        end_to_end_max_lsb=max(tally.steps for tally in free.values()),
        output_difference=max(_relative_difference(pairs) for pairs in outputs.values()),
        layers=tuple(_layer_verdict(name, tally, free[name]) for name, tally in forced.items()),
    )


def _layer_verdict(name: str, forced: Tally, free: Tally) -> LayerVerdict:
    return LayerVerdict(
        name=name,
        exact_fraction=forced.exact,
        max_lsb=forced.steps,
        sqnr_db=forced.sqnr_db,
        end_to_end_exact_fraction=free.exact,
        end_to_end_sqnr_db=free.sqnr_db,
    )


def _reference_check(differs: Departure | None, tallies: Mapping[Departure, Tally]) -> Check:
    if differs is None:
        return Check(name="reference", passed=True)
    tally = tallies[differs]
    return Check(
        name="reference",
        passed=False,
        layer=differs.layer,
        detail=f"the integer-only model departs from the reference: {tally.different} of {tally.count} elements of "
        f"{differs.tensor!r} differ, by up to {tally.steps}",
    )


def _deviation(program: IntegerProgram, tallies: Mapping[str, Tally]) -> Departure | None:
    """The first layer that by itself differs from the Q/DQ model by more than rounding."""
    layers = {operation.output: operation.name for operation in program.operations}
    rounded = rounded_before(program)
    allowed = {name: rounded.get(name, Rounded()) for name in tallies}
    elements = sum(tally.count for tally in tallies.values())
    expected = sum(allowed[name].mean * tally.count for name, tally in tallies.items()) / max(elements, 1)
    many = 1 - exact_share(tallies.values()) > most_by_chance(MAX_DIFFERENT + expected, elements)
    for name, tally in tallies.items():
        too_many = many and 1 - tally.exact > most_by_chance(MAX_DIFFERENT + allowed[name].mean, tally.count)
        if tally.steps > allowed[name].steps or too_many:
            return Departure(layer=layers.get(name, name), tensor=name)
    return None


def _qdq_check(deviates: Departure | None, tallies: Mapping[str, Tally]) -> Check:
    if deviates is None:
        return Check(name="qdq", passed=True)
    tally = tallies[deviates.tensor]
    return Check(
        name="qdq",
        passed=False,
        layer=deviates.layer,
        detail=f"fed the same integers as the Q/DQ model, {100 * tally.exact:.2f} % of {deviates.tensor!r} are equal, "
        f"and the largest difference is {tally.steps} steps",
    )


def _steps(program: IntegerProgram) -> list[Departure]:
    """What is compared with the reference, in execution order; a layer's accumulator and integers count together."""
    layers = {name: name for name in program.inputs} | {op.output: op.name for op in program.operations}
    endings = [ending.tensor for ending in program.dequantized if ending.tensor not in layers]
    return [Departure(layer=layer, tensor=tensor) for tensor, layer in layers.items()] + [
        Departure(layer=tensor, tensor=tensor) for tensor in endings
    ]


def _against_reference(
    program: IntegerProgram, reference: ProgramRun, integer: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[Departure, NDArray[Any], NDArray[Any]]]:
    """Every integer, accumulator and dequantized float of the integer model beside the reference's.

    Floats are compared by their bits, as integers.
    """
    for step in _steps(program):
        name = step.tensor
        if name in reference.accumulators:
            yield step, integer[accumulator(name)], reference.accumulators[name]
        if name in reference.integers:
            yield step, _from_storage(integer[stored(name)], program.grids[name]), reference.integers[name]
        if name in reference.floats:
            yield step, integer[program.real_name(name)].view(np.int32), reference.floats[name].view(np.int32)


def _integer_tensors(program: IntegerProgram) -> list[str]:
    """Every tensor of the integer model that the reference computes too."""
    integers = [*program.inputs, *(operation.output for operation in program.operations if leaves_integers(operation))]
    sums = [operation.output for operation in program.operations if leaves_accumulator(operation)]
    ends = [program.real_name(ending.tensor) for ending in program.dequantized]
    return [*map(stored, integers), *map(accumulator, sums), *ends]


def _from_storage(codes: NDArray[Any], grid: Grid) -> NDArray[np.int32]:
    return codes.astype(np.int32) - np.int32(storage_zero(grid))


def _relative_difference(pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """||ours - theirs|| / ||theirs||; ours is taken for zeros where its size differs, as that of NonZero may."""
    same = [(a if a.shape == b.shape else np.zeros_like(b), b) for a, b in pairs]
    ours, theirs = (np.concatenate([np.asarray(pair[i], np.float64).ravel() for pair in same]) for i in range(2))
    size = float(np.linalg.norm(theirs))
    distance = float(np.linalg.norm(ours - theirs))
    return distance / size if size else distance


def _feeds(samples: Samples, program: IntegerProgram, max_samples: int) -> list[Arrays]:
    """Whole batches of about `max_samples` samples, smaller ones where the graph's tensors are large; a fixed batch
    larger than the data repeats it."""
    room = max(MOST_NUMBERS // max(GraphIndex(program.graph.model).computed_numbers, 1), 1)
    size = program.graph.batch or min(max_samples, len(samples), room)
    batches = max(1, min(max_samples, len(samples)) // size)
    rows = np.arange(batches * size) % len(samples)
    return [
        {name: samples.inputs[name][rows[start : start + size]] for name in program.graph.input_names}
        for start in range(0, len(rows), size)
    ]


def _session(model: onnx.ModelProto, exposed: list[str], threads: int) -> ort.InferenceSession:
    """A session that also returns the tensors `exposed`."""
    wanted = returning(model, list(dict.fromkeys([*(value.name for value in model.graph.output), *exposed])))
    try:
        return start_without_spinning(wanted, threads)
    except ORT_FAILURES as e:
        raise _cannot_run(e) from e


def _run(session: ort.InferenceSession, feed: Arrays) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except ORT_FAILURES as e:
        raise _cannot_run(e) from e


def _cannot_run(error: Exception) -> GateFailed:
    return GateFailed(
        f"onnxruntime cannot run a model that was written: {str(error).splitlines()[0]}",
        where="verify",
        fix="run ompq-deploy again; report this if the files are as they were written",
    )
