"""The accuracy benchmark: paired intervals, verdicts on targets, sizes of a mean width, and the page made of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accuracy
import accuracy_cells
import accuracy_table
import numpy as np
import pytest
from accuracy_stats import Drop, Hits, pack, paired_drop, unpack, verdict
from networks import CASES
from other_tools import MODELOPT, ONNXRUNTIME, RECIPES

from ompq_deploy.prepare import prepare

STATIC = "onnxruntime INT8, uint8 activations"


def right(*indices: int, n: int = 100) -> Hits:
    hits = np.zeros(n, bool)
    hits[list(indices)] = True
    return hits


def figures(hits: Hits, kl: float = 0.1) -> dict[str, Any]:
    top1 = 100 * float(hits.mean())
    return {"n": len(hits), "top1": top1, "agreement": 90.0, "kl": kl, "file_bytes": 1234, "correct": pack(hits)}


def row(hits: Hits, kl: float = 0.1, calibration: str = "same") -> dict[str, Any]:
    models = {"qdq": figures(hits, kl), "integer": figures(hits, kl)}
    return {"models": models, "tool": "t 1", "seconds": 3.0, "peak_mib": 64.0, "calibration": calibration}


def page_of(rows: dict[str, Any]) -> str:
    reference = {"models": {"float": figures(right(*range(80)))}, "sets": [["images", 100]], "samples": 64}
    return accuracy_table.markdown({"resnet20/float/float": reference, **rows})


def test_drop_counts_images_lost_less_images_won() -> None:
    assert paired_drop(right(0, 1, 2), right(2, 3)).points == pytest.approx(1.0)
    assert paired_drop(right(2, 3), right(0, 1, 2)).points == pytest.approx(-1.0)


def test_interval_ignores_images_on_which_both_agree() -> None:
    few = paired_drop(right(0, 1), right(1, 2))
    same_pairs = paired_drop(right(0, *range(10, 60)), right(1, *range(10, 60)))
    assert few.half == pytest.approx(same_pairs.half)


def test_interval_is_not_empty_where_nothing_differs() -> None:
    drop = paired_drop(right(1), right(1))
    assert drop.points == 0
    assert drop.half == pytest.approx(100 * 1.96 / 102)


def test_interval_tends_to_the_normal_one() -> None:
    first, second = np.random.default_rng(0).random((2, 20_000)) < np.array([[0.8], [0.75]])
    drop = paired_drop(first, second)
    difference = first.astype(float) - second
    assert drop.half == pytest.approx(196 * difference.std(ddof=1) / np.sqrt(len(difference)), rel=1e-3)


def test_unequal_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="100 and 90"):
        paired_drop(right(1), right(1, n=90))


@pytest.mark.parametrize(("points", "expected"), [
    (-0.4, "met"), (0.5, "met"), (0.9, "missed by 0.4, within the interval"), (2.0, "missed by 1.5"),
])  # fmt: skip
def test_verdict(points: float, expected: str) -> None:
    assert verdict(Drop(points=points, half=1.0), 0.5) == expected


def test_hits_survive_packing() -> None:
    hits = np.random.default_rng(0).random(593) < 0.7
    assert np.array_equal(unpack({"n": 593, "correct": pack(hits)}), hits)


def test_every_target_names_a_row_that_is_measured() -> None:
    cases = {case.name: case for case in CASES}
    for target in accuracy_cells.TARGETS:
        rows = accuracy.wanted(cases[target.network], [target.effort], {})
        assert f"{target.network}/{target.cell}/{target.effort}" in rows


def test_rows_of_a_tool_that_is_absent_are_left_out() -> None:
    (case,) = (case for case in CASES if case.name == "resnet20")
    rows = accuracy.wanted(case, [], {ONNXRUNTIME: Path("python")})
    tools = {RECIPES[key.split("/", 2)[2]].tool for key in rows if not key.endswith("float")}
    assert tools == {ONNXRUNTIME}
    assert f"Not measured: {MODELOPT}" in page_of({})


def test_a_mean_width_leaves_room_for_that_width_everywhere(residual_model: Path) -> None:
    graph = prepare(residual_model)
    bits = tuple(range(2, 9))
    table = accuracy_cells.size_table(graph, bits, "file")
    weights = sum(layer.numel for layer in graph.layers)
    for width in bits:
        room = accuracy_cells.mean_bytes(graph, width, bits)
        assert 0 <= room - table.fixed - table.bytes[:, bits.index(width)].sum() < weights / 8


def test_targets_are_judged_from_the_rows() -> None:
    kept, lost = right(*range(80)), right(*range(60))
    page = page_of({"resnet20/8 bits/default": row(kept), "resnet20/4 bits/extensive": row(lost)})
    lines = [line for line in page.splitlines() if line.startswith("| resnet20 | ")]
    assert "| resnet20 | 8 bits | default | 0.3 | 0.0 ± 1.9 | met | 0.0 ± 1.9 |" in lines
    assert any(line.startswith("| resnet20 | 4 bits | extensive | 0.5 | 20.0 ") and "missed by 19.5" in line
               for line in lines)  # fmt: skip
    assert "| resnet20 | 3 bits | extensive | 1 | | not measured | |" in lines


def test_another_tools_best_setting_is_shown() -> None:
    settings = [name for name, recipe in RECIPES.items() if recipe.method == STATIC][:3]
    hits, kls = (right(*range(70)), right(*range(75)), right(*range(75))), (0.1, 0.3, 0.2)
    rows = {f"resnet20/8 bits/{name}": row(h, kl) for name, h, kl in zip(settings, hits, kls, strict=True)}
    (line,) = (line for line in page_of(rows).splitlines() if line.startswith(f"| {STATIC} |"))
    assert "**75.0**, drop 5.0 ± " in line
    assert f"<br>90.0 %, KL 0.2000<br>1,234 B, 3 s, 64 MiB<br>{RECIPES[settings[2]].setting}; best of 3" in line


def test_a_setting_that_fails_is_told_and_not_chosen() -> None:
    first, second = [name for name, recipe in RECIPES.items() if recipe.method == STATIC][:2]
    rows = {f"resnet20/8 bits/{first}": {"failed": "boom"}, f"resnet20/8 bits/{second}": row(right(1))}
    page = page_of(rows)
    assert "fails: boom" in page
    assert f"{RECIPES[second].setting}; best of 2" in page


def test_rows_of_different_calibration_samples_are_not_compared() -> None:
    rows = {"resnet20/8 bits/quick": row(right(1)), "resnet20/8 bits/default": row(right(1), calibration="other")}
    with pytest.raises(SystemExit, match="different samples"):
        page_of(rows)


def test_words_above_the_marker_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Words.\n\n{accuracy_table.MARKER}\n\nold table\n")
    accuracy_table.write_page(page, {})
    assert page.read_text().startswith(f"Words.\n\n{accuracy_table.MARKER}\n")
    assert "old table" not in page.read_text()
