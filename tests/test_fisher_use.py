"""`--fisher`: whether rounding weights errors by what they do to the outputs, and what becomes of it without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy import torch_graph
from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.quantize import QuantizeSettings, quantize
from tests import models
from tests.conftest import Run
from tests.test_quantize import uniform_plan
from tests.test_refine import prepared


def rounded(folder: Path, bits: int = 3, fisher: str = "auto") -> QuantizedGraph:
    graph, samples, captured = prepared(models.residual_network(), folder)
    return quantize(graph, captured, uniform_plan(graph, bits), QuantizeSettings(fisher=fisher), samples=samples)


def codes(quantized: QuantizedGraph) -> np.ndarray:
    return np.concatenate([q.codes.ravel() for q in quantized.layers])


def test_auto_goes_on_without_torch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    found, off = rounded(tmp_path), rounded(tmp_path, fisher="off")
    assert "torch is not installed" in found.note
    assert not off.note
    np.testing.assert_array_equal(codes(found), codes(off))


def test_on_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="--fisher off"):
        rounded(tmp_path, fisher="on")


def test_another_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown choice 'sometimes'"):
        rounded(tmp_path, fisher="sometimes")


def test_the_report_tells_what_rounding_went_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residual_model: Path, run: Run
) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    flags = ("--size", "16KB", "--bits", "2-4", "--metric", "size", "--target", "onnx", "--samples", 8)
    code, text, _ = run(residual_model, *flags, "--out", tmp_path / "out")
    assert code == 0
    assert "rounding: errors are not weighted" in text
    report, plan = (json.loads((tmp_path / "out" / name).read_text()) for name in ("report.json", "plan.json"))
    assert "torch is not installed" in report["rounding_note"]
    assert plan["settings"]["quantize"]["fisher"] == "auto"
    code, text, _ = run(residual_model, *flags, "--out", tmp_path / "off", "--fisher", "off")
    assert code == 0
    assert "rounding:" not in text


torch = pytest.importorskip("torch")
from ompq_deploy.torch_graph import graph as executor  # noqa: E402


def test_auto_is_on_where_torch_runs_the_network(tmp_path: Path) -> None:
    auto, on, off = (codes(rounded(tmp_path, fisher=use)) for use in ("auto", "on", "off"))
    np.testing.assert_array_equal(auto, on)
    assert (auto != off).any()


def test_auto_is_off_where_every_layer_has_eight_bits(tmp_path: Path) -> None:
    auto, on, off = (codes(rounded(tmp_path, bits=8, fisher=use)) for use in ("auto", "on", "off"))
    np.testing.assert_array_equal(auto, off)
    assert (on != off).any()


def test_a_network_torch_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "OPERATORS", {k: v for k, v in executor.OPERATORS.items() if k != "Relu"})
    found = rounded(tmp_path)
    assert "no operator Relu" in found.note
    np.testing.assert_array_equal(codes(found), codes(rounded(tmp_path, fisher="off")))
    with pytest.raises(BackendMissing, match="no operator Relu"):
        rounded(tmp_path, fisher="on")
