"""find_lookup: constants whose numbers repeat, as a table and places in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.export import qdq
from ompq_deploy.export.lookup import find_lookup
from ompq_deploy.limits.sizes import size_table
from tests import models
from tests.integer import run
from tests.quantized import inputs, quantize_graph

RANDOM = np.random.default_rng(0)
PLACES = RANDOM.integers(0, 300, (40, 40))


def looked_up(*first: int, places: np.ndarray = PLACES) -> np.ndarray:
    table = RANDOM.standard_normal((*first, 300)).astype(np.float32)
    return np.ascontiguousarray(table[..., places])


@pytest.mark.parametrize("first", [(), (4,), (1, 3, 2)])
def test_a_table_and_its_places_give_the_constant(first: tuple[int, ...]) -> None:
    x = looked_up(*first)
    found = find_lookup(x)
    assert found is not None
    assert found.table.shape == (*first, len(np.unique(PLACES)))
    assert found.places.dtype == np.uint16
    np.testing.assert_array_equal(np.take(found.table, found.places, axis=found.axis), x)


def test_constants_of_one_pattern_have_the_same_places() -> None:
    one, other = (find_lookup(looked_up(4)) for _ in range(2))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.places, other.places)


def test_two_numbers_take_a_byte_each_and_keep_their_bits() -> None:
    x = np.where(RANDOM.random((50, 1, 50)) < 0.3, -0.0, 0.0).astype(np.float32)
    found = find_lookup(x)
    assert found is not None
    assert (found.table.shape, found.places.dtype, found.places.shape) == ((2,), np.uint8, x.shape)
    np.testing.assert_array_equal(np.signbit(np.take(found.table, found.places)), np.signbit(x))


@pytest.mark.parametrize(
    "x",
    [
        RANDOM.standard_normal((64, 64)).astype(np.float32),
        RANDOM.standard_normal((5000, 20)).astype(np.float32),
        np.zeros((30, 30), np.float32),
        np.float32(3),
        np.full((50, 50), "text", object),
    ],
)
def test_nothing_is_looked_up_where_little_repeats_or_the_constant_is_small_or_text(x: np.ndarray) -> None:
    assert find_lookup(x) is None


def test_a_file_shares_the_places_and_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = models.GraphBuilder()
    x = g.conv("x", "first", 3, 4)
    for name in ("one", "other"):
        x = g.node("Add", [g.node("Sigmoid", [x], f"{name}_gate"), g.constant(looked_up(1, 4), name)], f"{name}_added")
    model = g.model(["N", 3, 40, 40], g.conv(x, "second", 4, 2), ["N", 2, 40, 40])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    written = qdq.qdq_model(quantized)
    kinds = [node.op_type for node in written.graph.node]
    assert (kinds.count("Cast"), kinds.count("Gather")) == (1, 2)
    table = size_table(quantized.graph, (8,), "file")
    planned = table.fixed + int(table.bytes.sum())
    assert planned - 64 <= written.ByteSize() <= planned

    monkeypatch.setattr(qdq, "find_lookup", lambda x: None)
    plain, feeds = qdq.qdq_model(quantized), inputs(quantized.graph, 2)
    saved = 2 * 4 * 4 * (PLACES.size - len(np.unique(PLACES))) - 2 * PLACES.size
    assert plain.ByteSize() - written.ByteSize() == pytest.approx(saved, abs=200)
    np.testing.assert_array_equal(run(written, feeds)["y"], run(plain, feeds)["y"])
