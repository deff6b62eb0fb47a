"""`verify FOLDER --engine-outputs DUMP.npz`: a dump of a right execution passes, others fail or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ompq_deploy.verbs.quantize import write_models
from tests.conftest import Run
from tests.test_verify_folder import change, swap_channels, write_run

TENSORRT = "model.trt.onnx"
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the graph that an engine is built from."""
    path = write_run(tmp_path_factory.mktemp("run") / "first")
    write_models(path / "plan.json", None, ("tensorrt",), path)
    return path


def computed(folder: Path, model: Path) -> Arrays:
    """What an engine of a graph might compute: onnxruntime without the kernels it fuses into integers."""
    images = np.load(folder.parent / "data.npz")["images"][:6].transpose(0, 3, 1, 2).astype(np.float32) / 255
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return {"x": images, "y": session.run(["y"], {"x": images})[0]}


def write_dump(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_right_execution_passes(folder: Path, tmp_path: Path, run: Run) -> None:
    dump = write_dump(tmp_path / "dump.npz", computed(folder, folder / TENSORRT))
    code, out, error = run("verify", folder, "--engine-outputs", dump, "--json")
    assert code == 0, error
    rows = {row["model"]: row for row in json.loads(out)["engine_outputs"]}
    assert list(rows) == [TENSORRT, "model.qdq.onnx", "model.int.onnx"]
    assert rows[TENSORRT]["required_db"] >= 20
    assert rows[TENSORRT]["sqnr_db"] is None or rows[TENSORRT]["sqnr_db"] > rows[TENSORRT]["required_db"]
    assert rows["model.qdq.onnx"]["required_db"] is None
    assert rows[TENSORRT]["agreement"] == 1


@pytest.mark.parametrize(
    "depart",
    [
        lambda y: 1.2 * y,
        lambda y: y[:, ::-1],
        lambda y: y[::-1],
        lambda y: np.where(np.arange(10) == 3, np.nan, y),
        lambda y: 0 * y,
    ],
    ids=["scaled", "classes turned", "samples turned", "NaN", "zero"],
)
def test_outputs_that_depart(
    depart: Callable[[np.ndarray], np.ndarray], folder: Path, tmp_path: Path, run: Run
) -> None:
    arrays = computed(folder, folder / TENSORRT)
    dump = write_dump(tmp_path / "dump.npz", {**arrays, "y": depart(arrays["y"])})
    code, out, _ = run("verify", folder, "--engine-outputs", dump)
    assert code == 1
    assert "FAILED (engine outputs)" in out


def test_an_engine_with_swapped_channels_departs(folder: Path, tmp_path: Path, run: Run) -> None:
    other = tmp_path / TENSORRT
    other.write_bytes((folder / TENSORRT).read_bytes())
    change(other, swap_channels, "main2_weight/codes")
    dump = write_dump(tmp_path / "dump.npz", computed(folder, other))
    code, out, _ = run("verify", folder, "--engine-outputs", dump, "--json")
    assert code == 1
    assert [check["name"] for check in json.loads(out)["checks"] if not check["passed"]] == ["engine outputs"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: {"y": a["y"]}, "lacks the inputs x; it holds y"),
        (lambda a: {"x": a["x"]}, "lacks the outputs y; it holds x"),
        (lambda a: {}, "No data left in file"),
        (lambda a: {**a, "x": a["x"][..., 1:]}, "the input 'x' is float32 (N, 3, 16, 16)"),
        (lambda a: {**a, "x": a["x"].astype(complex)}, "the input 'x' is float32"),
        (lambda a: {**a, "y": a["y"][:-1]}, "outputs y are not for the 6 samples"),
        (lambda a: {**a, "y": a["y"].astype(str)}, "outputs y are no numbers"),
        (lambda a: {**a, "y": a["y"][:, 1:]}, "is (6, 9) in the dump and (6, 10) in the model"),
        (lambda a: {**a, "y": np.array([None])}, "not an .npz of plain arrays"),
    ],
)
def test_what_is_no_dump_is_refused(
    edit: Callable[[Arrays], Arrays], message: str, folder: Path, tmp_path: Path, run: Run
) -> None:
    dump = write_dump(tmp_path / "dump.npz", edit(computed(folder, folder / TENSORRT)))
    code, _, error = run("verify", folder, "--engine-outputs", dump)
    assert code == 2
    assert message in error


def test_files_that_are_no_npz_are_refused(folder: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "text.npz").write_text("0.1 0.2")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy", "absent.npz", "."):
        code, _, error = run("verify", folder, "--engine-outputs", tmp_path / name)
        assert code == 2
        assert "not a dump of an engine's outputs" in error


def test_the_conversion_of_a_trtexec_export(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of docs/tensorrt.md, run on what trtexec writes."""
    arrays = computed(folder, folder / TENSORRT)
    for i, row in enumerate(arrays["y"]):
        export = [{"name": "y", "dimensions": "1x10", "values": row.tolist()}]
        (tmp_path / f"out{i}.json").write_text(json.dumps(export))
    np.save(tmp_path / "samples.npy", arrays["x"])
    lines = (Path(__file__).parents[1] / "docs" / "tensorrt.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "docs/tensorrt.md", "exec"), {})
    assert run("verify", folder, "--engine-outputs", tmp_path / "dump.npz")[0] == 0
