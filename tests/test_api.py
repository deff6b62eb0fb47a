"""`ompq_deploy.deploy` takes the words of the command, and refuses what the command refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ompq_deploy
from ompq_deploy.calib import Preprocess
from ompq_deploy.errors import BadInput, InfeasibleBudget
from tests.conftest import Run

QUICK: dict[str, Any] = {"size": "16KB", "effort": "quick", "metric": "size", "target": "onnx"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Sixteen labelled 16 x 16 images."""
    random = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, images=random.integers(0, 256, (16, 16, 16, 3), np.uint8), labels=random.integers(0, 10, 16))
    return str(path)


def test_the_words_of_the_command_mean_the_same(run: Run, residual_model: Path, data: str, tmp_path: Path) -> None:
    code, _, err = run(
        residual_model, "--size", "16KB", "--bits", "2-8", "--effort", "quick", "--metric", "mse", "--orm-beta", "0.5",
        "--calib", data, "--preprocess", "raw", "--eval", data, "--max-drop", "100", "--target", "onnx", "--target",
        "integer", "--pin", "stem=5", "--no-smooth", "--out", tmp_path / "command",
    )  # fmt: skip
    assert code == 0, err
    result = ompq_deploy.deploy(
        str(residual_model), "16KB", tmp_path / "function", bits="2-8", effort="quick", metric="mse", orm_beta=0.5,
        calib=data, preprocess="raw", eval=data, max_drop=100, target=("onnx", "integer"), pin="stem=5", smooth=False,
    )  # fmt: skip
    for file in ("model.qdq.onnx", "model.int.onnx"):
        assert (tmp_path / "command" / file).read_bytes() == (tmp_path / "function" / file).read_bytes()
    assert set(result.report["eval"]) == {"float", "qdq", "integer"}
    assert not result.failures


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({"bits": (4, 8)}, {"bits": [4, 8]}),
        ({"bits": [8]}, {"bits": [8]}),
        ({"size": None, "bops": "30M"}, {"size": None, "bops": "30M"}),
        ({"size": 16_000}, {"size": "16000"}),
        ({"mean": (0.5, 0.25, 0.0)}, {"mean": (0.5, 0.25, 0.0)}),
        ({"preprocess": Preprocess(name="mine", divisor=2.0)}, {"name": "mine", "divisor": 2.0}),
        ({"pin": ["stem=8", "fc=4"]}, {"pins": ("stem=8", "fc=4")}),
    ],
)
def test_values_may_be_pythons(
    given: dict[str, Any], recorded: dict[str, Any], residual_model: Path, data: str, tmp_path: Path
) -> None:
    common = {**QUICK, "calib": Path(data), "dry_run": True, "out": tmp_path / "out"}
    settings = ompq_deploy.deploy(residual_model, **{**common, **given}).report["settings"]
    found = {**settings, **settings["rules"], **(settings["preprocess"] or {})}
    assert {name: found[name] for name in recorded} == recorded


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": (1, 16)}, "range of widths"),
        ({"metric": "magic"}, "magic"),
        ({"target": "onxx"}, "onxx"),
        ({"max_drop": 1.0}, "needs labelled data"),
        ({"size": None}, "no budget"),
        ({"seed": -1}, "--seed"),
        ({"calib": "nowhere.npz"}, "no such file"),
        ({"dry_run": "yes"}, "no switch"),
        ({"quiet": True}, "unknown settings: quiet"),
        ({"smooth": True, "no_smooth": True}, "smooth and no_smooth are the same flag"),
        ({"exclude": ["a"], "nodes-to-exclude": ["b"]}, "exclude and nodes-to-exclude are the same flag"),
        ({"size_of": "file", "size-of": "paper"}, "size_of and size-of are the same flag"),
    ],
)
def test_what_the_command_refuses_is_refused(
    given: dict[str, Any], message: str, residual_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        ompq_deploy.deploy(residual_model, **{**QUICK, "out": tmp_path / "out", **given})
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_is_told_the_closest(residual_model: Path) -> None:
    with pytest.raises(BadInput, match="unknown settings: metrik") as caught:
        ompq_deploy.deploy(residual_model, "16KB", metrik="orm")
    assert caught.value.fix.endswith("such as metric")


def test_a_budget_too_small_is_the_commands_error(residual_model: Path, data: str, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget, match="smallest feasible size"):
        ompq_deploy.deploy(residual_model, **{**QUICK, "size": "2KB", "calib": data, "out": tmp_path / "out"})
