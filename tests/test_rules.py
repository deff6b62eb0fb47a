"""Pins, exclusions, first-and-last, ties: who may take which width."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.allocate import allocate
from ompq_deploy.allocate.residual import residual_ties
from ompq_deploy.artifacts import Budget, Scores, SizeTable
from ompq_deploy.errors import BadInput
from ompq_deploy.limits.rules import Rules, allowed_choices, fixed_widths, matching, tied_groups
from ompq_deploy.planning import allocation
from ompq_deploy.prepare import prepare
from ompq_deploy.settings import PlanSettings
from tests import models
from tests.problems import layers

NAMES = ("conv1", "conv10", "block.0.conv", "block.1.conv", "fc")


def test_a_pattern_is_a_name_or_matches_whole_names() -> None:
    assert matching("conv1", NAMES, "--pin") == ["conv1"]
    assert matching("conv.*", NAMES, "--pin") == ["conv1", "conv10"]
    assert matching(r"block\.\d\.conv", NAMES, "--pin") == ["block.0.conv", "block.1.conv"]
    assert matching("a(b", ("a(b",), "--pin") == ["a(b"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(pins=("nowhere=4",)), "no layer matches"),
        (Rules(pins=("fc",)), "not a pin"),
        (Rules(pins=("fc=16",)), "not a pin"),
        (Rules(pins=("(=4",)), "neither a layer nor a regular expression"),
        (Rules(pins=("fc=4", "f.*=8")), "both 4 and 8"),
        (Rules(pins=("fc=4",), exclude=("fc",)), "both 4 and 8"),
    ],
)
def test_bad_rules_are_refused(rules: Rules, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fixed_widths(rules, NAMES)


def test_pins_go_before_the_first_and_last_rule() -> None:
    rules = Rules(pins=("fc=4",), exclude=("block.*",), first_last_bits=6)
    assert fixed_widths(rules, NAMES) == {"conv1": 6, "fc": 4, "block.0.conv": 8, "block.1.conv": 8}
    assert rules.widths((2, 4)) == (2, 4, 6, 8)


def test_only_a_rule_opens_a_width_that_is_not_offered() -> None:
    allowed = allowed_choices({"conv1": 8}, ("conv1", "fc"), (2, 4, 8), (2, 4))
    assert allowed.tolist() == [[False, False, True], [True, True, False]]


def test_ties_by_pattern_and_by_pair_merge() -> None:
    group = tied_groups(Rules(ties=("conv1.*",)), NAMES, [("conv10", "fc")])
    assert group.tolist() == [0, 0, 2, 3, 0]
    chained = tied_groups(Rules(), NAMES, [("block.0.conv", "fc"), ("conv1", "block.0.conv")])
    assert chained.tolist() == [0, 1, 0, 3, 0]


def test_rules_survive_the_lock_file() -> None:
    rules = Rules(pins=("fc=4",), exclude=("a",), first_last_bits=8, ties=("b",), tie_residual=True)
    assert Rules.from_recorded(json.loads(json.dumps(asdict(rules)))) == rules


def test_the_plan_keeps_every_rule() -> None:
    bits = (2, 4, 8)
    random = np.random.default_rng(0)
    loss = np.sort(random.random((8, 3)), axis=1)[:, ::-1]
    sizes = SizeTable(fixed=0, bytes=random.integers(50, 500, (8, 1)) * np.array(bits))
    scores = Scores(metric="test", bits=bits, loss=loss, importance=loss[:, 0])
    rules = Rules(pins=("layer3=4",), exclude=("layer5",), first_last_bits=8, ties=("layer[12]",))
    budget = Budget(size_bytes=int(sizes.bytes.mean(axis=1).sum()))
    plan = allocate(layers(8), scores, sizes, budget, rules=rules, offered=(2, 4)).bits()
    assert plan["layer3"] == 4
    assert plan["layer0"] == plan["layer5"] == plan["layer7"] == 8
    assert plan["layer1"] == plan["layer2"]
    assert {plan[name] for name in ("layer1", "layer2", "layer4", "layer6")} <= {2, 4}


def test_a_pin_holds_for_everything_tied_to_it() -> None:
    loss = np.array([[1.0, 0.0]] * 3)
    scores = Scores(metric="test", bits=(4, 8), loss=loss, importance=loss[:, 0])
    sizes = SizeTable(fixed=0, bytes=np.array([[1, 2]] * 3))
    rules = Rules(pins=("layer0=4",), ties=("layer[01]",))
    plan = allocate(layers(3), scores, sizes, Budget(size_bytes=9), rules=rules)
    assert plan.bits() == {"layer0": 4, "layer1": 4, "layer2": 8}


def test_rules_reach_the_allocation_of_a_graph(residual_model: Path) -> None:
    graph = prepare(residual_model)
    settings = PlanSettings(size="100%", bits=(4,), rules=Rules(pins=("main2=8",), tie_residual=True))
    loss = np.array([[1.0, 0.0]] * 7)
    scores = Scores(metric="test", bits=settings.widths, loss=loss, importance=loss[:, 0])
    plan = allocation(graph, settings).plan(scores)
    assert {name for name, bits in plan.bits().items() if bits == 8} == {"main2", "downsample"}


def test_tied_layers_with_different_pins_are_refused() -> None:
    loss = np.zeros((2, 2))
    scores = Scores(metric="test", bits=(4, 8), loss=loss, importance=loss[:, 0])
    sizes = SizeTable(fixed=0, bytes=np.array([[1, 2]] * 2))
    with pytest.raises(BadInput, match="tied layers") as caught:
        allocate(layers(2), scores, sizes, Budget(size_bytes=9), rules=Rules(pins=("layer0=4", "layer1=8"),
                                                                             ties=("layer.*",)))  # fmt: skip
    assert "layer1 8 bits" in caught.value.where


def test_a_downsample_is_tied_to_its_blocks_last_convolution(residual_model: Path) -> None:
    assert residual_ties(prepare(residual_model)) == (("main2", "downsample"),)


def test_a_shortcut_that_others_read_ties_nothing(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    a = g.conv("x", "a", 3, 4)
    y = g.node("Add", [g.conv(a, "b", 4, 4), a], "sum")
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8]), tmp_path / "m.onnx")
    assert residual_ties(prepare(path)) == ()
