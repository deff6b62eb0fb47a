"""The canonical graph is checked against the file it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.artifacts import Samples
from ompq_deploy.equivalence import refuse_other_function
from ompq_deploy.errors import OmpqError
from ompq_deploy.prepare import prepare
from ompq_deploy.runtime.runner import ORT_FAILURES, start_without_spinning, with_weights
from tests import models
from tests.quantized import inputs


def test_another_function_is_refused(residual_model: Path) -> None:
    graph = prepare(residual_model)
    samples = Samples(inputs=inputs(graph), labels=None, source="test", sha256="")
    refuse_other_function(graph, samples)
    moved = {"main1": 1.2 * graph.layer_weights()["main1"]}
    with pytest.raises(OmpqError, match="computes another 'y'"):
        refuse_other_function(replace(graph, model=with_weights(graph, moved)), samples)


def test_a_network_that_selects_is_not_judged(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    scores = g.gemm("x", "fc", 4, 6)
    g.nodes.append(
        onnx.helper.make_node("TopK", [scores, g.constant(np.array([2]), "k")], ["best", "places"], name="top")
    )
    graph = prepare(models.save(g.model(["N", 4], "best", ["N", 2]), tmp_path / "m.onnx"))
    moved = replace(graph, model=with_weights(graph, {"fc": -graph.layer_weights()["fc"]}))
    refuse_other_function(moved, Samples(inputs=inputs(graph), labels=None, source="test", sha256=""))


def test_a_file_that_does_not_run_says_nothing(residual_model: Path) -> None:
    graph = prepare(residual_model)
    samples = Samples(inputs=inputs(graph), labels=None, source="test", sha256="")
    model = onnx.load(residual_model)
    model.graph.node[0].domain = "unknown"
    model.opset_import.append(onnx.helper.make_opsetid("unknown", 1))
    onnx.save(model, residual_model)
    with pytest.raises(ORT_FAILURES):
        start_without_spinning(model)
    refuse_other_function(graph, samples)
