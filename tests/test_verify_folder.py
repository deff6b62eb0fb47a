"""`ompq-deploy verify FOLDER` finds every seeded mutation of what a run wrote, names the layer, and leaves with 1."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ompq_deploy import pipeline
from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.lock import sha256_of
from ompq_deploy.files.plan_file import load_plan
from ompq_deploy.metrics import MetricSettings
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.verbs import build
from tests import models
from tests.conftest import Run

QDQ, INTEGER, GRIDS = "model.qdq.onnx", "model.int.onnx", "grids.json"
Change = Callable[[np.ndarray], np.ndarray]
Verify = Callable[[Path], tuple[int, dict[str, Any]]]


def write_run(
    folder: Path, *, seed: int = 0, size: str = "16KB", targets: tuple[str, ...] = ("onnx", "integer")
) -> Path:
    """A finished run of the residual network with weights and images of one seed."""
    folder.mkdir()
    model = models.save(models.residual_network(seed=seed), folder / "float.onnx")
    images = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.savez(folder / "data.npz", images=images)
    settings = PlanSettings(
        size=size,
        calib=folder / "data.npz",
        metric=MetricSettings(name="mse"),
        quantize=QuantizeSettings(effort="quick"),
        threads=1,
    )
    pipeline.deploy(model, DeploySettings(plan=settings, out=folder / "out", targets=targets))
    return folder / "out"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "first")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def verify(run: Run) -> Verify:
    """`ompq-deploy verify FOLDER`: exit code and document."""

    def call(folder: Path) -> tuple[int, dict[str, Any]]:
        code, out, error = run("verify", folder, "--json")
        assert out, error
        return code, json.loads(out)

    return call


def change(path: Path, change: Change, name: str) -> None:
    """Change one initializer of a model file, or the first half of one that is stored in two."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name in (name, f"{name}_half0"))
    name = tensor.name
    before = numpy_helper.to_array(tensor)
    after = change(before.copy())
    assert (before != after).any()
    tensor.CopyFrom(numpy_helper.from_array(after.astype(before.dtype), name))
    onnx.save(model, path)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def flip_one(codes: np.ndarray) -> np.ndarray:
    """The lowest bit of one weight; the same change for codes that are stored with an offset."""
    changed = codes.astype(np.int32)
    changed.reshape(-1)[5] ^= 1
    return changed


def swap_channels(codes: np.ndarray) -> np.ndarray:
    codes[[0, 1]] = codes[[1, 0]]
    return codes


