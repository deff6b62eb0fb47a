"""Weights of a block's loss and of a layer's positions are the diagonal of the Fisher information, 1 on average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import SOFTENED, Head, Heads
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.reconstruct.blocks import find_blocks
from tests import models
from tests.test_refine import smooth_samples

torch = pytest.importorskip("torch")
from ompq_deploy.quantize import fisher  # noqa: E402
from ompq_deploy.torch_graph.graph import TorchGraph  # noqa: E402

COUNT = 3


@pytest.fixture
def known(tmp_path: Path) -> tuple[PreparedGraph, dict[str, torch.Tensor]]:
    """A network, and the output of its last residual block for a few samples."""
    graph = prepare(models.save(models.residual_network(), tmp_path / "model.onnx"))
    block = find_blocks(graph)[-2]
    return graph, TorchGraph(graph)(_feeds(smooth_samples(graph, COUNT)), outputs=block.outputs)


def _feeds(samples: Samples) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x) for name, x in samples.inputs.items()}


def _weights(graph: PreparedGraph, heads: Heads, feeds: dict[str, torch.Tensor], fixed: int | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    (found,) = fisher.fisher_weights(TorchGraph(graph), heads, feeds, list(feeds), fixed, generator).values()
    return found


def _jacobian(graph: PreparedGraph, feeds: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs, and their gradients: (classes, samples, elements)."""
    ((name, y),) = feeds.items()
    leaf = y.clone().requires_grad_()
    (z,) = TorchGraph(graph)({name: leaf}).values()
    rows = [torch.autograd.grad(z[:, c].sum(), leaf, retain_graph=True)[0].flatten(1) for c in range(z.shape[1])]
    return z.detach(), torch.stack(rows)


def _exact_positions(graph: PreparedGraph, samples: Samples, tensor: str) -> np.ndarray:
    """sum_c p_c (d ln p_c)^2 in every position of a tensor inside, summed over its channels."""
    total = sum(p.reshape([-1] + [1] * (g.ndim - 1)) * g.square() for p, g in _scores(graph, samples, tensor))
    return total.sum(dim=1).reshape(len(total), -1).numpy()


def _exact_channels(graph: PreparedGraph, samples: Samples, tensor: str) -> np.ndarray:
    """sum_c p_c (d ln p_c)(d ln p_c)^T over the channels of a tensor inside, summed over samples and positions."""
    flat = [(p, g.reshape(*g.shape[:2], -1)) for p, g in _scores(graph, samples, tensor)]
    return sum(torch.einsum("n,ncp,ndp->cd", p, g, g) for p, g in flat).numpy()


