"""Training ends in the integers it measured, goes on where it was killed, and is the same on one process or several."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.calib import PRESETS, input_specs
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.export.qdq_reader import read_qdq
from ompq_deploy.files.plan_file import load_plan
from ompq_deploy.finetune.run import finetune
from ompq_deploy.finetune.settings import CHECKPOINT_FILE, FinetuneSettings, TrainSettings
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.settings import PlanSettings
from ompq_deploy.verbs.plan import write_plan
from ompq_deploy.verbs.quantize import write_models
from ompq_deploy.verbs.verify import verify_folder
from tests import models
from tests.finetuning import save_images
from tests.test_fake_quant import STEP_SHARE, run_qdq

torch = pytest.importorskip("torch")
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph  # noqa: E402

SETTINGS = TrainSettings(epochs=3, batch=16, lr=0.03, hold_out=0.2, distill=0.5, checkpoint_every=3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images.npz")


@pytest.fixture
def plan(residual_model: Path, images: Path, tmp_path: Path) -> Path:
    settings = PlanSettings(size="99%", size_of="weights", bits=(3,), samples=8, calib=images, threads=1)
    settings = replace(settings, metric=replace(settings.metric, name="mse"), preprocess=PRESETS["torchvision"])
    write_plan(residual_model, settings, tmp_path / "plan")
    return tmp_path / "plan" / "plan.json"


@pytest.fixture
def settings(plan: Path, images: Path, tmp_path: Path) -> FinetuneSettings:
    return FinetuneSettings(
        plan=plan, train=(images,), out=tmp_path / "tuned", training=SETTINGS, targets=("onnx", "integer"), threads=1
    )


LEAVE = """
import time
from contextlib import suppress
from pathlib import Path

import torch
from ompq_deploy.finetune.distributed import joined


def in_touch() -> bool:
    found = ""
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):
            found += name.read_text()
    return "gloo" in found


with joined("cpu") as world:
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    world.add_up([torch.ones(3)])
    was = in_touch()
latest = time.monotonic() + 5
while in_touch() and time.monotonic() < latest:
    time.sleep(0.01)
