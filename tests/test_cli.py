"""The command line as scripts rely on it: files, JSON, exit codes and messages."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from ompq_deploy import cli, pipeline
from ompq_deploy.errors import BadInput
from ompq_deploy.export.tensorrt.backend import Backend
from tests import models
from tests.conftest import Run


@pytest.fixture
def run(run_telling: Run) -> Run:
    """As a user has it who asks for nothing."""
    return run_telling


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen labelled 16 x 16 images."""
    random = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, images=random.integers(0, 256, (16, 16, 16, 3), np.uint8), labels=random.integers(0, 10, 16))
    return path


@pytest.fixture
def deployed(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    code, _, err = run(
        residual_model, "--size", "16KB", "--calib", data, "--out", out, "--target", "onnx", "--target", "integer"
    )
    assert code == 0, err
    return out


def test_the_whole_job(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = run(
        residual_model, "--size", "16KB", "--bits", "2-8", "--calib", data, "--eval", data, "--out", out, "--json"
    )
    assert code == 0, stderr
    report = json.loads(stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert {"plan.json", "model.qdq.onnx", "model.int.onnx", "model.trt.onnx", "verify.json", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    assert (out / "model.qdq.onnx").stat().st_size == report["achieved"]["file_bytes"] <= 16_000
    assert report["budget"]["size_bytes"] == 16_000
    assert report["solver"]["status"] == "OPTIMAL"
    assert report["verify"]["passed"] is True
    assert set(report["eval"]) == {"float", "qdq", "integer"}
    assert [row["name"] for row in report["layers"]] == [
        "stem",
        "depthwise",
        "project",
        "main1",
        "main2",
        "downsample",
        "fc",
    ]
    plan = json.loads((out / "plan.json").read_text())
    assert set(plan["timings"]) >= {
        "prepare_s",
        "capture_s",
        "score_s",
        "solve_s",
        "quantize_s",
        "export_s",
        "verify_s",
    }
    assert "prepare" in stderr


def test_two_runs_write_the_same_models(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(residual_model, "--size", "15KB", "--calib", data, "--out", tmp_path / name, "--quiet")[0] == 0
    for file in ("model.qdq.onnx", "model.int.onnx", "model.trt.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_verbs_in_a_row(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("plan", residual_model, "--size", "16KB", "--calib", data, "--out", out)[0] == 0
    assert run("quantize", out / "plan.json", "--target", "auto")[0] == 0
    assert run("verify", out)[0] == 0
    code, stdout, _ = run("eval", out / "model.int.onnx", "--eval", data, "--preprocess", "torchvision", "--json")
    assert code == 0
    assert set(json.loads(stdout)) == {"n", "top1", "top5"}


def test_planned_and_whole_runs_agree(
    run: Run, deployed: Path, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    run("plan", residual_model, "--size", "16KB", "--calib", data, "--out", out)
    run("quantize", out / "plan.json")
    assert (out / "model.qdq.onnx").read_bytes() == (deployed / "model.qdq.onnx").read_bytes()


def test_report_is_printed_again(run: Run, deployed: Path) -> None:
    code, stdout, _ = run("report", deployed)
    assert code == 0
    assert "downsample" in stdout
    assert json.loads(run("report", deployed, "--json")[1])["passed"] is True


def test_names_with_brackets_and_colons_are_told_as_they_are(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = models.GraphBuilder()
    y = g.conv(g.conv("x", "stem[/0]", 3, 4), "b:smile:", 4, 4)
    path = models.save(g.model(["N", 3, 16, 16], y, ["N", 4, 16, 16]), tmp_path / "<m>[v1].onnx")
    out = tmp_path / "x[" / "a]:smile:"
    code, stdout, err = run(path, "--size", "5KB", "--calib", data, "--out", out, "--effort", "quick")
    assert code == 0, err
    page = (out / "report.html").read_text()
    assert "<title>&lt;m&gt;[v1].onnx: ompq-deploy</title>" in page
    for text in (stdout, page):
        assert "stem[/0]" in text
        assert "b:smile:" in text
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in text
    assert stdout.startswith("<m>[v1].onnx")
    assert str(out / "report.json") in stdout
    code, stdout, err = run("verify", out)
    assert code == 0, err
    assert "stem[/0]" in stdout
    listener = cli._listener({"quiet": False})
    assert listener is not None
    listener("layer b:smile:[/]", 1.0)
    assert "layer b:smile:[/]" in capsys.readouterr().err


def test_doctor_names_versions_and_backends(run: Run) -> None:
    facts = json.loads(run("doctor", "--json")[1])
    assert {"onnxruntime", "ortools"} <= set(facts["packages"])
    assert set(facts["backends"]) == {"tensorrt", "tensorrt_rtx"}


def test_switches_may_stand_before_the_verb(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    assert "packages" in json.loads(run("-v", "--json", "doctor")[1])
    common = (residual_model, "--size", "16KB", "--calib", data, "--metric", "size", "--out", tmp_path / "out")
    code, _, err = run("--quiet", "plan", *common)
    assert (code, err) == (0, "")
    code, _, err = run("--quiet", *common, "--dry-run")
    assert (code, err) == (0, "")


def test_without_calib_the_bundled_photographs_are_used_and_named(
    run: Run, residual_model: Path, tmp_path: Path
) -> None:
    code, stdout, _ = run(
        residual_model, "--size", "16KB", "--samples", "8", "--out", tmp_path / "o", "--target", "onnx"
    )
    assert code == 0
    assert "calibrated on 8 bundled photographs" in stdout
    assert "bundled photographs" in json.loads((tmp_path / "o" / "plan.json").read_text())["calibration"]["source"]


def test_a_model_that_takes_no_images_is_told_how_to_pass_data(run: Run, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    path = models.save(g.model(["N", 12], g.gemm("x", "fc", 12, 4), ["N", 4]), tmp_path / "mlp.onnx")
    code, _, err = run(path, "--size", "50%", "--out", tmp_path / "o")
    assert code == 2
    assert "--calib" in err
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32))
    assert (
        run(path, "--size", "5KB", "--calib", tmp_path / "x.npy", "--out", tmp_path / "o", "--target", "onnx")[0] == 0
    )


def test_underscores_and_aliases_in_flags(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    code, _, err = run(
        residual_model,
        "--size",
        "16KB",
        "--calibration_data_path",
        data,
        "--out",
        tmp_path / "o",
        "--dry_run",
        "--activation_bits",
        "8",
    )
    assert code == 0, err
    assert not (tmp_path / "o" / "model.qdq.onnx").exists()


def test_a_configuration_file_gives_defaults_and_flags_win(
    run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'size = "1KB"\nbits = "3,8"\ncalib = "{data}"\ndry-run = true\n')
    code, out, err = run(residual_model, "--config", config, "--size", "16KB", "--out", tmp_path / "o", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["budget"]["size_bytes"] == 16_000
    assert report["settings"]["bits"] == [3, 8]


def test_a_configuration_file_names_flags_as_the_command_does(
    run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'eval = "{data}"\ncalibration-data = "{data}"\ntarget = ["onnx"]\njson = true\nmax_drop = 100\n'
        'bits = [3, 8]\nmean = [0.5, 0.4, 0.3]\npin = "stem=3"\nnodes-to-exclude = ["fc", "main1"]\nno-smooth = true\n'
        'metric = "size"\n'
    )
    code, out, err = run(residual_model, "--config", config, "--size", "16KB", "--out", tmp_path / "o")
    assert code == 0, err
    report = json.loads(out)
    settings = report["settings"]
    assert set(report["eval"]) == {"float", "qdq"}
    assert (settings["bits"], settings["quantize"]["smooth"]) == ([3, 8], False)
    assert (settings["rules"]["pins"], settings["rules"]["exclude"]) == (["stem=3"], ["fc", "main1"])
    assert settings["preprocess"]["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sizes = 1", "such as size"),
        (b'json = "yes"', "give true or false"),
        (b"samples = {n = 1}", "is no value"),
        (b'config = "other.toml"', "unknown settings: config"),
        (b'size = "\xff"', "cannot read the configuration"),
        (b"size =", "cannot read the configuration"),
    ],
)
def test_a_configuration_file_that_cannot_be_used(
    content: bytes, message: str, run: Run, residual_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    code, _, err = run(residual_model, "--config", tmp_path / "c.toml", "--size", "16KB", "--out", tmp_path / "o")
    assert code == 2
    assert message in err
    assert str(tmp_path / "c.toml") in err


def test_every_budget_and_rule_reaches_the_plan(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    names = ("stem", "depthwise", "project", "main1", "main2", "downsample", "fc")
    table = tmp_path / "latency.json"
    table.write_text(json.dumps({"fixed_ns": 10, "layers": {n: {"4": 100, "6": 150, "8": 200} for n in names}}))
    out = tmp_path / "out"
    code, _, err = run(
        "plan", residual_model, "--calib", data, "--metric", "mse", "--out", out, "--size", "16KB", "--bops", "25M",
        "--latency", "1.21us", "--latency-table", table, "--activation-memory", "8KB", "--pin", "main1=6",
        "--exclude", "st.m", "--tie-residual", "--tie", "(depthwise|project)",
    )  # fmt: skip
    assert code == 0, err
    plan = json.loads((out / "plan.json").read_text())
    bits = {row["name"]: row["weight_bits"] for row in plan["layers"]}
    assert plan["budget"] == {
        "size_bytes": 16_000, "size_of": "file", "bops": 25_000_000, "activation_bytes": 8_000, "latency_ns": 1_210,
    }  # fmt: skip
    assert plan["achieved"]["bops"] <= 25_000_000
    assert plan["achieved"]["latency_ns"] == 10 + sum(25 * width for width in bits.values()) <= 1_210
    assert plan["achieved"]["activation_bytes"] == 3 * 8 * 16 * 16
    assert (bits["main1"], bits["stem"]) == (6, 8)
    assert bits["downsample"] == bits["main2"]
    assert bits["depthwise"] == bits["project"]
    assert plan["solver"]["status"] == "OPTIMAL"
    assert run("quantize", out / "plan.json", "--target", "onnx")[0] == 0


def test_bops_alone_are_a_budget(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = run(residual_model, "--bops", "20M", "--calib", data, "--out", out, "--target", "onnx",
                       "--metric", "mse", "--first-last-bits", "8")  # fmt: skip
    assert code == 0, err
    plan = json.loads((out / "plan.json").read_text())
    assert plan["achieved"]["bops"] <= 20_000_000
    assert plan["achieved"]["file_bytes"] <= plan["budget"]["size_bytes"]
    bits = [row["weight_bits"] for row in plan["layers"]]
    assert bits[0] == bits[-1] == 8
    assert 4 in bits


@pytest.mark.parametrize("solver", ["dp", "mpqco-greedy", "ompq-dfs"])
def test_the_other_solvers_write_plans_too(
    solver: str, run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    common = [residual_model, "--size", "10500B", "--bits", "2-8", "--metric", "mse", "--calib", data]
    losses = {}
    for name in ("cp-sat", solver):
        code, stdout, err = run("plan", *common, "--solver", name, "--out", tmp_path / name, "--json")
        assert code == 0, err
        record = json.loads(stdout)["solver"]
        assert record["name"] == name
        losses[name] = record["objective"]
    assert losses["cp-sat"] <= losses[solver] * (1 + 1e-6)


def test_the_front_in_one_command(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, err = run("pareto", residual_model, "--bits", "2-8", "--calib", data, "--metric", "mse", "--points",
                            "6", "--out", out, "--json")  # fmt: skip
    assert code == 0, err
    document = json.loads(stdout)
    assert document == json.loads((out / "pareto.json").read_text())
    assert document["over"] == "size"
    sizes = [point["size_bytes"] for point in document["points"]]
    assert sizes == sorted(sizes)
    assert len(sizes) >= 4
    assert all(point["status"] == "OPTIMAL" for point in document["points"])
    assert (out / "pareto.svg").read_text().startswith("<svg")
    code, stdout, _ = run("pareto", residual_model, "--over", "bops", "--size", "16KB", "--calib", data, "--points",
                          "3", "--out", out)  # fmt: skip
    assert code == 0
    assert "OPTIMAL" in stdout


BAD_RUNS = {
    "no such model": (["nowhere.onnx", "--size", "1MB"], 2, "no such model"),
    "size zero": (["MODEL", "--size", "0"], 2, "no room"),
    "size banana": (["MODEL", "--size", "banana"], 2, "is not a size"),
    "no size": (["MODEL"], 2, "--size"),
    "unknown flag": (["MODEL", "--size", "1MB", "--frobnicate"], 2, "frobnicate"),
    "activation bits": (["MODEL", "--size", "1MB", "--activation-bits", "4"], 2, "activation-bits"),
    "unknown metric": (["MODEL", "--size", "1MB", "--metric", "magic"], 2, "magic"),
    "bad widths": (["MODEL", "--size", "1MB", "--bits", "4,16"], 2, "range of widths"),
    "too small": (["MODEL", "--size", "2KB"], 3, "smallest feasible size"),
    "zero samples": (["MODEL", "--size", "16KB", "--samples", "0"], 2, "at least 1"),
    "too few samples for the metric": (
        ["MODEL", "--size", "16KB", "--samples", "2", "--metric", "orm"],
        2,
        "at least 4",
    ),
    "missing data": (["MODEL", "--size", "16KB", "--calib", "nowhere"], 2, "no such file"),
    "gate without data": (["MODEL", "--size", "16KB", "--max-drop", "1"], 2, "--eval"),
    "bops banana": (["MODEL", "--bops", "banana"], 2, "--bops"),
    "too few bops": (["MODEL", "--bops", "1k"], 3, "smallest feasible bops"),
    "latency without a table": (["MODEL", "--latency", "2ms"], 2, "--latency-table"),
    "activations as a share": (["MODEL", "--activation-memory", "5%"], 2, "--activation-memory"),
    "too little activation memory": (["MODEL", "--activation-memory", "1KB"], 3, "activation memory is 6144 bytes"),
    "no such layer": (["MODEL", "--size", "16KB", "--pin", "nowhere=4"], 2, "no layer matches"),
    "unknown solver": (["MODEL", "--size", "16KB", "--solver", "magic"], 2, "magic"),
    "no latency to sweep": (["pareto", "MODEL", "--over", "latency", "--metric", "mse"], 2, "--latency-table"),
    "negative seed": (["MODEL", "--size", "16KB", "--seed", "-1"], 2, "--seed"),
    "seed beyond the solver's": (["MODEL", "--size", "16KB", "--seed", "2147483648"], 2, "--seed"),
    "widths backwards": (["MODEL", "--size", "1MB", "--bits", "8-4"], 2, "'8-4' is no range"),
    "endless widths": (["MODEL", "--size", "1MB", "--bits", "2-9999999999"], 2, "range of widths"),
    "endless bops": (["MODEL", "--bops", "1e400"], 2, "positive amount"),
    "no gate at all": (["MODEL", "--size", "16KB", "--eval", "x", "--max-drop", "nan"], 2, "no finite number"),
    "beta beyond numbers": (["MODEL", "--size", "16KB", "--orm-beta", "inf"], 2, "no finite number"),
    "an unset variable": (["MODEL", "--size", "16KB", "--calib", ""], 2, "path is empty"),
    "two engines": (
        ["MODEL", "--size", "16KB", "--target", "tensorrt", "--target", "tensorrt_rtx"],
        2,
        "writes one engine",
    ),
    "no size for the engine": (["MODEL", "--size-of", "engine", "--bops", "1G"], 2, "--size-of engine"),
    "a front over engines": (["pareto", "MODEL", "--size-of", "engine"], 2, "before an engine is built"),
    "bad mean": (["MODEL", "--size", "16KB", "--mean", "a,b"], 2, "list of numbers"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_runs_say_why_and_leave_nothing(
    case: str, run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    arguments, expected, message = BAD_RUNS[case]
    arguments = [str(residual_model) if a == "MODEL" else a for a in arguments]
    if "--calib" not in arguments:
        arguments += ["--calib", str(data)]
    out = tmp_path / "out"
    code, _, err = run(*arguments, "--out", out)
    assert code == expected
    assert message in err
    assert "Traceback" not in err
    assert not out.exists()


@pytest.mark.parametrize(("content", "message"), [(b"text", "not an ONNX file"), (b"", "empty"), ("cut", "cut short")])
def test_bad_model_files(content: bytes | str, message: str, run: Run, residual_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(residual_model.read_bytes()[:-500] if content == "cut" else content)  # type: ignore[arg-type]
    code, _, err = run(path, "--size", "1MB", "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_evaluation_data_that_do_not_fit_are_told_before_the_work(
    run: Run, residual_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "make_plan", Mock(side_effect=AssertionError("the work began")))
    labels_from_1 = tmp_path / "from1.npz"
    with np.load(data) as stored:
        np.savez(labels_from_1, images=stored["images"], labels=np.full(16, 10))
    for found, message in ((labels_from_1, "labels run from 10 to 10"), (tmp_path / "none.npz", "no such file")):
        code, _, err = run(residual_model, "--size", "16KB", "--calib", data, "--eval", found, "--out", tmp_path / "o")
        assert code == 2
        assert message in err


def test_a_model_by_another_name_is_read_as_a_model(run: Run, deployed: Path, tmp_path: Path) -> None:
    code, _, err = run(deployed / "plan.json", "--size", "60%", "--out", tmp_path / "o")
    assert code == 2
    assert "not an ONNX file" in err


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document | {"schema": 2},
        lambda document: document | {"settings": document["settings"] | {"of_tomorrow": 1}},
        lambda document: document | {"settings": document["settings"] | {"quantize": {"of_tomorrow": 1}}},
        lambda document: document | {"settings": []},
        lambda document: document | {"model": 5},
        lambda document: document | {"calibration": {}},
        lambda document: document | {"files": []},
        lambda document: document | {"integers": "all"},
        lambda document: document | {"achieved": []},
        lambda document: [document],
    ],
)
def test_a_plan_that_is_none_of_this_version_is_bad_input(
    change: Callable[[dict[str, object]], object], run: Run, deployed: Path
) -> None:
    path = deployed / "plan.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for command in (("verify", deployed), ("quantize", path)):
        code, _, err = run(*command)
        assert code == 2, err
        assert "plan.json" in err


def test_a_folder_in_the_way_keeps_all_files_as_they_were(
    run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "model.qdq.onnx").mkdir(parents=True)
    (out / "grids.json").write_text("before")
    code, _, err = run(residual_model, "--size", "16KB", "--calib", data, "--out", out, "--effort", "quick")
    assert code == 2
    assert "model.qdq.onnx is a folder there" in err
    assert (out / "grids.json").read_text() == "before"


def test_wrong_calibration_shape(run: Run, residual_model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((8, 3, 20, 20), np.float32))
    code, _, err = run(residual_model, "--size", "16KB", "--calib", tmp_path / "x.npy", "--out", tmp_path / "out")
    assert code == 2
    assert "20" in err
    assert "16" in err


def test_an_unwritable_folder(run: Run, residual_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, _, err = run(residual_model, "--size", "16KB", "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot write" in err


def test_a_failed_run_keeps_the_earlier_results(run: Run, deployed: Path, residual_model: Path, data: Path) -> None:
    before = contents(deployed)
    assert run(residual_model, "--size", "2KB", "--calib", data, "--out", deployed)[0] == 3
    assert contents(deployed) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dry_run_prints_the_plan_and_leaves_an_earlier_run_alone(
    run: Run, deployed: Path, residual_model: Path, data: Path
) -> None:
    before = contents(deployed)
    common = [residual_model, "--size", "7KB", "--calib", data, "--out", deployed, "--dry-run"]
    code, stdout, err = run(*common)
    assert code == 0, err
    assert "bits per layer" in stdout
    assert "no file was written" in stdout
    report = json.loads(run(*common, "--json")[1])
    assert report["budget"]["size_bytes"] == 7_000
    assert report["verify"] is None
    assert contents(deployed) == before


def test_a_dry_run_elsewhere_writes_the_plan_and_its_report(
    run: Run, residual_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = run(residual_model, "--size", "7KB", "--calib", data, "--out", out, "--dry-run")
    assert code == 0, err
    assert set(contents(out)) == {"plan.json", "report.json", "report.html"}


def test_a_plan_is_not_written_over_that_of_a_deployment(
    run: Run, deployed: Path, residual_model: Path, data: Path
) -> None:
    before = contents(deployed)
    code, _, err = run("plan", residual_model, "--size", "7KB", "--calib", data, "--out", deployed)
    assert code == 2
    assert "model.qdq.onnx" in err
    assert "give another --out" in err
    assert contents(deployed) == before


def test_a_run_replaces_what_an_earlier_one_wrote(run: Run, deployed: Path, residual_model: Path, data: Path) -> None:
    (deployed / "model.engine").write_bytes(b"of the earlier run")
    (deployed / "notes.txt").write_text("mine")
    assert run(residual_model, "--size", "16KB", "--calib", data, "--out", deployed, "--target", "onnx")[0] == 0
    written = {"plan.json", "model.qdq.onnx", "grids.json", "report.json", "report.html"}
    assert set(contents(deployed)) == {*written, "notes.txt"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_full_disk_behind_standard_output_is_a_plain_error(flags: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ompq_deploy", "doctor", *flags]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot write: No space left on device\n  where: standard output")


def test_a_reader_that_is_gone_is_no_failed_gate_and_no_defect() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ompq_deploy", "doctor", "--json"]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")


def test_ctrl_c_while_the_command_loads_ends_quietly() -> None:
    pressed = """
import runpy, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "ompq_deploy.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
runpy.run_module("ompq_deploy", run_name="__main__")
"""
    run = subprocess.run([sys.executable, "-c", pressed], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


@pytest.fixture
def ignored_signals() -> Iterator[None]:
    """SIGTERM ends no test that fails to handle it; the handlers are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("ignored_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, code: int, run: Run, residual_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "make_plan", lambda *_: os.kill(os.getpid(), number))
    returned, _, err = run(residual_model, "--size", "16KB", "--out", tmp_path / "out")
    assert (returned, err.splitlines()[-1]) == (code, "interrupted; nothing was left half-written")
    assert not (tmp_path / "out").exists()


def test_the_accuracy_gate(run: Run, residual_model: Path, data: Path, tmp_path: Path) -> None:
    code, _, err = run(
        residual_model, "--size", "16KB", "--calib", data, "--eval", data, "--max-drop", "-200", "--out", tmp_path / "o"
    )
    assert code == 1
    assert "top-1" in err
    assert (tmp_path / "o" / "report.json").exists()


def test_an_engine_asked_for_by_name_is_refused_before_the_work_where_sizes_are_open(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_backend", lambda _: Backend(name="tensorrt_rtx", version="1", module=None))
    g = models.GraphBuilder()
    y = g.conv(g.conv("x", "a", 3, 4), "b", 4, 4)
    path = models.save(g.model(["N", 3, "H", "W"], y, ["N", 4, "H", "W"]), tmp_path / "m.onnx")
    common = (path, "--size", "5KB", "--calib", data, "--metric", "size", "--effort", "quick")
    named = (*common, "--target", "tensorrt_rtx", "--out", tmp_path / "named")
    code, _, err = run(*named)
    assert code == 4
    assert err.startswith("error: an engine needs fixed sizes, input 'x' has open axes besides the batch: Nx3xNxN")
    assert "--input-shape" in err
    assert not (tmp_path / "named").exists()
    code, _, err = run(*common, "--out", tmp_path / "auto", "--json")
    assert code == 0, err
    skipped = json.loads((tmp_path / "auto" / "report.json").read_text())["skipped"]
    assert "an engine needs fixed sizes" in skipped["engine"]
    monkeypatch.setattr(pipeline, "make_plan", Mock(side_effect=BadInput("the work began")))
    assert "the work began" in run(*named, "--input-shape", "Nx3x16x16")[2]


def uncovered_network(folder: Path) -> Path:
    """Two convolutions, and between them an operator without an integer form."""
    g = models.GraphBuilder()
    y = g.conv(g.node("Hardmax", [g.conv("x", "a", 3, 4)], "largest", axis=1), "b", 4, 4)
    return models.save(g.model(["N", 3, 16, 16], y, ["N", 4, 16, 16]), folder / "m.onnx")


def test_an_uncovered_operator_ends_the_integer_target_only(run: Run, tmp_path: Path, data: Path) -> None:
    path = uncovered_network(tmp_path)
    common = [path, "--size", "5KB", "--calib", data, "--out", tmp_path / "o"]
    code, _, err = run(*common, "--target", "integer", "--target", "onnx")
    assert code == 4
    assert "Hardmax" in err
    assert (tmp_path / "o" / "model.qdq.onnx").exists()
    assert run(*common)[0] == 0


def test_so_it_is_where_the_stages_run_one_by_one(run: Run, tmp_path: Path, data: Path) -> None:
    path = uncovered_network(tmp_path)
    out, report = tmp_path / "o", tmp_path / "o" / "report.json"
    run("plan", path, "--size", "5KB", "--calib", data, "--out", out)
    code, stdout, err = run("quantize", out / "plan.json", "--json")
    assert code == 0, err
    assert {Path(name).name for name in json.loads(stdout)["written"]} == {
        "grids.json", "model.qdq.onnx", "model.trt.onnx"
    }  # fmt: skip
    assert "Hardmax" in json.loads(stdout)["skipped"]["integer"]
    assert "Hardmax" in json.loads(report.read_text())["skipped"]["integer"]
    assert json.loads(report.read_text())["passed"]
    for _ in range(2):
        code, stdout, err = run("quantize", out / "plan.json", "--target", "integer")
        assert code == 4
        assert "Hardmax" in err
        assert f"wrote {out / 'model.qdq.onnx'}" in stdout
        assert [failure["exit_code"] for failure in json.loads(report.read_text())["failures"]] == [4]


def test_a_tampered_integer_model_fails_verification(run: Run, deployed: Path) -> None:
    path = deployed / "model.int.onnx"
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.reshape(-1)[0] ^= 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    code, stdout, _ = run("verify", deployed)
    assert code == 1
    assert "FAILED" in stdout


def test_a_plan_for_another_model_is_refused(run: Run, deployed: Path, tmp_path: Path) -> None:
    other = models.save(models.residual_network(seed=1), tmp_path / "other.onnx")
    code, _, err = run("quantize", deployed / "plan.json", "--model", other)
    assert code == 2
    assert "another model" in err


@pytest.mark.parametrize("verb", ["quantize", "verify"])
def test_a_model_that_was_moved_is_named_by_its_flag(
    verb: str, run: Run, deployed: Path, residual_model: Path, tmp_path: Path
) -> None:
    moved = residual_model.rename(tmp_path / "moved.onnx")
    asked = (verb, deployed / "plan.json" if verb == "quantize" else deployed)
    code, _, err = run(*asked)
    assert code == 2
    assert str(residual_model) in err
    assert "--model" in err
    assert run(*asked, "--model", moved)[0] == 0


def test_progress_is_told_now_and_then_in_a_log_and_at_once_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = "block 1/4 [#####...............] 1:05 left"
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    log = cli._listener({"quiet": False})
    assert log is not None
    log(bar, None)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cli, "LOG_EVERY", 0.0)
    log(bar, None)
    assert capsys.readouterr().err == f"  {bar}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = cli._listener({"quiet": False})
    assert terminal is not None
    terminal(bar, None)
    assert f"{bar} ..." in capsys.readouterr().err
    assert cli._listener({"quiet": True}) is None
