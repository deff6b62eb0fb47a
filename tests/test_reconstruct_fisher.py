"""The weights of a block's loss are the diagonal of its Fisher information, 1 on average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.heads import Head, Heads
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.reconstruct.blocks import find_blocks
from tests import models
from tests.test_refine import smooth_samples

torch = pytest.importorskip("torch")
from ompq_deploy.quantize.reconstruct import fisher  # noqa: E402
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


def test_a_classifier(known: tuple[PreparedGraph, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """F = sum_c p_c (d ln p_c)^2."""
    graph, feeds = known
    monkeypatch.setattr(fisher, "DRAWS", 600)
    z, jacobian = _jacobian(graph, feeds)
    p = torch.softmax(z, dim=1)
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
