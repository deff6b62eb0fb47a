"""Lower the constants of the float model that operations read as tensors, and not as weights or settings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.program import IntegerConstant
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.wide_grids import constant_grid


def constant_grids(scope: Scope, groups: Iterable[Group]) -> dict[str, Grid]:
    """The grid of each constant that a group reads, as it is or with its values moved."""
    roots = dict.fromkeys(scope.constant_root(name) for group in groups for name in group.reads)
    return {root: constant_grid(scope.index.constant(root)) for root in roots if root}


def lower_constant(scope: Scope, name: str) -> IntegerConstant:
    """A constant rounded to its grid."""
    grid = scope.grids[name]
    steps = np.rint(scope.index.constant(name).astype(np.float64) / grid.scale)
    return IntegerConstant(name=name, output=name, values=np.clip(steps, grid.low, grid.high).astype(np.int32))
