"""Walk an ONNX graph with torch tensors. Differentiable; weights can be replaced and any tensor hooked per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BackendMissing
from ompq_deploy.graph.index import attributes
from ompq_deploy.torch_graph import elementwise, movement, spatial

Operator = Callable[..., "Tensor | Sequence[Tensor]"]

OPERATORS: dict[str, Operator] = {**elementwise.OPERATORS, **movement.OPERATORS, **spatial.OPERATORS}


def best_device() -> torch.device:
    """A GPU where torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(x: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of an array on the device, images with the channels innermost, as convolutions like them."""
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return torch.from_numpy(x).to(device, memory_format=layout, copy=True)


class TorchGraph:
    """A prepared graph as a function of its inputs and of its layers' weights. Holds no state between calls."""

    def __init__(self, graph: PreparedGraph) -> None:
        self.nodes = list(graph.model.graph.node)
        self.settings = [attributes(node) for node in self.nodes]
        self.outputs = graph.output_names
        self.weight_names = {layer.name: layer.weight for layer in graph.layers}
        self.constants = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type not in OPERATORS or node.domain:
                raise BackendMissing(
                    f"the torch executor has no operator {node.domain}{'::' if node.domain else ''}{node.op_type}",
                    where=f"node {node.name}",
                    fix="choose --effort default, --fisher off, and a metric without gradients: orm, kl, mse, size",
                )

    def to(self, device: torch.device) -> TorchGraph:
        """This graph, its floating-point constants on `device`; integers are shapes and places, read on the host."""
        self.constants = {name: c.to(device) if c.is_floating_point() else c for name, c in self.constants.items()}
        return self

    def weights(self) -> dict[str, Tensor]:
        """The float weight of every layer, by layer name."""
        return {layer: self.constants[name] for layer, name in self.weight_names.items()}

    def __call__(
        self,
        feeds: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors named in `outputs` (default: the graph's outputs).

        `feeds` may hold any tensors of the graph; only the nodes between them and the outputs run. `weights`
        replace those of the layers they name. A hook's result stands for the tensor it is named after, wherever
        that is read or returned.
        """
        wanted = list(outputs or self.outputs)
        hooks = hooks or {}
        values: dict[str, Tensor] = dict(self.constants)
        values |= {self.weight_names[layer]: weight for layer, weight in (weights or {}).items()}
        values |= {name: hooks[name](value) if name in hooks else value for name, value in feeds.items()}
        steps, last_reader = self._schedule(frozenset(values), wanted)
        for step in steps:
            node = self.nodes[step]
            arguments = [values[name] if name else None for name in node.input]
            result = OPERATORS[node.op_type](*arguments, **self.settings[step])
            made = (result,) if isinstance(result, torch.Tensor) else result
            for name, value in zip(node.output, made, strict=False):
                values[name] = hooks[name](value) if name in hooks else value
            for name in {*node.input, *node.output}:
                if last_reader.get(name, step) == step and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _schedule(self, known: frozenset[str], wanted: Sequence[str]) -> tuple[list[int], dict[str, int]]:
        """The nodes to run, in order, and the last of them that reads each tensor."""
        missing = {name for name in wanted if name not in known}
        steps: list[int] = []
        last_reader: dict[str, int] = {}
        for step in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[step]
            if missing.isdisjoint(node.output):
                continue
            steps.append(step)
            missing.difference_update(node.output)
            for name in node.input:
                last_reader.setdefault(name, step)
                if name and name not in known:
                    missing.add(name)
        if missing:
            raise KeyError(f"no feed leads to {sorted(missing)}")
        return steps[::-1], last_reader
