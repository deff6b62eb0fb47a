"""Whatever is changed in a model file shows against the model written anew, and the layer is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.verify.rebuilt import Owners, check_rebuilt, integer_owners, qdq_owners
from tests.quantized import quantize_graph

Made = tuple[onnx.ModelProto, Owners]
NODES = {"x", "stem", "depthwise", "project", "main1", "main2", "downsample", "fc", "pool", "flatten"}
FUSED = {"stem_relu", "depthwise_clip", "add1", "add1_relu", "main1_relu", "add2", "add2_relu", "result"}


def integer(quantized: QuantizedGraph) -> Made:
    program = lower(quantized)
    return integer_model(program), integer_owners(program)


def qdq(quantized: QuantizedGraph) -> Made:
    return qdq_model(quantized), qdq_owners(quantized.graph)


@pytest.fixture(params=[integer, qdq])
def made(request: pytest.FixtureRequest, residual_model: Path) -> Made:
    write: Callable[[QuantizedGraph], Made] = request.param
    return write(quantize_graph(residual_model))


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_an_equal_model_passes(made: Made) -> None:
    model, owners = made
    assert check_rebuilt("file", copy_of(model), model, owners).passed


def test_every_constant_tells_its_layer(made: Made) -> None:
    model, owners = made
    for place, tensor in enumerate(model.graph.initializer):
        changed = copy_of(model)
        values = numpy_helper.to_array(tensor)
        values = (values ^ 1 if values.dtype.kind in "iu" else values * np.float32(1.01) + np.float32(1e-3)).astype(
            values.dtype
        )
        changed.graph.initializer[place].CopyFrom(numpy_helper.from_array(values, tensor.name))
        check = check_rebuilt("file", changed, model, owners)
        assert not check.passed, tensor.name
        assert check.layer in NODES | FUSED, tensor.name


def test_every_node_tells_its_layer(made: Made) -> None:
    model, owners = made
    for place in range(len(model.graph.node)):
        changed = copy_of(model)
        changed.graph.node[place].op_type = "Identity"
        check = check_rebuilt("file", changed, model, owners)
        assert check.layer in NODES | FUSED


def test_a_node_too_many_or_too_few(made: Made) -> None:
    model, owners = made
    longer, shorter = copy_of(model), copy_of(model)
    longer.graph.node.append(helper.make_node("Relu", ["y"], ["more"]))
    del shorter.graph.node[-1]
    assert not check_rebuilt("file", longer, model, owners).passed
    assert not check_rebuilt("file", shorter, model, owners).passed


def test_what_surrounds_the_nodes_counts(made: Made) -> None:
    model, owners = made
    changed = copy_of(model)
    changed.opset_import.add(domain="com.microsoft", version=1)
    check = check_rebuilt("file", changed, model, owners)
    assert not check.passed
    assert check.layer == ""
