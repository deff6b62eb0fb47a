"""Every head of the models written against the float model, in report.json and on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ompq_deploy.calib import input_specs, load_samples, load_unused, make_preprocess
from ompq_deploy.evaluate.fidelity import Fidelity, fidelities
from ompq_deploy.evaluate.heads import Head
from ompq_deploy.metrics import MetricSettings
from ompq_deploy.pipeline import deploy
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.report import write_html
from ompq_deploy.settings import DeploySettings, PlanSettings

QUICK = QuantizeSettings(effort="quick")


def images(path: Path, count: int) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    np.savez(path, images=values)
    return path


def figures(y: NDArray[np.float32], other: NDArray[np.float32]) -> Fidelity:
    spread = float(y.var(axis=0, ddof=1).sum())
    head = Head(tensor="y", layers=(), shape=y.shape[1:], elements=np.arange(y[0].size), variation=spread)
    return fidelities([head], ["y"], [y], [other])[0]


def test_the_figures_are_their_formulas() -> None:
    random = np.random.default_rng(0)
    y = 3 + random.standard_normal((10, 2, 4)).astype(np.float32)
    other = y + np.float32(0.1) * random.standard_normal(y.shape).astype(np.float32)
    found = figures(y, other)
    noise = np.square(other - y).sum()
    assert found.relative_error == pytest.approx(np.sqrt(noise / 10 / y.var(axis=0, ddof=1).sum()), rel=1e-4)
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(y).sum() / noise), rel=1e-4)
    assert found.cosine == pytest.approx((y * other).sum() / np.linalg.norm(y) / np.linalg.norm(other), rel=1e-5)


def test_a_large_constant_hides_an_error_from_all_but_the_relative_error() -> None:
    random = np.random.default_rng(0)
    y, noise = (random.standard_normal((10, 8)).astype(np.float32) for _ in range(2))
    found = figures(100 + y, 100 + noise)
    assert found.relative_error > 1
    assert found.cosine > 0.999
    assert found.sqnr_db is not None
    assert found.sqnr_db > 30


def test_equal_outputs_have_no_noise() -> None:
    y = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    assert figures(y, y) == Fidelity(relative_error=0.0, sqnr_db=None, cosine=pytest.approx(1.0))


@pytest.mark.parametrize(("count", "held_out"), [(20, 8), (12, 0)])
def test_the_samples_are_those_the_calibration_left(
    count: int, held_out: int, residual_model: Path, tmp_path: Path
) -> None:
    calib = images(tmp_path / "data.npz", count)
    plan = PlanSettings(size="16KB", calib=calib, samples=12, metric=MetricSettings(name="kl"), quantize=QUICK)
    report = deploy(residual_model, DeploySettings(plan=plan, out=tmp_path / "out", targets=("onnx", "integer"))).report
    heads = report["heads"]
    assert (heads["samples"], heads["held_out"]) == (held_out or 12, held_out > 0)
    (row,) = heads["rows"]
    assert (row["tensor"], row["shape"], row["layers"]) == ("y", [10], ["fc"])
    assert 0 < row["qdq"]["relative_error"] < 1
    assert row["integer"]["relative_error"] == pytest.approx(row["qdq"]["relative_error"], rel=0.1)
    page = write_html(report)
    assert "heads against float" in page
    assert ("samples held out from calibration" if held_out else "samples of the calibration itself") in page


def test_unused_samples_are_none_of_the_calibration(residual_model: Path, tmp_path: Path) -> None:
    calib = images(tmp_path / "data.npz", 20)
    specs = input_specs(prepare(residual_model).model)
    used = load_samples(calib, specs, count=12)
    unused = load_unused(calib, specs, count=5, used=(12,))
    assert unused is not None
    assert len(unused) == 5
    together = np.concatenate([used.inputs["x"], unused.inputs["x"]])
    assert len(np.unique(together, axis=0)) == 17
    assert load_unused(calib, specs, count=5, used=(64,)) is None


def test_every_head_of_a_face_detector_is_reported(shared: Callable[[str], Path], tmp_path: Path) -> None:
    plan = PlanSettings(
        size="35%",
        calib=shared("data/imagenet_nips17dev_calib128_224.npz"),
        preprocess=make_preprocess("raw", mean=(127.0,), std=(128.0,)),
        samples=4,
        metric=MetricSettings(name="size"),
        quantize=QUICK,
    )
    model = shared("models/other/ultraface_slim320.onnx")
    report = deploy(model, DeploySettings(plan=plan, out=tmp_path / "out", targets=("onnx",))).report
    assert report["heads"] == json.loads((tmp_path / "out" / "report.json").read_text())["heads"]
    rows = report["heads"]["rows"]
    assert [(row["tensor"], row["shape"]) for row in rows] == [
        (tensor, [anchors, channels])
        for tensor, channels in (("scores", 2), ("boxes", 4))
        for anchors in (3600, 600, 160, 60)
    ]
    assert all(row["qdq"]["relative_error"] > 0 and row["qdq"]["cosine"] > 0.9 for row in rows)