def _scores(graph: PreparedGraph, samples: Samples, tensor: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """p_c (samples,) and d ln p_c in a tensor inside, for every class."""
    tracked = {tensor: lambda x: x.requires_grad_()}
    (output,) = graph.output_names
    values = TorchGraph(graph)(_feeds(samples), hooks=tracked, outputs=[tensor, output])
    y, z = values[tensor], values[output]
    log_p = torch.log_softmax(z / SOFTENED, dim=1)
    return [
        (log_p[:, c].detach().exp(), torch.autograd.grad(log_p[:, c].sum(), y, retain_graph=True)[0])
        for c in range(z.shape[1])
    ]


def test_a_classifier(known: tuple[PreparedGraph, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """F = sum_c p_c (d ln p_c)^2."""
    graph, feeds = known
    monkeypatch.setattr(fisher, "DRAWS", 600)
    z, jacobian = _jacobian(graph, feeds)
    p = torch.softmax(z / SOFTENED, dim=1)
    scores = jacobian - torch.einsum("nc,cne->ne", p, jacobian)
    exact = torch.einsum("nc,cne->ne", p, scores.square())
    found = _weights(graph, Heads(classifier=True, tensors=tuple(graph.output_names)), feeds, None).flatten(1)
    assert float(found.mean()) == pytest.approx(1)
    torch.testing.assert_close(found, exact / exact.mean(), rtol=0.3, atol=0.05)


@pytest.mark.parametrize("fixed", [None, 2])
def test_other_outputs(
    fixed: int | None, known: tuple[PreparedGraph, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F = sum over elements of their gradients' squares, those of a head divided by its variation."""
    graph, feeds = known
    monkeypatch.setattr(fisher, "DRAWS", 600)
    (tensor,) = graph.output_names
    variations = np.array([1.0, 25.0])
    parts = tuple(
        Head(tensor=tensor, layers=(), shape=(10,), elements=np.arange(5 * k, 5 * k + 5), variation=float(v))
        for k, v in enumerate(variations)
    )
    _, jacobian = _jacobian(graph, feeds)
    exact = torch.einsum("c,cne->ne", torch.from_numpy(np.repeat(1 / variations, 5)).float(), jacobian.square())
    found = _weights(graph, Heads(classifier=False, tensors=(tensor,), parts=parts), feeds, fixed).flatten(1)
    torch.testing.assert_close(found, exact / exact.mean(), rtol=0.3, atol=0.05)


def test_a_network_that_reads_nothing_of_the_block(known: tuple[PreparedGraph, dict[str, torch.Tensor]]) -> None:
    graph, feeds = known
    ((name, y),) = feeds.items()
    dead = {name: torch.full_like(y, 0.0)}
    network = TorchGraph(graph)
    network.constants = {key: torch.zeros_like(value) if value.is_floating_point() else value
                         for key, value in network.constants.items()}  # fmt: skip
    heads = Heads(classifier=True, tensors=tuple(graph.output_names))
    (found,) = fisher.fisher_weights(network, heads, dead, [name], None, torch.Generator()).values()
    assert (found == 1).all()


def test_positions_weigh_by_the_root_of_their_channels_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "model.onnx"))
    monkeypatch.setattr(fisher, "POSITION_DRAWS", 600)
    samples = smooth_samples(graph, COUNT)
    found = fisher.output_weights(TorchGraph(graph), graph, find_heads(graph, samples), samples, COUNT, 0).positions
    assert set(found) == {node for layer in graph.layers for node in layer.nodes}
    for weights in found.values():
        assert len(weights) == COUNT
        assert weights.mean() == pytest.approx(1, abs=1e-5)
    tensors = {node.name: node.output[0] for node in graph.model.graph.node}
    for node in ("depthwise", "main2", "fc"):
        exact = _exact_positions(graph, samples, tensors[node])
        np.testing.assert_allclose(found[node], np.sqrt(exact) / np.sqrt(exact).mean(), rtol=0.2, atol=0.03)


def test_channels_matter_together_as_their_gradients_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "model.onnx"))
    monkeypatch.setattr(fisher, "POSITION_DRAWS", 600)
    samples = smooth_samples(graph, 2)
    found = fisher.output_weights(TorchGraph(graph), graph, find_heads(graph, samples), samples, 2, 0).channels
    assert set(found) == {layer.name for layer in graph.layers} - {"depthwise"}
    tensors = {node.name: node.output[0] for node in graph.model.graph.node}
    for layer in ("main2", "fc"):
        for half, matrix in enumerate(found[layer]):
            one = Samples(inputs={"x": samples.inputs["x"][half : half + 1]}, labels=None, source="", sha256="")
            exact = _exact_channels(graph, one, tensors[layer])
            assert np.trace(matrix) == pytest.approx(len(matrix), rel=1e-4)
            np.testing.assert_allclose(matrix, exact * len(exact) / np.trace(exact), atol=0.25)


def test_one_sample_has_no_halves_to_compare(tmp_path: Path) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "model.onnx"))
    samples = smooth_samples(graph, 1)
    found = fisher.output_weights(TorchGraph(graph), graph, find_heads(graph, samples), samples, 1, 0)
    assert not found.channels
    assert set(found.positions) == {node for layer in graph.layers for node in layer.nodes}


def test_a_layer_that_leads_nowhere_has_no_weights(tmp_path: Path) -> None:
    g = models.GraphBuilder(1)
    dead = g.conv("x", "dead", 3, 4)
    zero = g.node("Mul", [dead, g.constant(np.zeros(1, np.float32), "zero")], "off")
    pooled = g.node("Flatten", [g.node("GlobalAveragePool", [g.conv(zero, "next", 4, 4)], "pool")], "flatten")
    model = g.model(["N", 3, 6, 6], g.gemm(pooled, "fc", 4, 5), ["N", 5])
    graph = prepare(models.save(model, tmp_path / "m.onnx"))
    samples = smooth_samples(graph, COUNT)
    found = fisher.output_weights(TorchGraph(graph), graph, find_heads(graph, samples), samples, COUNT, 0)
    assert {"fc", "next"} <= set(found.positions)
    assert {"fc", "next"} <= set(found.channels)
    assert "dead" not in {*found.positions, *found.channels}
