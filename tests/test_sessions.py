"""start: a session on a model in memory or in a file, whatever onnxruntime's optimizer does to its outputs."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy.runtime import sessions
from ompq_deploy.runtime.sessions import products_saturate, session_options, start
from tests.conftest import Run
from tests.models import GraphBuilder


def added_groups() -> onnx.ModelProto:
    """Two grouped convolutions with two outputs per group; the model returns one, and their sum."""
    builder = GraphBuilder()
    large = builder.conv("x", "large", 48, 96, kernel=7, groups=48)
    small = builder.conv("x", "small", 48, 96, groups=48)
    model = builder.model(["N", 48, 16, 16], builder.node("Add", [large, small], "sum"), ["N", 96, 16, 16])
    model.graph.output.append(helper.make_tensor_value_info(large, TensorProto.FLOAT, ["N", 96, 16, 16]))
    return model


def test_an_output_that_the_layout_optimizer_loses_is_there(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, options = added_groups(), session_options(1)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(0).standard_normal((2, 48, 16, 16)).astype(np.float32)
    found = start(path, options).run(None, {"x": x})
    plain = session_options(1)
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for value, expected in zip(found, start(model, plain).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-4)
    assert capfd.readouterr() == ("", "")


def test_the_second_attempt_leaves_the_layout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []

    def first_fails(content: bytes, options: ort.SessionOptions) -> str:
        levels.append(options.graph_optimization_level)
        if len(levels) == 1:
            raise RuntimeError("Failed to find node output or a constant initializer producing output: y.")
        return "a session"

    monkeypatch.setattr(sessions, "_start", first_fails)
    assert start(added_groups(), session_options()) == "a session"
    assert levels[1] == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED != levels[0]


def test_products_are_exact_where_the_cpu_has_instructions_for_them() -> None:
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.exists():
        pytest.skip("needs the flags of an x86 CPU")
    assert products_saturate() == (re.search(r"\bavx(512)?_vnni\b", flags.read_text()) is None)


@pytest.mark.parametrize("arithmetic", ["dyadic", "tensorrt"])
def test_a_cpu_whose_products_saturate_computes_the_same_integers(
    arithmetic: str, residual_model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime is only told that it does; the NumPy reference and the Q/DQ model still agree with it."""
    monkeypatch.setattr(sessions, "products_saturate", lambda: True)
    assert session_options().get_session_config_entry("session.x64quantprecision") == "1"
    flags = ["--size", "100%", "--bits", 8, "--target", "integer", "--arithmetic", arithmetic]
    code, _, error = run(residual_model, *flags, "--out", tmp_path / "out")
    assert code == 0, error
    verdict = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert verdict["matches_reference"]
    assert verdict["exact_fraction"] > 0.999


def test_other_failures_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(Exception, match="Protobuf"):
        start(path, session_options())
