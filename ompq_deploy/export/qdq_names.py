"""Short names for the Q/DQ file, where every byte counts against the budget.

Exporters write tensor names such as `/layer1/layer1.0/conv1/Conv_output_0`, and a Q/DQ model repeats each about ten
times. Here they become `t12`, weights `w3`, other constants `c5`, biases `b3`, zero-points `z2`, numbered by their
place in the prepared graph, and nodes `n7`, since onnxruntime's fusions need them named. Graph inputs and outputs, the
nodes of layers and what branches make keep the names people know; where one of those looks like a short name, that kind
gets another letter.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.graph.index import made_in_branches


class QdqNames:
    """Maps the tensors of a prepared graph to the names its Q/DQ model gives them."""

    def __init__(self, graph: PreparedGraph) -> None:
        kept = {*graph.input_names, *graph.output_names}
        letter = _letters("tcwbz", kept.union(*map(made_in_branches, graph.model.graph.node)))
        made = [name for node in graph.model.graph.node for name in node.output if name]
        weights = [layer.weight for layer in graph.layers]
        constants = [tensor.name for tensor in graph.model.graph.initializer]
        self._tensors = {name: f"{letter['t']}{i}" for i, name in enumerate(made)}
        self._tensors |= {name: f"{letter['c']}{i}" for i, name in enumerate(constants)}
        self._tensors |= {name: f"{letter['w']}{i}" for i, name in enumerate(weights)}
        self._tensors |= {name: name for name in kept}
        nodes = [node for layer in graph.layers for node in layer.nodes]
        self._biases = {node: f"{letter['b']}{i}" for i, node in enumerate(nodes)}
        self._zero_points = {name: f"{letter['z']}{i}" for i, name in enumerate(graph.activations)}

    def tensor(self, name: str) -> str:
        """A tensor of the prepared graph; "" stays the mark of an absent input."""
        return self._tensors[name] if name else ""

    def quantized(self, name: str) -> str:
        """The integers of an activation."""
        return f"{self.tensor(name)}_q"

    def dequantized(self, name: str) -> str:
        """The real values of an activation's or a weight's integers."""
        return f"{self.tensor(name)}_d"

    def scale(self, name: str) -> str:
        """The scale of an activation or a weight."""
        return f"{self.tensor(name)}_s"

    def zero_point(self, name: str) -> str:
        """The zero-point of an activation."""
        return self._zero_points[name]

    def bias(self, node: str) -> str:
        """The bias of one node of a layer."""
        return self._biases[node]


def _letters(kinds: str, reserved: Iterable[str]) -> dict[str, str]:
    """A letter for each kind of name, its own where no reserved name looks like it."""
    taken = {name[0] for name in reserved if re.fullmatch(r"[A-Za-z]\d+(_[a-z])?", name)}
    free = iter(letter for letter in string.ascii_letters if letter not in taken | set(kinds))
    return {kind: next(free) if kind in taken else kind for kind in kinds}
