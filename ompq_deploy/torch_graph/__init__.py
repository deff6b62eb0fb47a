"""Run a prepared graph in torch, for the metrics and refinements that need gradients.

The executor is ours: onnx2torch 1.5.15 needs torchvision and refuses opset 21 ("Converter is not implemented" for
Transpose, ENOT-AutoDL/onnx2torch pull request 251), and its weights cannot be replaced per call.

`graph.py` walks the nodes; `elementwise.py`, `movement.py` and `spatial.py` hold one function per operator. They
import torch at their top, so they are only imported here, when a stage asks for them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BackendMissing

if TYPE_CHECKING:
    from ompq_deploy.torch_graph.graph import TorchGraph

__all__ = ["load", "require_torch"]


def require_torch(purpose: str, instead: str = "") -> None:
    """Raise BackendMissing, naming the extra to install and what would do `instead`, where torch is not there."""
    if find_spec("torch") is None:
        raise BackendMissing(
            f"{purpose} needs gradients, and torch is not installed",
            where=purpose,
            fix='pip install "ompq-deploy[torch]"' + (f", or {instead}" if instead else ""),
        )


def load(graph: PreparedGraph, purpose: str, instead: str = "") -> TorchGraph:
    """The graph, ready to run in torch. Raises BackendMissing as `require_torch` does, or for an operator that it does
    not know."""
    require_torch(purpose, instead)
    from ompq_deploy.torch_graph.graph import TorchGraph

    return TorchGraph(graph)
