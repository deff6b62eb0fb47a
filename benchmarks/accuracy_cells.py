"""What `accuracy.py` measures: sizes for every network, and the drops of top-1 that are aimed at.

A mean of b bits per weight means the file of

    everything but codes + b * weights / 8 + the codes' framing        bytes

so that the same mean leaves every network the same room, whatever its biases, scales and graph take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.limits.bits import parse_bits
from ompq_deploy.limits.sizes import size_table


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A budget and the flags it needs: `mean` bits per weight, or a `size` as the command line takes it."""

    name: str
    mean: float | None = None
    size: str = ""
    bits: str = "2-8"
    flags: tuple[str, ...] = ()

    def budget(self, graph: PreparedGraph) -> str:
        """The value of --size."""
        return self.size if self.mean is None else f"{mean_bytes(graph, self.mean, parse_bits(self.bits))}B"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The largest drop of top-1 aimed at, in points, for one effort in one cell of one network."""

    network: str
    cell: str
    effort: str
    limit: float


WIDTHS = (2.5, 3.0, 4.0, 5.0, 8.0)
INT8, INT4 = "8 bits", "4 bits"
INT8_SYMMETRIC = "8 bits, symmetric int8 activations"
PAPER_SIZE = "1.5 MiB counted as in the paper, 2-4 bits"
RESNETS = ("resnet8", "resnet20", "resnet56")
NETWORKS = ("mobilenet_v2", *RESNETS, "vit_small")

SHARED_CELLS = (
    *(Cell(name=f"{width:g} bits", mean=width) for width in WIDTHS),
    Cell(name=INT8_SYMMETRIC, mean=8.0, flags=("--activation-grid", "symmetric")),
)
OWN_CELLS = {
    "mobilenet_v2": (
        Cell(name="1.9 MB", size="1.9MB"),
        Cell(name="2.2 MB", size="2.2MB"),
        Cell(name=PAPER_SIZE, size="1.5MiB", bits="2-4", flags=("--size-of", "paper")),
    )
}

TARGETS = (
    *(Target(network=name, cell=INT8, effort="default", limit=0.3) for name in NETWORKS),
    *(Target(network=name, cell=INT8_SYMMETRIC, effort="default", limit=0.7) for name in NETWORKS),
    Target(network="mobilenet_v2", cell="2.2 MB", effort="default", limit=1.5),
    Target(network="mobilenet_v2", cell="2.2 MB", effort="extensive", limit=0.7),
    Target(network="mobilenet_v2", cell="1.9 MB", effort="default", limit=3.0),
    Target(network="mobilenet_v2", cell="1.9 MB", effort="extensive", limit=1.5),
    Target(network="mobilenet_v2", cell=PAPER_SIZE, effort="extensive", limit=1.1),
    *(Target(network=name, cell=INT4, effort="extensive", limit=0.5) for name in RESNETS),
    *(Target(network=name, cell="3 bits", effort="extensive", limit=1.0) for name in RESNETS),
    Target(network="vit_small", cell=INT4, effort="extensive", limit=1.0),
)


def cells_of(network: str) -> tuple[Cell, ...]:
    """The cells of a network, in the order of its columns."""
    return (*SHARED_CELLS, *OWN_CELLS.get(network, ()))


def mean_bytes(graph: PreparedGraph, mean: float, bits: Sequence[int]) -> int:
    """Bytes of a Q/DQ file with `mean` bits per weight, of the widths `bits`."""
    table = size_table(graph, bits, "file")
    weights = np.array([layer.numel for layer in graph.layers], np.int64)
    packed = (weights[:, None] * np.array(bits) + 7) // 8
    framing = int((table.bytes - packed).max(axis=1).sum())
    return table.fixed + framing + int(mean * weights.sum() / 8)