Path(__file__).with_suffix(f".{world.rank}").write_text(f"{was} {in_touch()}")
"""


def in_two_processes(*command: object) -> subprocess.CompletedProcess[str]:
    """Run `command` by torchrun, on one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as logs:  # torchrun leaves its own behind
        run = subprocess.run(
            [*launcher, *(str(part) for part in command)],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": logs},
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run


def integers(model: Path, folder: Path) -> QuantizedGraph:
    document, graph = load_plan(folder / "plan.json")[0], prepare(model)
    return read_qdq(onnx.load(folder / "model.qdq.onnx"), graph, document)


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_training_lowers_the_loss_and_writes_everything(residual_model: Path, settings: FinetuneSettings) -> None:
    settings = replace(settings, training=replace(SETTINGS, epochs=8), eval_data=settings.train[0])
    result = finetune(residual_model, settings)
    assert result is not None
    assert not result.failures
    record = report(settings.out)["finetune"]
    losses = [row["loss"] for row in record["epochs"]]
    assert losses[-1] < 0.8 * losses[0]
    assert record["kept_epoch"] > 0
    assert (record["training_samples"], record["held_out_samples"]) == (64, 16)
    written = {path.name for path in settings.out.iterdir()}
    assert written >= {"plan.json", "model.qdq.onnx", "model.int.onnx", "verify.json", "report.json", "report.html"}
    assert "finetune.ckpt" not in written
    assert set(report(settings.out)["eval"]) == {"float", "qdq", "integer"}
    assert load_plan(settings.out / "plan.json")[0] == load_plan(settings.plan)[0]
    assert verify_folder(settings.out, residual_model)["passed"]


def test_the_file_written_computes_what_was_measured(residual_model: Path, settings: FinetuneSettings) -> None:
    """The held-out loss of the record is that of the Q/DQ model in onnxruntime."""
    from ompq_deploy.evaluate.heads import log_softmax
    from ompq_deploy.finetune.data import load_training

    settings = replace(settings, training=replace(SETTINGS, distill=0.0, epochs=2))
    finetune(residual_model, settings)
    record = report(settings.out)["finetune"]
    data = load_training(
        settings.train, input_specs(onnx.load(residual_model)), preprocess=PRESETS["torchvision"],
        labelled=True, classes=10, hold_out=SETTINGS.hold_out, seed=SETTINGS.seed,
    )  # fmt: skip
    feeds, labels = data.take(data.held_out)
    outputs = run_qdq(onnx.load(settings.out / "model.qdq.onnx"), feeds)
    loss = -log_softmax(outputs)[np.arange(len(labels)), labels].mean()
    kept = record["epochs"][record["kept_epoch"] - 1]
    assert loss == pytest.approx(kept["held_out_loss"], rel=STEP_SHARE)


def test_the_codes_written_are_those_of_the_graph_trained(residual_model: Path, settings: FinetuneSettings) -> None:
    finetune(residual_model, settings)
    written = integers(residual_model, settings.out)
    again = FakeQuantGraph(written).quantized()
    for a, b in zip(written.layers, again.layers, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
    start = integers(residual_model, start_folder(residual_model, settings))
    assert any((a.codes != b.codes).any() for a, b in zip(written.layers, start.layers, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_of_16_bits_train_other_integers_as_well(
    precision: str, residual_model: Path, settings: FinetuneSettings
) -> None:
    """On the CPU, which autocasts too; what is written is verified as ever."""
    training = replace(settings.training, precision=precision, epochs=4)
    full = finetune(residual_model, replace(settings, training=replace(training, precision="fp32")))
    half = finetune(residual_model, replace(settings, training=training, out=settings.out.with_name(precision)))
    assert full is not None
    assert half is not None
    assert half.report["verify"]["passed"]
    losses = [
        json.loads((run.out / "plan.json").read_text())["finetune"]["epochs"][-1]["held_out_loss"]
        for run in (full, half)
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def start_folder(model: Path, settings: FinetuneSettings) -> Path:
    write_models(settings.plan, model, ("onnx",), settings.plan.parent)
    return settings.plan.parent


def test_training_that_does_not_help_keeps_the_integers_it_began_with(
    residual_model: Path, settings: FinetuneSettings
) -> None:
    settings = replace(settings, training=replace(SETTINGS, lr=100.0, epochs=1, distill=1.0))
    finetune(residual_model, settings)
    assert report(settings.out)["finetune"]["kept_epoch"] == 0
    written, start = (integers(residual_model, f) for f in (settings.out, start_folder(residual_model, settings)))
    for a, b in zip(written.layers, start.layers, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)


def test_it_can_begin_with_the_integers_of_an_earlier_run(residual_model: Path, settings: FinetuneSettings) -> None:
    finetune(residual_model, settings)
    still = replace(SETTINGS, lr=1e-9, epochs=1)
    again = replace(settings, out=settings.out.with_name("again"), start=settings.out, training=still)
    finetune(residual_model, again)
    first, second = (integers(residual_model, s.out) for s in (settings, again))
    for a, b in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
    assert report(again.out)["finetune"]["start"] == str(settings.out)


def test_quantize_keeps_the_integers_that_were_trained(
    residual_model: Path, settings: FinetuneSettings, tmp_path: Path
) -> None:
    plain = start_folder(residual_model, settings)
    untrained = (plain / "model.qdq.onnx").read_bytes()
    finetune(residual_model, replace(settings, targets=("auto",)))
    trained, before = settings.out / "model.qdq.onnx", load_plan(settings.out / "plan.json")[1]
    kept, graph = trained.read_bytes(), (settings.out / "model.trt.onnx").read_bytes()
    assert kept != untrained
    write_models(settings.out / "plan.json", None, ("onnx", "integer"), settings.out, arithmetic="tensorrt")
    after = load_plan(settings.out / "plan.json")[1]
    assert trained.read_bytes() == kept
    assert (settings.out / "model.trt.onnx").read_bytes() == graph
    assert (after["finetune"], after["integers"]) == (before["finetune"], before["integers"])
    assert after["arithmetic"] == "tensorrt"
    assert verify_folder(settings.out, residual_model)["passed"]
    write_models(settings.out / "plan.json", None, ("integer",), tmp_path / "other")
    assert (tmp_path / "other" / "model.qdq.onnx").read_bytes() == kept
    assert not (tmp_path / "other" / "model.trt.onnx").exists()
    trained.write_bytes(untrained)
    with pytest.raises(BadInput, match="holds others"):
        write_models(settings.out / "plan.json", None, ("onnx",), settings.out)
    trained.unlink()
    with pytest.raises(BadInput, match="is gone"):
        write_models(settings.out / "plan.json", None, ("integer",), settings.out)


@pytest.mark.parametrize("at", [4, 10])
def test_a_killed_run_goes_on_to_the_same_integers(
    residual_model: Path, settings: FinetuneSettings, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps, 4 to an epoch, checkpoints after 3, 6, 9 and after every epoch; the kill comes in between."""
    from ompq_deploy.finetune.loop import _Trainer

    whole, killed = settings, replace(settings, out=settings.out.with_name("killed"))
    finetune(residual_model, whole)
    step = _Trainer.step

    def dying(self: _Trainer, *arguments: object) -> torch.Tensor:
        if self.progress.step == at:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(residual_model, killed)
    assert {path.name for path in killed.out.iterdir()} == {"finetune.ckpt"}
    finetune(residual_model, replace(killed, resume=True))
    records = [report(s.out)["finetune"] for s in (whole, killed)]
    assert records[1]["resumed_at_step"] in (at, at - at % 4, at - at % 3)
    assert records[0]["epochs"] == records[1]["epochs"]
    assert (whole.out / "model.qdq.onnx").read_bytes() == (killed.out / "model.qdq.onnx").read_bytes()
    assert not (killed.out / "finetune.ckpt").exists()


def test_two_processes_train_as_one(residual_model: Path, settings: FinetuneSettings) -> None:
    """torchrun with gloo: the same integers and losses up to the order of sums, written and told by one process."""
    pair = settings.out.with_name("pair")
    alone = replace(settings, training=replace(SETTINGS, epochs=1))
    finetune(residual_model, alone)
    run = in_two_processes(
        "-m", "ompq_deploy", "finetune", residual_model, "--plan", settings.plan, "--train", settings.train[0],
        "--out", pair, "--epochs", "1", "--batch", SETTINGS.batch, "--lr", SETTINGS.lr, "--distill", SETTINGS.distill,
        "--hold-out", SETTINGS.hold_out, "--target", "onnx", "--target", "integer", "--threads", "1", "--json",
    )  # fmt: skip
    told = json.loads(run.stdout)["finetune"]
    assert told["processes"] == 2
    assert run.stderr.count("epoch 1/1") == 1
    record = report(alone.out)["finetune"]
    for name, value in record["epochs"][0].items():
        assert told["epochs"][0][name] == pytest.approx(value, rel=1e-3), name
    for a, b in zip(integers(residual_model, alone.out).layers, integers(residual_model, pair).layers, strict=True):
        np.testing.assert_allclose(a.scale, b.scale, rtol=1e-4)
        assert (a.codes != b.codes).mean() < 0.005


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads as Linux does")
def test_a_process_that_has_left_the_world_has_no_thread_of_it(tmp_path: Path) -> None:
    """One that ran on while the interpreter ends aborted the process now and then."""
    script = tmp_path / "leave.py"
    script.write_text(LEAVE)
    in_two_processes(script)
    assert [script.with_suffix(f".{rank}").read_text() for rank in range(2)] == ["True False"] * 2


def test_a_network_that_is_no_classifier_is_trained_towards_the_float_one(images: Path, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    hidden = g.node("Relu", [g.conv("x", "first", 3, 8)], "relu")
    model = models.save(
        g.model(["N", 3, 16, 16], g.conv(hidden, "second", 8, 3), ["N", 3, 16, 16]), tmp_path / "m.onnx"
    )
    planning = PlanSettings(size="99%", size_of="weights", bits=(3,), samples=8, calib=images, threads=1)
    planning = replace(
        planning,
        quantize=QuantizeSettings(effort="quick"),
        metric=replace(planning.metric, name="mse"),
        preprocess=PRESETS["torchvision"],
    )
    write_plan(model, planning, tmp_path / "plan")
    settings = FinetuneSettings(
        plan=tmp_path / "plan" / "plan.json", train=(images,), out=tmp_path / "tuned", targets=("onnx",),
        training=replace(SETTINGS, distill=1.0, lr=0.01), threads=1,
    )  # fmt: skip
    finetune(model, settings)
    epochs = report(settings.out)["finetune"]["epochs"]
    assert epochs[-1]["held_out_loss"] < epochs[0]["held_out_loss"]
    with pytest.raises(BadInput, match="no classifier"):
        finetune(model, replace(settings, training=SETTINGS))


def test_data_and_settings_that_cannot_be_used_are_told(
    residual_model: Path, settings: FinetuneSettings, tmp_path: Path
) -> None:
    with np.load(settings.train[0]) as stored:
        images, labels = stored["images"], stored["labels"]
    np.savez(tmp_path / "unlabelled.npz", images=images)
    np.savez(tmp_path / "many.npz", images=images, labels=labels + 8)
    np.savez(tmp_path / "grey.npz", images=images[..., 0], labels=labels)
    ready = np.random.default_rng(0).standard_normal((20, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "ready.npz", x=ready, labels=labels[:20])
    other = models.save(models.residual_network(seed=1), tmp_path / "other.onnx")

    def refused(what: str, model: Path = residual_model, training: TrainSettings = SETTINGS, **changed: object) -> None:
        with pytest.raises(BadInput, match=what):
            finetune(model, replace(settings, training=training, **changed))
        assert not settings.out.exists()

    refused("no labels", train=(tmp_path / "unlabelled.npz",))
    refused("labels run from 8 to 10, but the model has 10", train=(tmp_path / "many.npz",))
    refused("expected images", train=(tmp_path / "grey.npz",))
    refused(
        "only images",
        train=(tmp_path / "ready.npz",),
        preprocess=PRESETS["none"],
        training=replace(SETTINGS, augment="flip"),
    )
    refused("another model", model=other)
    refused("leaves none to choose the epoch by", training=replace(SETTINGS, hold_out=0.001))
    refused("make no batch", training=replace(SETTINGS, batch=80))
    refused("no such file", train=(tmp_path / "nowhere.npz",))
    document = json.loads(settings.plan.read_text())
    document["settings"]["calib"] = str(tmp_path / "unlabelled.npz")
    np.savez(tmp_path / "unlabelled.npz", images=images[:, ::-1])
    settings.plan.write_text(json.dumps(document))
    refused("calibrated on other data")


def test_unlabelled_data_are_enough_to_distill(
    residual_model: Path, settings: FinetuneSettings, tmp_path: Path
) -> None:
    with np.load(settings.train[0]) as stored:
        np.savez(tmp_path / "unlabelled.npz", images=stored["images"])
    training = replace(SETTINGS, distill=1.0, epochs=8)
    settings = replace(settings, train=(tmp_path / "unlabelled.npz",), training=training)
    finetune(residual_model, settings)
    epochs = report(settings.out)["finetune"]["epochs"]
    assert epochs[-1]["held_out_loss"] < epochs[0]["held_out_loss"]
    assert epochs[-1]["held_out_top1"] is None


def test_a_checkpoint_of_another_run_is_refused(residual_model: Path, settings: FinetuneSettings) -> None:
    from ompq_deploy.files import checkpoint

    path = settings.out / CHECKPOINT_FILE
    path.parent.mkdir()
    checkpoint.save(path, {"model_sha256": "0"}, {})
    with pytest.raises(BadInput, match=r"another run; they differ in: .*model_sha256"):
        finetune(residual_model, replace(settings, resume=True))
    path.write_bytes(b"PK but no checkpoint")
    with pytest.raises(BadInput, match="no checkpoint"):
        finetune(residual_model, replace(settings, resume=True))


def test_a_loss_that_is_no_longer_finite_ends_the_run(
    residual_model: Path, settings: FinetuneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ompq_deploy.finetune.objective import Objective

    loss = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: loss(*arguments) * math.nan)
    with pytest.raises(BadInput, match="no longer finite after 0 steps"):
        finetune(residual_model, settings)


def test_progress_tells_the_time_left(residual_model: Path, settings: FinetuneSettings) -> None:
    told: list[str] = []
    finetune(residual_model, settings, lambda stage, _: told.append(stage))
    assert any("min left" in message for message in told)
    assert sum(message.startswith("epoch 3/3: loss") for message in told) == 1


def test_without_torch_the_extra_is_named(
    residual_model: Path, settings: FinetuneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ompq_deploy.torch_graph.find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"torch is not installed[\s\S]*ompq-deploy\[torch\]") as stop:
        finetune(residual_model, settings)
    assert stop.value.exit_code == 4


def test_the_command_reads_its_flags(residual_model: Path, settings: FinetuneSettings, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from ompq_deploy.cli import cli

    common = ["finetune", residual_model, "--plan", settings.plan, "--train", settings.train[0], "--train"]
    common += [settings.train[0], "--out", tmp_path / "o", "--target", "onnx", "--quiet", "--json", "--threads", "1"]
    flags = [
        "--epochs",
        "1",
        "--batch",
        "32",
        "--lr",
        "0.001",
        "--distill",
        "1",
        "--hold-out",
        "0.5",
        "--augment",
        "flip",
    ]
    result = CliRunner().invoke(cli, [str(part) for part in (*common, *flags)], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(result.stdout)["finetune"]
    assert (record["training_samples"], record["held_out_samples"], record["steps_per_epoch"]) == (80, 80, 2)
    assert record["settings"]["augment"] == "flip"
    wrong = CliRunner().invoke(cli, [str(part) for part in (*common, "--epochs", "0")])
    assert "--epochs" in str(wrong.exception)
