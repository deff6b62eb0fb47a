"""What wide grids round on the way is foretold, allowed, and not more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerProgram, IntegerSum
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.passes.smooth import candidates, smooth
from ompq_deploy.prepare import prepare
from ompq_deploy.verify import verify
from ompq_deploy.verify.rounding import Rounded, most_by_chance, rounded_before
from ompq_deploy.verify.verdict import Verdict
from tests import models
from tests.quantized import inputs, quantize_graph
from tests.test_smooth import Build, dense, network, tokens

FINEST = (2, 5, 8)


def smoothed(path: Path, finest: int, read: Build = dense) -> tuple[QuantizedGraph, str]:
    """A network whose channels are evened out by factors from 1 to 2^`finest`, and the tensor behind the factors."""
    k = np.linspace(0, -finest, 8).round().astype(int)
    graph = prepare(models.save(network(read, np.exp2(k)), path))
    (candidate,) = (c for c in candidates(graph) if c.readers[0].name == "reader")
    model = smooth(graph, {candidate.tensor: k.tolist()})
    return quantize_graph(models.save(model, path)), f"{candidate.tensor}_smooth"


def judged(quantized: QuantizedGraph, program: IntegerProgram) -> Verdict:
    samples = Samples(inputs=inputs(quantized.graph, 24), labels=None, source="noise", sha256="")
    return verify(program, integer_model(program), qdq_model(quantized), samples, max_samples=24)


@pytest.mark.parametrize("read", [dense, tokens])
@pytest.mark.parametrize("finest", FINEST)
def test_the_share_is_foretold(finest: int, read: Build, tmp_path: Path) -> None:
    quantized, tensor = smoothed(tmp_path / "m.onnx", finest, read)
    program = lower(quantized)
    verdict = judged(quantized, program)
    foretold = rounded_before(program)[tensor]
    (layer,) = (layer for layer in verdict.layers if layer.name == tensor)
    assert foretold.mean / 4 < 1 - layer.exact_fraction < foretold.mean
    assert layer.max_lsb <= foretold.steps
    assert verdict.passed


def test_finer_channels_are_foretold_to_differ_more(tmp_path: Path) -> None:
    shares = []
    for finest in FINEST:
        quantized, tensor = smoothed(tmp_path / f"{finest}.onnx", finest)
        shares.append(rounded_before(lower(quantized))[tensor].mean)
    assert shares == sorted(shares)
    assert shares[-1] > 4 * shares[0]


@pytest.mark.parametrize("finest", FINEST)
def test_half_a_step_more_is_not_allowed(finest: int, tmp_path: Path) -> None:
    quantized, tensor = smoothed(tmp_path / "m.onnx", finest)
    program = lower(quantized)
    (factor,) = (op for op in program.operations if isinstance(op, IntegerSum) and op.output == tensor)
    half = np.int64(1) << (factor.clamp.shift - 1)
    moved = dataclasses.replace(factor, constant=factor.constant + half)
    operations = tuple(moved if op is factor else op for op in program.operations)
    verdict = judged(quantized, dataclasses.replace(program, operations=operations))
    assert verdict.matches_reference
    assert not verdict.passed
    assert verdict.first_departure is not None
    assert verdict.first_departure.tensor == tensor


def test_without_wide_grids_nothing_is_allowed(residual_model: Path) -> None:
    assert set(rounded_before(lower(quantize_graph(residual_model))).values()) == {Rounded()}


def test_few_integers_may_differ_by_chance() -> None:
    """Where a hundredth differs, two of sixty soon do; of a million it is a hundredth."""
    assert 2 <= 60 * most_by_chance(0.01, 60) < 3
    assert most_by_chance(0.01, 10**6) == pytest.approx(0.01, rel=0.05)
    assert most_by_chance(0.0, 60) == 0.0
