"""A product with a constant is a layer, however it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.prepare import canonicalize, prepare
from tests import models
from tests.conftest import Run
from tests.test_prepare import assert_equivalent

Build = Callable[[models.GraphBuilder], str]


def constant(g: models.GraphBuilder, name: str, *shape: int) -> str:
    return g.constant(g.random.standard_normal(shape).astype(np.float32), name)


def gemm(*bias: int, columns: tuple[int, int] = (4, 6), **settings: float) -> Build:
    def build(g: models.GraphBuilder) -> str:
        added = [constant(g, "bias", *bias)] if bias else []
        return g.node("Gemm", ["x", constant(g, "weight", *columns), *added], "layer", **settings)

    return build


def product(*shape: int, left: bool = False) -> Build:
    def build(g: models.GraphBuilder) -> str:
        weight = constant(g, "weight", *shape)
        return g.node("MatMul", [weight, "x"] if left else ["x", weight], "layer")

    return build


CASES = {
    "alpha": ((5, 4), (5, 6), gemm(6, alpha=0.5)),
    "beta": ((5, 4), (5, 6), gemm(6, beta=-2.0)),
    "alpha and beta, no bias": ((5, 4), (5, 6), gemm(alpha=3.0, beta=0.0)),
    "alpha, beta, weight transposed": ((5, 4), (5, 6), gemm(6, columns=(6, 4), alpha=0.25, beta=2.0, transB=1)),
    "input transposed": ((4, 5), (5, 6), gemm(6, transA=1)),
    "beta times a matrix": ((5, 4), (5, 6), gemm(5, 6, beta=0.5)),
    "constant on the left": ((2, 3, 5), (2, 6, 5), product(6, 3, left=True)),
    "constant on the left of many axes": ((2, 2, 3, 5), (2, 2, 6, 5), product(6, 3, left=True)),
    "constant of one batch": ((2, 3, 4), (2, 3, 6), product(1, 4, 6)),
    "constant of one batch and one head": ((2, 7, 3, 4), (2, 7, 3, 6), product(1, 1, 4, 6)),
    "constant vector": ((2, 3, 4), (2, 3), product(4)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_layer_that_keeps_its_name(case: str, tmp_path: Path) -> None:
    shape, result, build = CASES[case]
    g = models.GraphBuilder()
    y = g.node("Relu", [build(g)], "relu")
    path = models.save(g.model(list(shape), y, list(result)), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert [layer.name for layer in graph.layers] == ["layer"]
    assert len(graph.layers[0].shape) == 2


@pytest.mark.parametrize(
    ("shape", "result", "build"),
    [((2, 7, 3, 4), (2, 7, 3, 6), product(7, 4, 6)), ((3, 5), (6, 5), product(6, 3, left=True))],
    ids=["a constant per head", "samples on the axis that is summed"],
)
def test_what_no_layer_computes_stays(
    shape: tuple[int, ...], result: tuple[int, ...], build: Build, tmp_path: Path
) -> None:
    g = models.GraphBuilder()
    canonical = canonicalize(g.model(list(shape), build(g), list(result)), tmp_path)
    assert [node.op_type for node in canonical.graph.node] == ["MatMul"]


def test_tokens_are_mixed_by_integers(tmp_path: Path, run: Run) -> None:
    """A mixer's block, deployed, with the integer-only model verified."""
    g = models.GraphBuilder(3)
    tokens = g.node("Relu", [g.node("MatMul", [constant(g, "mix", 8, 8), "x"], "mixer")], "relu")
    channels = g.node("Gelu", [g.node("MatMul", [tokens, constant(g, "channels", 6, 12)], "wide")], "gelu")
    y = g.node("Add", [g.node("MatMul", [channels, constant(g, "narrow_w", 12, 6)], "narrow"), "x"], "sum")
    path = models.save(g.model(["N", 8, 6], y, ["N", 8, 6], opset=20), tmp_path / "mixer.onnx")
    data = tmp_path / "x.npz"
    np.savez(data, x=g.random.standard_normal((32, 8, 6)).astype(np.float32))
    out = tmp_path / "out"
    code, text, errors = run(path, "--size", "100KB", "--metric", "size", "--calib", data, "--preprocess", "none",
                             "--target", "onnx", "--target", "integer", "--out", out)  # fmt: skip
    assert code == 0, text + errors
    report = json.loads((out / "report.json").read_text())
    assert [layer["name"] for layer in report["layers"]] == ["mixer", "wide", "narrow"]
    assert report["verify"]["passed"]
    assert report["heads"]["rows"][0]["integer"]["sqnr_db"] > 25
