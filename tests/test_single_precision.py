"""Networks of float16, bfloat16 and float64 become the float32 networks they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Samples
from ompq_deploy.calib import input_specs, load_samples
from ompq_deploy.equivalence import refuse_other_function
from ompq_deploy.errors import OmpqError
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.prepare import canonicalize, prepare
from ompq_deploy.runtime.runner import start_without_spinning, with_weights
from tests import models
from tests.conftest import Run
from tests.quantized import inputs


def with_constants(model: onnx.ModelProto, stored: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The model with its float32 constants as `stored` makes them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(stored(values), tensor.name))
    return result


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 inputs, outputs and constants."""
    return in_precision(model, np.float16)


def in_precision(model: onnx.ModelProto, kind: type) -> onnx.ModelProto:
    """The model with inputs, outputs and constants of a NumPy type."""
    other = with_constants(model, lambda values: values.astype(kind))
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return other


def with_float_ends(half: onnx.ModelProto) -> onnx.ModelProto:
    """As converters write it that keep the types of inputs and outputs: a Cast at each."""
    result = onnx.ModelProto()
    result.CopyFrom(half)
    graph = result.graph
    for node in graph.node:
        node.input[:] = ["x_half" if name == "x" else name for name in node.input]
        node.output[:] = ["y_half" if name == "y" else name for name in node.output]
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_half"], name="first", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["y_half"], ["y"], name="last", to=TensorProto.FLOAT))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def every_type(graph: onnx.GraphProto) -> set[int]:
    return {tensor.data_type for tensor in graph.initializer} | {
        value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
    }


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 model with the constants that `in_half` leaves it."""
    return with_constants(model, lambda values: values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("ends", ["float16", "float32"])
def test_a_half_network_is_the_float_network_of_its_constants(tmp_path: Path, ends: str) -> None:
    original = models.residual_network()
    half = in_half(original) if ends == "float16" else with_float_ends(in_half(original))
    graph = prepare(models.save(half, tmp_path / "half.onnx"))
    expected = prepare(models.save(rounded(original), tmp_path / "float.onnx"))
    assert graph.float_type == "float16"
    assert expected.float_type == "float32"
    assert TensorProto.FLOAT16 not in every_type(graph.model.graph)
    assert graph.layers == expected.layers
    assert graph.activations == expected.activations
    assert "Cast" not in {node.op_type for node in graph.model.graph.node}
    feed = inputs(expected)
    ours, theirs = (start_without_spinning(each.model).run(None, feed)[0] for each in (graph, expected))
    assert np.array_equal(ours, theirs)


def test_a_double_network_is_the_float_network_of_its_constants(tmp_path: Path) -> None:
    original = models.residual_network()
    graph = prepare(models.save(in_precision(original, np.float64), tmp_path / "double.onnx"))
    expected = prepare(models.save(original, tmp_path / "float.onnx"))
    assert graph.float_type == "float64"
    assert TensorProto.DOUBLE not in every_type(graph.model.graph)
    assert (graph.layers, graph.activations) == (expected.layers, expected.activations)
    feed = inputs(expected)
    assert np.array_equal(*(start_without_spinning(each.model).run(None, feed)[0] for each in (graph, expected)))


def test_a_part_in_double_becomes_float(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    wide = g.node("Cast", [g.conv("x", "conv", 3, 4)], "wide", to=TensorProto.DOUBLE)
    g.constant(np.array([0.1, -np.inf, 1e300, -1e300]).reshape(4, 1, 1), "lowest")
    least = g.node("Max", [wide, "lowest"], "least")
    y = g.node("Cast", [least], "narrow", to=TensorProto.FLOAT)
    graph = prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8]), tmp_path / "m.onnx"))
    assert graph.float_type == "float64"
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Max"]
    largest = np.finfo(np.float32).max
    lowest = GraphIndex(graph.model).constant("lowest")
    assert lowest.dtype == np.float32
    assert lowest.reshape(-1).tolist() == [np.float32(0.1), -np.inf, largest, -largest]


def test_bfloat16_is_read_too(tmp_path: Path) -> None:
    model = models.residual_network()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, values.reshape(-1)))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    wide = canonicalize(model, tmp_path)
    assert TensorProto.BFLOAT16 not in every_type(wide.graph)
    stem = GraphIndex(wide).constant("stem_weight")
    exact = GraphIndex(models.residual_network()).constant("stem_weight")
    assert 0 < np.abs(stem - exact).max() <= 2.0**-8 * np.abs(exact).max()


def test_branches_and_attributes_are_widened(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    logits = g.gemm("x", "fc", 4, 4)
    shift = helper.make_node("Constant", [], ["shift"], value=numpy_helper.from_array(np.full(4, 0.5, np.float16)))
    added = helper.make_node("Add", [logits, "shift"], ["added"])
    same = helper.make_node("Identity", [logits], ["same"])
    branches = {
        name: helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT16, None)])
        for name, nodes, out in (("then_branch", [shift, added], "added"), ("else_branch", [same], "same"))
    }
    positive = g.node("Greater", [g.node("ReduceMax", [logits], "most", keepdims=0), "zero"], "positive")
    g.constant(np.array(0, np.float32), "zero")
    chosen = g.node("If", [positive], "chosen", **branches)
    half = in_half(g.model(["N", 4], chosen, ["N", 4]))
    graph = prepare(models.save(half, tmp_path / "m.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)
    (expected,) = start_without_spinning(half).run(None, {"x": x})
    (found,) = start_without_spinning(graph.model).run(None, {"x": x.astype(np.float32)})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_a_cast_to_the_type_it_has_is_dropped(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    features = g.node("Cast", [g.conv("x", "conv", 3, 4)], "same", to=TensorProto.FLOAT)
    y = g.node("Relu", [features], "relu")
    graph = prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8]), tmp_path / "m.onnx"))
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Relu"]


def test_the_check_against_the_file_feeds_it_half(tmp_path: Path) -> None:
    graph = prepare(models.save(in_half(models.residual_network()), tmp_path / "half.onnx"))
    samples = Samples(inputs=inputs(graph), labels=None, source="test", sha256="")
    refuse_other_function(graph, samples)
    moved = with_weights(graph, {"main1": 1.2 * graph.layer_weights()["main1"]})
    with pytest.raises(OmpqError, match="computes another 'y'"):
        refuse_other_function(type(graph)(**{**vars(graph), "model": moved}), samples)


@pytest.mark.parametrize("taken", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_arrays_of_any_precision_are_fed(tmp_path: Path, stored: type, taken: type) -> None:
    model = in_precision(models.residual_network(), taken)
    path = tmp_path / "arrays.npz"
    array = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(stored)
    np.savez(path, x=array)
    samples = load_samples(path, input_specs(model), count=4, preprocess=None, seed=0)
    assert samples.inputs["x"].dtype == taken
    assert np.array_equal(samples.inputs["x"], array.astype(taken))


def test_a_half_network_is_deployed_and_verified(tmp_path: Path, run: Run) -> None:
    path = models.save(in_half(models.residual_network()), tmp_path / "half.onnx")
    out = tmp_path / "out"
    code, text, _ = run(path, "--size", "100%", "--metric", "size", "--effort", "quick", "--samples", 8, "--target",
                        "onnx", "--target", "integer", "--out", out)  # fmt: skip
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["float_type"] == "float16"
    assert report["verify"]["passed"]
    assert run("verify", out)[0] == 0
    written = onnx.load(out / "model.qdq.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*written.input, *written.output)} == {TensorProto.FLOAT}
