"""From settings to the allocation problem of one graph: budgets, tables of costs, rules. Glue of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ompq_deploy.allocate import allocate, build_problem
from ompq_deploy.allocate.problem import Problem
from ompq_deploy.allocate.residual import residual_ties
from ompq_deploy.artifacts import BitPlan, Budget, PreparedGraph, Resource, Scores, SizeTable
from ompq_deploy.errors import BadInput
from ompq_deploy.limits.latency import read_latency_table
from ompq_deploy.limits.resources import resources
from ompq_deploy.limits.sizes import size_table
from ompq_deploy.settings import PlanSettings
from ompq_deploy.units import parse_count, parse_size, parse_time


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Everything the solver needs but the losses. The columns of every table are `settings.widths`."""

    graph: PreparedGraph
    settings: PlanSettings
    budget: Budget
    sizes: SizeTable
    resources: tuple[Resource, ...]
    ties: tuple[tuple[str, ...], ...]

    def plan(self, scores: Scores) -> BitPlan:
        """The plan for these losses."""
        return allocate(
            self.graph.layers, scores, self.sizes, self.budget,
            resources=self.resources, rules=self.settings.rules, ties=self.ties, offered=self.settings.bits,
            solver=self.settings.solver, seed=self.settings.seed,
        )  # fmt: skip

    def extremes(self) -> Iterator[BitPlan]:
        """The plan of the fewest bytes that the rules and limits allow, then that of the widest widths."""
        widths = self.settings.widths
        for loss in (np.zeros(len(widths)), max(widths) - np.array(widths, float)):
            losses = np.tile(loss, (len(self.graph.layers), 1))
            yield self.plan(Scores(metric="size", bits=widths, loss=losses, importance=losses[:, 0]))

    def limited(self, name: str, limit: int) -> Allocation:
        """The same allocation with another limit on one resource."""
        if name == "size":
            return replace(self, budget=replace(self.budget, size_bytes=limit))
        resources = tuple(replace(r, limit=limit) if r.name == name else r for r in self.resources)
        return replace(self, resources=resources)

    def problem(self, scores: Scores) -> Problem:
        """The instance for these losses."""
        return build_problem(
            self.graph.layers, scores, self.sizes, self.budget,
            resources=self.resources, rules=self.settings.rules, ties=self.ties, offered=self.settings.bits,
        )  # fmt: skip


def allocation(graph: PreparedGraph, settings: PlanSettings) -> Allocation:
    """The tables and limits of one graph. Without a size limit, the size at the widest widths stands for it; that of an
    engine nobody knows beforehand, so that BadInput is raised."""
    if settings.size is None and settings.size_of == "engine":
        raise BadInput(
            "no size is given for the engine", where="--size-of engine", fix="give --size, or leave this out"
        )
    sizes = size_table(graph, settings.widths, settings.size_of)
    widest = sizes.fixed + int(sizes.bytes.max(axis=1).sum())
    budget = Budget(
        size_bytes=widest if settings.size is None else parse_size(settings.size, graph.float_bytes),
        size_of=settings.size_of,
        bops=None if settings.bops is None else parse_count(settings.bops, "--bops"),
        activation_bytes=_bytes(settings.activation_memory, "--activation-memory"),
        latency_ns=None if settings.latency is None else parse_time(settings.latency, "--latency"),
    )
    table = read_latency_table(settings.latency_table) if settings.latency_table else None
    return Allocation(
        graph=graph,
        settings=settings,
        budget=budget,
        sizes=sizes,
        resources=resources(graph, settings.widths, budget, table),
        ties=residual_ties(graph) if settings.rules.tie_residual else (),
    )


def _bytes(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    if "%" in text:
        raise BadInput(f"{text!r} is not a number of bytes", where=flag, fix="write it like 4MB or 512KiB")
    return parse_size(text, 0, flag)
