"""Compare three executions of one quantized network: NumPy reference, integer-only ONNX, Q/DQ ONNX.

The integer-only model must equal the reference in every integer. The Q/DQ model rounds differently: onnxruntime
requantizes in fp32, ties to even, where the specification multiplies by M / 2^shift and rounds half up. So it is
compared layer by layer, each layer fed the integers that the Q/DQ model had, which keeps one layer's rounding from
reaching the next; and once more from end to end, where such differences add up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ompq_deploy.artifacts import LayerVerdict, Samples, Verdict
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import STORED_ZERO, accumulator, stored
from ompq_deploy.export.integer.program import Int8, IntegerProgram
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.simulator import ProgramRun, run_program

MAX_LAYER_STEPS = 1
"""One rounding of the same real number by two rules differs by one step at most."""

MIN_LAYER_EXACT = 0.99
"""Only results close to a tie differ, since fp32 carries 24 bits and M 31: real networks give 0.9999 and more."""

Arrays = dict[str, NDArray[Any]]


@dataclass(kw_only=True)
class _Tally:
    """Elements compared, elements that differ, and the largest difference in steps."""

    count: int = 0
    different: int = 0
    steps: int = 0

    def add(self, ours: Int8, theirs: Int8) -> None:
        steps = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
        self.count += steps.size
        self.different += int(np.count_nonzero(steps))
        self.steps = max(self.steps, int(steps.max(initial=0)))

    @property
    def exact(self) -> float:
        return 1.0 - self.different / max(self.count, 1)


def verify(
    program: IntegerProgram,
    integer_model: onnx.ModelProto,
    qdq_model: onnx.ModelProto,
    samples: Samples,
    *,
    max_samples: int = 4,
) -> Verdict:
    """Run all three on up to `max_samples` samples and compare.

    `layers`, `exact_fraction` and `max_lsb` are layer by layer, and so is the decision. `end_to_end` lets rounding
    differences travel from layer to layer; `output_difference` is the largest ||integer - Q/DQ|| / ||Q/DQ|| over the
    graph outputs.
    """
    grids = program.graph.activations
    integer_session = _session(integer_model, _integer_outputs(program))
    names = QdqNames(program.graph)
    qdq_session = _session(qdq_model, {names.quantized(name): TensorProto.UINT8 for name in grids})
    forced = {name: _Tally() for name in grids}
    free = _Tally()
    outputs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in program.graph.output_names}
    matches, count = True, 0
    for feed in _feeds(samples, program, max_samples):
        count += len(next(iter(feed.values())))
        integer, qdq = _run(integer_session, feed), _run(qdq_session, feed)
        reference = run_program(program, feed)
        matches = matches and _matches(reference, integer)
        theirs = {name: _from_storage(qdq[names.quantized(name)]) for name in grids}
        layerwise = run_program(program, feed, given=theirs)
        for name in grids:
            forced[name].add(layerwise.integers[name], theirs[name])
            free.add(_from_storage(integer[stored(name)]), theirs[name])
        for name, pairs in outputs.items():
            pairs.append((integer[name], qdq[name]))
    floats = float_tensors_inside(integer_model)
    return Verdict(
        passed=matches and not floats and _close(forced.values()),
        samples=count,
        matches_reference=matches,
        float_tensors_inside=floats,
        exact_fraction=_exact_share(forced.values()),
        max_lsb=max(tally.steps for tally in forced.values()),
        end_to_end_exact_fraction=free.exact,
        end_to_end_max_lsb=free.steps,
        output_difference=max(_relative_difference(pairs) for pairs in outputs.values()),
        layers=tuple(
            LayerVerdict(name=name, exact_fraction=tally.exact, max_lsb=tally.steps) for name, tally in forced.items()
        ),
    )


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as verify.json holds it."""
    document = asdict(verdict)
    document["float_tensors_inside"] = list(verdict.float_tensors_inside)
    document["layers"] = [asdict(layer) for layer in verdict.layers]
    return document


def _close(tallies: Collection[_Tally]) -> bool:
    """Whether every layer by itself agrees with the Q/DQ model up to rounding."""
    return all(tally.steps <= MAX_LAYER_STEPS for tally in tallies) and _exact_share(tallies) >= MIN_LAYER_EXACT


def _exact_share(tallies: Iterable[_Tally]) -> float:
    """The share of equal elements over all layers."""
    counts = [(tally.different, tally.count) for tally in tallies]
    return 1.0 - sum(different for different, _ in counts) / max(sum(count for _, count in counts), 1)


def _matches(reference: ProgramRun, integer: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the integer model computed exactly the reference's integers, accumulators and dequantized floats."""
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    pairs += [(value, _from_storage(integer[stored(name)])) for name, value in reference.integers.items()]
    pairs += [(value, integer[accumulator(name)]) for name, value in reference.accumulators.items()]
    pairs += [(value, integer[name]) for name, value in reference.floats.items()]
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def _integer_outputs(program: IntegerProgram) -> Mapping[str, int]:
    """Every tensor of the integer model that the reference computes too, with its type."""
    integers = [*program.inputs, *(operation.output for operation in program.operations if _has_integers(operation))]
    sums = [operation.output for operation in program.operations if hasattr(operation, "requantize")]
    return (
        {stored(name): TensorProto.UINT8 for name in integers}
        | {accumulator(name): TensorProto.INT32 for name in sums}
        | {ending.tensor: TensorProto.FLOAT for ending in program.dequantized}
    )


def _has_integers(operation: object) -> bool:
    """Whether an operation leaves an int8 tensor, not only an accumulator."""
    return getattr(operation, "requantize", operation) is not None


def _from_storage(values: NDArray[np.uint8]) -> Int8:
    return (values.astype(np.int16) - STORED_ZERO).astype(np.int8)


def _relative_difference(pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    ours = np.concatenate([np.asarray(pair[0], np.float64).ravel() for pair in pairs])
    theirs = np.concatenate([np.asarray(pair[1], np.float64).ravel() for pair in pairs])
    size = float(np.linalg.norm(theirs))
    distance = float(np.linalg.norm(ours - theirs))
    return distance / size if size else distance


def _feeds(samples: Samples, program: IntegerProgram, max_samples: int) -> list[Arrays]:
    """Whole batches of about `max_samples` samples; a fixed batch larger than the data repeats it."""
    size = program.graph.batch or min(max_samples, len(samples))
    batches = max(1, min(max_samples, len(samples)) // size)
    rows = np.arange(batches * size) % len(samples)
    return [
        {name: samples.inputs[name][rows[start : start + size]] for name in program.graph.input_names}
        for start in range(0, len(rows), size)
    ]


def _session(model: onnx.ModelProto, exposed: Mapping[str, int]) -> ort.InferenceSession:
    """A session that also returns the tensors `exposed`, by name and ONNX element type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in exposed.items() if name not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, feed: Arrays) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
