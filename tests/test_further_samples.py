"""Weights are rounded by more samples than the calibration takes, where there are more and nobody says how many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ompq_deploy import quantize
from ompq_deploy.calib import input_specs, load_samples, load_unused
from ompq_deploy.drawn import further_samples
from ompq_deploy.evaluate.fidelity import MOST_SAMPLES
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.settings import PlanSettings
from tests.conftest import Run

COUNT = 100


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    return tmp_path / "data.npz"


def rows(samples: Any) -> set[bytes]:
    return {row.tobytes() for row in samples.inputs["x"]}


@pytest.mark.parametrize(
    ("samples", "most", "found"), [(64, 512, 20), (64, 70, 6), (64, 64, 0), (90, 512, 0), (8, 0, 0)]
)
def test_as_many_as_there_are_but_for_those_that_heads_are_judged_on(
    samples: int, most: int, found: int, residual_model: Path, data: Path
) -> None:
    graph = prepare(residual_model)
    settings = PlanSettings(size="60%", calib=data, samples=samples, rounding_samples=most)
    calibrated = load_samples(data, input_specs(graph.model), count=samples)
    further = further_samples(graph, calibrated, settings)
    assert (len(further) if further else 0) == found
    unused = load_unused(data, input_specs(graph.model), count=MOST_SAMPLES, used=(samples, found))
    assert unused is not None
    drawn = [rows(each) for each in (calibrated, further, unused) if each is not None]
    assert len(set.union(*drawn)) == sum(map(len, drawn))
    assert len(unused) == min(MOST_SAMPLES, COUNT - samples - found)


def test_no_more_than_rounding_takes(residual_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepare(residual_model)
    calibrated = load_samples(data, input_specs(graph.model), count=8)
    settings = PlanSettings(size="60%", calib=data, samples=8, rounding_samples=512)
    monkeypatch.setattr(quantize, "MOST_NUMBERS", 12 * 8 * 16 * 16)
    further = further_samples(graph, calibrated, settings)
    assert further is not None
    assert len(further) == 4
    quick = PlanSettings(size="60%", calib=data, rounding_samples=512, quantize=QuantizeSettings(effort="quick"))
    assert further_samples(graph, calibrated, quick) is None


def test_the_command_tells_by_how_many_and_goes_by_what_it_is_told(
    run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    common = ("--size", "60%", "--bits", "4", "--metric", "size", "--calib", data, "--target", "onnx")
    written = {}
    for name, flags, count in (("more", (), 84), ("told", ("--samples", 64), 64)):
        code, out, err = run(residual_model, *common, *flags, "--out", tmp_path / name)
        assert code == 0, err
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["calibration"]["samples"] == 64
        assert report["calibration"]["rounding_samples"] == count
        assert (f"weights rounded by {count}" in out) == (count > 64)
        assert report["heads"]["samples"] == MOST_SAMPLES
        written[name] = (tmp_path / name / "model.qdq.onnx").read_bytes()
    assert written["more"] != written["told"]
    assert run("quantize", tmp_path / "more" / "plan.json", "--target", "onnx")[0] == 0
    assert (tmp_path / "more" / "model.qdq.onnx").read_bytes() == written["more"]


def test_other_samples_to_round_by_are_refused(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--size", "60%", "--bits", "4", "--metric", "size", "--calib", data, "--target", "onnx")
    assert run(residual_model, *flags, "--out", tmp_path / "o")[0] == 0
    graph = prepare(residual_model)
    calibrated = load_samples(data, input_specs(graph.model))
    with np.load(data) as stored:
        images = stored["images"]
    kept = rows(calibrated)
    every = load_samples(data, input_specs(graph.model), count=COUNT)
    others = [i for i in range(COUNT) if every.inputs["x"][i].tobytes() not in kept]
    images[others] = 0
    np.savez(data, images=images)
    code, _, err = run("quantize", tmp_path / "o" / "plan.json")
    assert code == 2
    assert "rounded by other data" in err
