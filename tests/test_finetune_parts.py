"""What training is made of: batches, loss, rates and steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.calib import PRESETS, input_specs, load_samples
from ompq_deploy.calib.input_spec import InputSpec
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.finetune.data import load_training
from ompq_deploy.finetune.schedule import rate
from ompq_deploy.finetune.settings import TrainSettings
from tests.finetuning import save_images
from tests.quantized import quantize_graph

torch = pytest.importorskip("torch")
from ompq_deploy.finetune.batches import Batch, Batches  # noqa: E402
from ompq_deploy.finetune.distributed import World  # noqa: E402
from ompq_deploy.finetune.objective import Objective  # noqa: E402
from ompq_deploy.finetune.optimizer import REACH, Optimizer  # noqa: E402
from ompq_deploy.finetune.start import centred  # noqa: E402
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph  # noqa: E402


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images.npz")


def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(residual_model: Path, images: Path) -> None:
    """Each process divides by the size of the whole batch, so that gradients add up."""
    start = quantize_graph(residual_model, 3)
    samples = load_samples(images, input_specs(start.graph.model), count=12, preprocess=PRESETS["torchvision"])
    feeds = {name: torch.from_numpy(x) for name, x in samples.inputs.items()}
    whole = Batch(feeds=feeds, labels=torch.from_numpy(samples.labels), whole=12)
    objective = Objective(find_heads(start.graph, samples), 0.0)
    gradients = []
    for size in (12, 5):
        network = FakeQuantGraph(start)
        for part in whole.pieces(size):
            outputs = list(network(part.feeds, objective.heads.tensors).values())
            (objective(outputs, [], part.labels) / part.whole).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in network.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert rate(0, 5, 0.0) == 1


def test_weights_begin_in_the_middle_of_their_codes(residual_model: Path) -> None:
    start = quantize_graph(residual_model, 3)
    network = centred(start)
    for i, (before, after) in enumerate(zip(start.layers, network.quantized().layers, strict=True)):
        np.testing.assert_array_equal(after.codes, before.codes)
        assert torch.equal(network.weights[i], network.weight(i))


def test_a_channel_moves_in_proportion_to_its_scale(residual_model: Path) -> None:
    """As it would before BatchNorm was folded into it; one that is all but switched off stays so, and positive."""
    start = quantize_graph(residual_model, 3)
    steps = []
    for share in (1.0, 1e-2):
        q = start.layers[0]
        scale = q.scale.copy()
        scale[0] = share * scale.max()
        network = FakeQuantGraph(replace(start, layers=(replace(q, scale=scale), *start.layers[1:])))
        before = network.weights[0].detach().clone()
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        Optimizer(network, [100] * len(network.steps), 0.9, 0.0).step(0.1, torch.amp.GradScaler("cpu", enabled=False))
        steps.append((before - network.weights[0].detach()).abs().amax((1, 2, 3))[:2])
        assert all(bool((scale > 0).all()) for scale in network.scales)
        assert float(network.scales[0][0].detach()) >= scale[0] / REACH * 0.999
    ratio = (steps[1] / steps[0]).tolist()
    assert ratio[0] == pytest.approx(1e-4, rel=0.3)
    assert ratio[1] == pytest.approx(1.0, rel=0.3)


def test_batches_are_the_same_in_either_layout_and_shared_out_by_rows(images: Path) -> None:
    def batches(shape: tuple[int | None, ...], rank: int = 0, size: int = 1) -> list:
        data = load_training(
            (images, images), (InputSpec(name="x", shape=shape, dtype=np.dtype(np.float32)),), preprocess=None,
            labelled=True, classes=10, hold_out=0.1, seed=3,
        )  # fmt: skip
        world = World(rank=rank, size=size, device=torch.device("cpu"))
        return list(Batches(data=data, world=world, size=24, augment="flip+crop", seed=3).epoch(1, 2))

    planes, pixels = batches((None, 3, 16, 16)), batches((None, 16, 16, 3))
    halves = [batches((None, 3, 16, 16), rank, 2) for rank in (0, 1)]
    assert len(planes) == 4
    assert not torch.equal(planes[0].feeds["x"], planes[1].feeds["x"])
    for whole, other, *parts in zip(planes, pixels, *halves, strict=True):
        assert torch.equal(whole.feeds["x"], other.feeds["x"].permute(0, 3, 1, 2))
        assert torch.equal(whole.feeds["x"], torch.cat([part.feeds["x"] for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert {part.whole for part in parts} == {24}


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"distill": 1.5}, {"hold_out": 1.0}, {"augment": "spin"}]
)
def test_settings_outside_their_range_are_told(wrong: dict) -> None:
    with pytest.raises(BadInput, match="cannot be used"):
        TrainSettings(**wrong)
