"""The torch fake-quantized graph and the exported Q/DQ model agree, and integers survive the round trip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.quantize import QuantizeSettings, quantize
from tests import models
from tests.quantized import inputs, quantize_graph
from tests.test_quantize import uniform_plan
from tests.test_refine import prepared, run

torch = pytest.importorskip("torch")
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph  # noqa: E402
from tests.tensorrt_helpers import branching_network  # noqa: E402

STEP_SHARE = 0.02
"""Floats summed in another order may move an activation across the middle between two codes: one step of a few."""
Network = Callable[[], onnx.ModelProto]


@pytest.mark.parametrize("effort", ["quick", "default"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("network", [models.residual_network, branching_network])
def test_outputs_agree_with_the_qdq_model(network: Network, bits: int, effort: str, tmp_path: Path) -> None:
    graph, samples, captured = prepared(network(), tmp_path)
    quantized = quantize(graph, captured, uniform_plan(graph, bits), QuantizeSettings(effort=effort), samples=samples)
    feeds = {name: torch.from_numpy(value) for name, value in samples.inputs.items()}
    (found,) = (value.detach().numpy() for value in FakeQuantGraph(quantized)(feeds).values())
    expected = run(qdq_model(quantized), samples, len(samples), as_written=True)
    assert np.abs(found - expected).max() <= STEP_SHARE * np.abs(expected).max()
    assert np.median(np.abs(found - expected)) <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_come_back_as_they_were(bits: int, residual_model: Path) -> None:
    quantized = quantize_graph(residual_model, bits)
    again = FakeQuantGraph(quantized).quantized()
    assert again.grids == quantized.grids
    for before, after in zip(quantized.layers, again.layers, strict=True):
        np.testing.assert_array_equal(after.codes, before.codes)
        np.testing.assert_array_equal(after.scale, before.scale)
        for node in before.biases:
            np.testing.assert_array_equal(after.biases[node], before.biases[node])


def test_every_parameter_gets_a_gradient(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model, 4)
    network = FakeQuantGraph(quantized)
    feeds = {name: torch.from_numpy(value) for name, value in inputs(quantized.graph).items()}
    next(iter(network(feeds).values())).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_of_a_step_is_that_of_lsq() -> None:
    """Esser et al., Eq. 3: round(v) - v inside the range, the bound outside."""
    from ompq_deploy.torch_graph.fake_quant import fake_quantize

    x = torch.tensor([0.3, 0.74, 5.0, -5.0])
    step = torch.tensor(0.5, requires_grad=True)
    expected = [1 - 0.6, 1 - 1.48, 7.0, -8.0]
    for value, gradient in zip(x, expected, strict=True):
        (found,) = torch.autograd.grad(fake_quantize(value, step, -8, 7), step)
        assert float(found) == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_one_step_has_the_gradients_of_a_step_per_channel(dtype: str, tolerance: float) -> None:
    """What is computed in few passes for activations is what autograd finds for weights."""
    from ompq_deploy.torch_graph.fake_quant import fake_quantize

    x = 4 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    at_an_edge = torch.minimum((x / 0.3 + 10.5).abs(), (x / 0.3 - 5.5).abs()) < 0.1
    x = x.masked_fill(at_an_edge, 0).to(getattr(torch, dtype))
    found = []
    for shape, given in (((), x), ((1, 1), x.float())):
        value, step = given.clone().requires_grad_(), torch.full(shape, 0.3, requires_grad=True)
        y = fake_quantize(value, step, -10, 5)
        y.backward(torch.cos(7 * x.float()).to(x.dtype).to(given.dtype))
        found.append((y.detach().float(), value.grad.float(), step.grad.reshape(())))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_real_networks_agree(shared: Callable[[str], Path]) -> None:
    """The largest difference of the outputs, on calibration-like noise, is below a hundredth of their range."""
    for model in ("models/cifar10/resnet20.onnx", "models/cifar10/vit_small.onnx"):
        quantized = quantize_graph(shared(model), 4)
        feeds = inputs(quantized.graph, 4)
        given = {name: torch.from_numpy(value) for name, value in feeds.items()}
        with torch.no_grad():
            (found,) = (value.numpy() for value in FakeQuantGraph(quantized)(given).values())
        (expected,) = (run_qdq(qdq_model(quantized), feeds),)
        assert np.abs(found - expected).max() <= STEP_SHARE * np.ptp(expected)


def run_qdq(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0]