def one_percent_more(values: np.ndarray) -> np.ndarray:
    return values + (values // 100 if values.dtype.kind == "i" else values / 100)


def shift_by_one_more(shift: np.ndarray) -> np.ndarray:
    return shift + 1


def sign_again(folder: Path) -> None:
    """Make the lock fit the files as they are now."""
    edit_json(
        folder / "plan.json",
        lambda document: document["files"].update({name: sha256_of(folder / name) for name in document["files"]}),
    )


def failed(document: dict[str, Any]) -> dict[str, str]:
    """The checks that failed, and the layer each names."""
    return {check["name"]: check["layer"] for check in document["checks"] if not check["passed"]}


def test_an_untouched_run_passes(folder: Path, verify: Verify) -> None:
    code, document = verify(folder)
    assert code == 0
    assert failed(document) == {}
    assert document["first_departure"] is None
    assert [check["name"] for check in document["checks"]][:3] == ["files", "calibration", "integers"]


LAYERS = ("stem", "depthwise", "project", "main1", "main2", "downsample", "fc")
QDQ_CODES = {layer: f"w{position}" for position, layer in enumerate(LAYERS)}
TENSORS = {
    "stem": "stem_relu_out",
    "depthwise": "depthwise_clip_out",
    "main1": "main1_relu_out",
    "downsample": "add2_relu_out",
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mutation", [flip_one, swap_channels], ids=["one weight", "swapped channels"])
def test_weights_changed_in_the_qdq_model(layer: str, mutation: Change, folder: Path, verify: Verify) -> None:
    change(folder / "model.qdq.onnx", mutation, QDQ_CODES[layer])
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", "integers": layer, INTEGER: layer, "reference": layer}
    assert document["first_departure"]["layer"] == layer


@pytest.mark.parametrize(
    ("part", "mutation"),
    [
        ("codes", flip_one),
        ("codes", swap_channels),
        ("scaled_multiplier", one_percent_more),
        ("shift", shift_by_one_more),
    ],
    ids=["one weight", "swapped channels", "scale off by 1 %", "wrong shift"],
)
@pytest.mark.parametrize("layer", TENSORS)
def test_the_integer_model_changed(layer: str, part: str, mutation: Change, folder: Path, verify: Verify) -> None:
    of_product = layer == "main1" and part != "codes"  # its rule is applied with channels last
    change(folder / INTEGER, mutation, f"{TENSORS[layer]}{'_last' if of_product else ''}_{part}")
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", INTEGER: layer, "reference": layer}
    assert document["first_departure"] == {"layer": layer, "tensor": TENSORS[layer]}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_scale_off_by_one_percent(layer: str, folder: Path, verify: Verify) -> None:
    change(folder / "model.qdq.onnx", one_percent_more, f"{QDQ_CODES[layer]}_s")
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", "integers": layer, INTEGER: layer, "reference": layer}


def test_an_activation_scale_off_by_one_percent(folder: Path, verify: Verify) -> None:
    change(folder / "model.qdq.onnx", one_percent_more, "x_s")
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", "integers": "stem", GRIDS: "x", INTEGER: "x", "reference": "x"}


def test_one_weight_changed_in_both_models_alike(folder: Path, verify: Verify) -> None:
    """Their executions agree, so that only the lock can tell."""
    weights = next(tensor for tensor in onnx.load(folder / QDQ).graph.initializer if tensor.name == QDQ_CODES["main1"])
    code = int(numpy_helper.to_array(weights)[0, 0, 1, 2])

    def flip_the_same(half: np.ndarray) -> np.ndarray:
        """In the rows of the matrix channels run before places; codes that differ in the lowest bit share half 0."""
        half[5 * weights.dims[1], 0] += (code ^ 1) - code
        return half

    change(folder / QDQ, flip_one, QDQ_CODES["main1"])
    change(folder / INTEGER, flip_the_same, "main1_relu_out_codes_half1")
    code, document = verify(folder)
    assert code == 1
    assert {"files": "", "integers": "main1"}.items() <= failed(document).items()
    assert document["matches_reference"] is True


def test_constants_changed_behind_the_lock(folder: Path, verify: Verify) -> None:
    """Each constant of a layer by itself, with a lock made to fit, whether or not a sample shows it."""
    names = [tensor.name for tensor in onnx.load(folder / INTEGER).graph.initializer]
    whole = (folder / INTEGER).read_bytes()
    for name in (name for name in names if name.startswith("main1_relu_out_")):
        change(folder / INTEGER, lambda values: values ^ 1, name)
        sign_again(folder)
        code, document = verify(folder)
        assert code == 1, name
        assert failed(document)[INTEGER] == "main1", name
        (folder / INTEGER).write_bytes(whole)


def test_nodes_changed_in_the_qdq_model(folder: Path, verify: Verify) -> None:
    """Weights and scales are those of the lock; the last layer has lost its bias."""
    model = onnx.load(folder / QDQ)
    del next(node for node in model.graph.node if node.op_type == "Gemm").input[2:]
    onnx.save(model, folder / QDQ)
    sign_again(folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {QDQ: "fc", "outputs": "fc"}


def test_a_function_changed_in_the_qdq_model(folder: Path, verify: Verify) -> None:
    model = onnx.load(folder / QDQ)
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.save(model, folder / QDQ)
    sign_again(folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {QDQ: ""}


def test_grids_that_are_not_those_of_the_models(folder: Path, verify: Verify) -> None:
    edit_json(folder / GRIDS, lambda document: document["tensors"]["main1_relu_out"].update(zero_point=7))
    sign_again(folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {GRIDS: "main1_relu_out"}


@pytest.mark.parametrize("name", [QDQ, INTEGER])
def test_a_damaged_model_file(name: str, folder: Path, run: Run) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    code, out, error = run("verify", folder, "--json")
    assert code == 1
    assert f"{name} is not the file that plan.json records" in error
    assert failed(json.loads(out)) == {"files": "", "comparison": ""}


def test_a_run_without_an_integer_model(folder: Path, run: Run) -> None:
    (folder / INTEGER).unlink()
    edit_json(folder / "plan.json", lambda document: document["files"].pop(INTEGER))
    code, _, error = run("verify", folder)
    assert code == 2
    assert "this run wrote no model.int.onnx" in error


def test_a_model_of_another_run(folder: Path, tmp_path: Path, verify: Verify) -> None:
    other = write_run(tmp_path / "second", size="7KB")
    shutil.copy(other / "model.int.onnx", folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", INTEGER: "main2", "reference": "main2"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "7KB"}, "is not stored as"),
        ({"seed": 1}, "made for another model"),
    ],
    ids=["another plan of this model", "another model"],
)
def test_a_plan_of_another_run(
    settings: dict[str, Any], message: str, folder: Path, tmp_path: Path, run: Run, finished: Path
) -> None:
    """The plan names its own float model, so that the one of the folder is given by hand."""
    shutil.copy(write_run(tmp_path / "second", **settings) / "plan.json", folder)
    code, _, error = run("verify", folder, "--model", finished.parent / "float.onnx")
    assert code == 1
    assert "not the files of this plan" in error
    assert message in error
    assert "model.qdq.onnx is not the file that plan.json records" in error


def test_a_missing_record_is_told(folder: Path, verify: Verify) -> None:
    edit_json(folder / "plan.json", lambda document: document["files"].pop("model.int.onnx"))
    (folder / "model.engine").write_bytes(b"left by an earlier run")
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"files": "", "engine": ""}
    detail = document["checks"][0]["detail"]
    assert "does not record model.int.onnx" in detail
    assert "does not record model.engine" in detail


def test_the_table_names_layer_and_check(folder: Path, run: Run) -> None:
    change(folder / "model.int.onnx", flip_one, "main1_relu_out_codes")
    code, out, _ = run("verify", folder)
    assert code == 1
    assert "first departure: main1" in out
    assert "FAILED (files, model.int.onnx, reference)" in out


def test_stages_run_one_by_one_keep_the_lock(finished: Path, tmp_path: Path, run: Run, verify: Verify) -> None:
    shutil.copy(finished / "plan.json", tmp_path)
    assert run("quantize", tmp_path / "plan.json", "--target", "onnx")[0] == 0
    assert set(json.loads((tmp_path / "plan.json").read_text())["files"]) == {"model.qdq.onnx", "grids.json"}
    assert run("quantize", tmp_path / "plan.json", "--target", "integer", "--target", "tensorrt")[0] == 0
    assert verify(tmp_path)[0] == 0
    lock = json.loads((tmp_path / "plan.json").read_text())["files"]
    assert set(lock) == {"grids.json", "model.qdq.onnx", "model.int.onnx", "model.trt.onnx"}
    assert lock["model.qdq.onnx"] == json.loads((finished / "plan.json").read_text())["files"]["model.qdq.onnx"]


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("instead", ["missing", "another model", "text", "folder"])
@pytest.mark.parametrize("name", [QDQ, INTEGER])
def test_what_cannot_be_compared_fails_in_verdict_and_report_too(
    name: str, instead: str, folder: Path, finished: Path, run: Run
) -> None:
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    if instead == "another model":
        shutil.copy(finished.parent / "float.onnx", folder / name)
    elif instead == "text":
        (folder / name).write_text("text")
    elif instead == "folder":
        (folder / name).mkdir()
    code, out, error = run("verify", folder, "--json")
    assert code == 1
    document = json.loads(out)
    assert "files" in failed(document)
    assert (document["passed"], document == json.loads((folder / "verify.json").read_text())) == (False, True)
    for part in ("verification failed", name, "where: ", "to do: "):
        assert part in error
    report = report_of(folder)
    assert (report["passed"], report["verify"]) == (False, document)
    assert "verification failed" in report["failures"][0]["what"]
    code, out, _ = run("report", folder)
    assert "NOT verified" in out
    if instead == "folder":
        (folder / name).rmdir()
    (folder / name).write_bytes(before)
    assert run("verify", folder)[0] == 0
    report = report_of(folder)
    assert (report["passed"], report["verify"]["passed"], report["failures"]) == (True, True, [])
    assert report["heads"] == report_of(finished)["heads"]


def elsewhere(folder: Path, path: Path) -> None:
    """Let the plan look for its calibration data at `path`."""
    edit_json(folder / "plan.json", lambda document: document["settings"].update(calib=str(path)))


def test_calibration_data_that_changed_are_told(folder: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    images = np.load(finished.parent / "data.npz")["images"]
    np.savez(tmp_path / "data.npz", images=images[:, ::-1])
    elsewhere(folder, tmp_path / "data.npz")
    code, out, error = run("verify", folder, "--json")
    assert code == 1
    assert failed(json.loads(out)) == {"calibration": ""}
    assert str(tmp_path / "data.npz") in error
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, error = run("quantize", folder / "plan.json")
    assert code == 2
    assert "calibrated on other data" in error
    assert str(tmp_path / "data.npz") in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_calibration_data_may_lie_elsewhere(folder: Path, finished: Path, run: Run) -> None:
    elsewhere(folder, Path("data.npz"))
    before = (folder / QDQ).read_bytes()
    for command in (("verify", folder), ("quantize", folder / "plan.json")):
        code, _, error = run(*command)
        assert code == 2
        assert "with --calib" in error
        assert run(*command, "--calib", finished.parent / "data.npz")[0] == 0
    assert (folder / QDQ).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_verified(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "verify.json").read_bytes()

    def refuse(**_: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    code, out, error = run("verify", folder, "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    assert "verify.json was not written" in error
    change(folder / INTEGER, flip_one, "main1_relu_out_codes")
    code, out, error = run("verify", folder)
    assert code == 1
    assert "first departure: main1" in out
    assert "verify.json was not written" in error
    assert (folder / "verify.json").read_bytes() == before


def test_files_written_anew_are_unverified_and_keep_what_still_holds(folder: Path, run: Run) -> None:
    heads = report_of(folder)["heads"]
    assert run("quantize", folder / "plan.json", "--target", "tensorrt")[0] == 0
    assert not (folder / "verify.json").exists()
    report = report_of(folder)
    assert (report["verify"], report["heads"]) == (None, heads)
    assert report["files"] == json.loads((folder / "plan.json").read_text())["files"]
    assert run("verify", folder)[0] == 0
    assert report_of(folder)["verify"]["passed"] is True
    assert run("quantize", folder / "plan.json", "--arithmetic", "tensorrt")[0] == 0
    assert report_of(folder)["heads"] is None


def test_files_of_other_integers_do_not_stay_beside_those_written(folder: Path, tmp_path: Path, run: Run) -> None:
    other = write_run(tmp_path / "second", size="7KB") / "plan.json"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, error = run("quantize", other, "--target", "onnx", "--out", folder)
    assert code == 2
    assert f"{INTEGER} would stay here" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_changed_graph_for_tensorrt_is_named_by_its_layer_and_never_built(
    folder: Path, run: Run, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("quantize", folder / "plan.json", "--target", "tensorrt")[0] == 0
    assert verify(folder)[0] == 0
    path = folder / "model.trt.onnx"
    before = path.read_bytes()
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    dequantize = next(node for node in nodes.values() if nodes["main2"].input[1] in node.output)
    change(path, flip_one, dequantize.input[0])
    sign_again(folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"model.trt.onnx": "main2"}
    built = Mock(side_effect=BackendMissing("seen", where="", fix=""))
    monkeypatch.setattr(build, "find_backend", lambda _: object())
    monkeypatch.setattr(build, "build_engine", built)
    assert run("build", folder)[0] == 4
    assert built.call_args.args[0].SerializeToString() == before


def test_the_graph_for_tensorrt_is_made_of_the_files_with_the_grids_calibrated_for_it(
    folder: Path, finished: Path, run: Run
) -> None:
    assert run("quantize", folder / "plan.json", "--target", "tensorrt")[0] == 0
    plan, graph = load_plan(folder / "plan.json")[0], prepare(finished.parent / "float.onnx")
    made = tensorrt_graph(pipeline.read_integers(folder, graph, plan))

    def scales(model: onnx.ModelProto) -> dict[str, bytes]:
        tensors = model.graph.initializer
        return {tensor.name: tensor.raw_data for tensor in tensors if tensor.name.endswith("/scale")}

    assert scales(made) == scales(onnx.load(folder / "model.trt.onnx"))
    edit_json(folder / GRIDS, lambda document: document.pop("symmetric"))
    assert scales(tensorrt_graph(pipeline.read_integers(folder, graph, plan))) != scales(made)


def test_the_stages_in_a_row_with_their_defaults(finished: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "out"
    flags = ["--size", "16KB", "--calib", finished.parent / "data.npz", "--metric", "mse", "--effort", "quick"]
    assert run("plan", finished.parent / "float.onnx", *flags, "--out", out)[0] == 0
    assert run("report", out)[0] == 0
    assert run("build", out)[0] == 2
    for command in (("quantize", out / "plan.json"), ("build", out), ("verify", out)):
        code, _, error = run(*command)
        assert code == 0, error
    assert {"model.trt.onnx", "model.engine", "engine.json", "report.html"} <= {path.name for path in out.iterdir()}
    code, text, _ = run("report", out, "--json")
    assert code == 0
    report = json.loads(text)
    assert report == {**report, **json.loads((out / "plan.json").read_text()), "passed": True}
    assert report["verify"] == json.loads((out / "verify.json").read_text())
    assert report["engine"] == json.loads((out / "engine.json").read_text())
    assert run("quantize", out / "plan.json", "--target", "onnx")[0] == 0
    assert report_of(out)["engine"] == report["engine"]
    assert run("verify", out)[0] == 0


@pytest.fixture(scope="module")
def with_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx")
    return write_run(tmp_path_factory.mktemp("engine") / "run", targets=("onnx", "integer", "tensorrt_rtx"))


def test_an_engine_that_is_not_its_records(with_engine: Path, tmp_path: Path, verify: Verify) -> None:
    folder = shutil.copytree(with_engine, tmp_path / "copy")
    assert verify(folder)[0] == 0
    plan = bytearray((folder / "model.engine").read_bytes())
    plan[-1] ^= 1
    (folder / "model.engine").write_bytes(plan)
    code, document = verify(folder)
    assert code == 1
    assert set(failed(document)) == {"files", "engine"}
    assert "model.engine is not the engine that engine.json records" in json.dumps(document["checks"])


def test_an_engine_of_other_weights_with_its_record(with_engine: Path, tmp_path: Path, verify: Verify) -> None:
    """Engine and record of another run agree with each other, and not with this network."""
    folder = shutil.copytree(with_engine, tmp_path / "copy")
    other = write_run(tmp_path / "other", seed=1, targets=("tensorrt_rtx",))
    for name in ("model.engine", "engine.json", "model.trt.onnx"):
        shutil.copy(other / name, folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document)["engine"] in LAYERS
    assert "holds other weights than model.qdq.onnx" in json.dumps(document["checks"])


def test_one_weight_flipped_in_the_engine(with_engine: Path, tmp_path: Path, verify: Verify) -> None:
    """With a record and a lock that were made to fit, reading the engine finds the layer."""
    folder = shutil.copytree(with_engine, tmp_path / "copy")
    qdq = onnx.load(folder / "model.qdq.onnx")
    codes = numpy_helper.to_array(next(t for t in qdq.graph.initializer if t.name == QDQ_CODES["fc"]))
    plan = bytearray((folder / "model.engine").read_bytes())
    place = max(plan.find(layout.astype(np.int8).tobytes()) for layout in (codes, codes.T))
    assert place >= 0
    plan[place] ^= 1
    (folder / "model.engine").write_bytes(plan)
    digest = hashlib.sha256(plan).hexdigest()
    edit_json(folder / "engine.json", lambda record: record.update(sha256=digest))
    sign_again(folder)
    code, document = verify(folder)
    assert code == 1
    assert failed(document) == {"engine": "fc"}


def test_a_bias_and_a_constant_behind_it_are_added_as_they_are_stored(verify: Verify, tmp_path: Path) -> None:
    """The file holds the bias on its grid, so that the integers are made from that and not from what it was before."""
    g = models.GraphBuilder()
    added = g.constant(g.random.standard_normal((1, 32, 1, 1)).astype(np.float32), "added")
    y = g.conv(g.node("Relu", [g.node("Add", [g.conv("x", "first", 3, 32), added], "sum")], "relu"), "last", 32, 2)
    model = models.save(g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8]), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32))
    settings = PlanSettings(size="400%", calib=tmp_path / "x.npz", quantize=QuantizeSettings(effort="quick"), threads=1)
    pipeline.deploy(model, DeploySettings(plan=settings, out=tmp_path / "out", targets=("onnx", "integer")))
    code, document = verify(tmp_path / "out")
    assert code == 0, document["checks"]
