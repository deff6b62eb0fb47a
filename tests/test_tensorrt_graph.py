"""What `tensorrt_graph` promises, on graphs that hold every case; no TensorRT needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ompq_deploy.artifacts import Layer, PreparedGraph, QuantizedGraph
from ompq_deploy.export.tensorrt.graph import tensorrt_graph, treat
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import moves_values
from ompq_deploy.numerics import along_axis
from ompq_deploy.prepare import prepare
from tests import models
from tests.quantized import with_zero_points
from tests.tensorrt_helpers import branching_network, quantize_plainly, run, sample

NETWORKS = {"residual": models.residual_network, "branching": branching_network}


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    path = tmp_path_factory.mktemp("graphs") / f"{request.param}.onnx"
    return prepare(models.save(NETWORKS[request.param](), path))


def alternating(graph: PreparedGraph, first: int = 4, second: int = 8) -> Callable[[Layer], int]:
    """Widths that change from each layer to the next, so that every kind of neighbour occurs."""
    names = [layer.name for layer in graph.layers]
    return lambda layer: first if names.index(layer.name) % 2 == 0 else second


def mixes(graph: PreparedGraph) -> list[QuantizedGraph]:
    widths = (8, 4, alternating(graph), alternating(graph, 8, 4), alternating(graph, 2, 6))
    return [quantize_plainly(graph, bits) for bits in widths]


def root_op(index: GraphIndex, tensor: str) -> str:
    """The operator that made a tensor, behind those that only move values; "" for a graph input."""
    node = index.producer.get(tensor)
    while node is not None and moves_values(index, node):
        node = index.producer.get(node.input[0])
    return node.op_type if node is not None else ""


def test_valid_and_of_opset_21_with_the_nodes_and_interface_of_the_original(graph: PreparedGraph) -> None:
    for quantized in mixes(graph):
        model = tensorrt_graph(quantized)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21
        assert [n.name for n in graph.model.graph.node if n.name] == [
            n.name for n in model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")
        ]
        assert model.graph.input == graph.model.graph.input
        assert model.graph.output == graph.model.graph.output


def test_int4_and_depthwise_layers_read_unquantized_activations_and_int8_layers_quantized_ones(
    graph: PreparedGraph,
) -> None:
    for quantized in mixes(graph):
        index = GraphIndex(tensorrt_graph(quantized))
        for layer in quantized.layers:
            for name in layer.layer.nodes:
                tensor = index.nodes[name].input[0]
                int8 = layer.bits > 4 or layer.layer.numel % 2 == 1
                if int8 and not layer.layer.depthwise:
                    assert index.producer[tensor].op_type == "DequantizeLinear", name
                else:
                    assert root_op(index, tensor) != "DequantizeLinear", name


def test_weights_are_stored_at_their_width_and_decode_to_the_codes(graph: PreparedGraph) -> None:
    for quantized in mixes(graph):
        index = GraphIndex(tensorrt_graph(quantized))
        for layer in quantized.layers:
            decode = index.producer[index.nodes[layer.layer.name].input[1]]
            stored = index.initializers[decode.input[0]]
            packed = layer.bits <= 4 and layer.layer.numel % 2 == 0
            assert stored.data_type == (TensorProto.INT4 if packed else TensorProto.INT8)
            assert len(stored.raw_data) == layer.layer.numel // (2 if packed else 1)
            np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.int8), layer.codes)
            assert treat(layer).storage == ("INT4" if packed else "INT8")
        assert not any(layer.layer.weight in index.initializers for layer in quantized.layers)


def test_an_odd_count_of_int4_weights_is_stored_as_int8_and_says_so(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    model = g.model([1, 3, 8, 8], g.conv("x", "odd", 3, 3, kernel=3), [1, 3, 8, 8])
    quantized = quantize_plainly(prepare(models.save(model, tmp_path / "odd.onnx")), 4)
    treatment = treat(quantized.layers[0])
    assert treatment.storage == "INT8"
    assert "81 weights" in treatment.note
    assert treatment.quantized_input


@pytest.mark.parametrize("zero_points", [(128,), (0, 77, 255)])
def test_activations_are_int8_with_zero_point_0_and_a_symmetric_scale(
    graph: PreparedGraph, zero_points: tuple[int, ...]
) -> None:
    quantized = with_zero_points(quantize_plainly(graph, alternating(graph)), zero_points)
    index = GraphIndex(tensorrt_graph(quantized))
    quantizers = [node for node in index.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        zero = index.constant(node.input[2])
        assert zero.dtype == np.int8
        assert zero == 0
        scales = {np.float32(grid.scale) for grid in quantized.symmetric_grids.values()}
        assert float(index.constant(node.input[1])) in scales


def test_a_sum_reads_one_operand_quantized_and_the_other_from_the_layer_it_fuses_with(tmp_path: Path) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "residual.onnx"))
    index = GraphIndex(tensorrt_graph(quantize_plainly(graph, 8)))
    made_by = [index.producer[name].op_type for name in index.nodes["add1"].input]
    assert sorted(made_by) == ["Conv", "DequantizeLinear"]


def test_no_tensor_is_quantized_where_no_layer_computes_in_int8(tmp_path: Path) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "residual.onnx"))
    model = tensorrt_graph(quantize_plainly(graph, 4))
    assert not [node.name for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_weight_only_layers_compute_what_the_float_graph_computes_with_the_decoded_weights(tmp_path: Path) -> None:
    graph = prepare(models.save(models.residual_network(), tmp_path / "residual.onnx"))
    quantized = quantize_plainly(graph, 4)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    decoded = {
        layer.layer.weight: layer.codes * along_axis(layer.scale, layer.codes.ndim, layer.layer.channel_axis)
        for layer in quantized.layers
    }
    for tensor in model.graph.initializer:
        if tensor.name in decoded:
            tensor.CopyFrom(numpy_helper.from_array(decoded[tensor.name], tensor.name))
    feeds = sample(graph)
    np.testing.assert_allclose(run(tensorrt_graph(quantized), feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-5)


def test_the_graph_agrees_with_the_float_model_up_to_quantization_error(graph: PreparedGraph) -> None:
    feeds = sample(graph, 8)
    expected = run(graph.model, feeds)[0]

    def error(bits: int) -> float:
        answer = run(tensorrt_graph(quantize_plainly(graph, bits)), feeds)[0]
        return float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))

    errors = {bits: error(bits) for bits in (8, 4, 2)}
    assert errors[8] < 0.06
    assert errors[8] < errors[4] < errors[2]


def test_biases_replace_the_nodes_own_and_are_added_where_there_was_none(graph: PreparedGraph) -> None:
    quantized = quantize_plainly(graph, alternating(graph))
    outputs = {"ConvTranspose": lambda layer: layer.channels * layer.groups}
    changed = replace(
        quantized,
        layers=tuple(
            replace(
                layer,
                biases={
                    node: np.full(outputs.get(layer.layer.op, lambda x: x.channels)(layer.layer), 0.25, np.float32)
                    for node in layer.layer.nodes
                },
            )
            for layer in quantized.layers
        ),
    )
    index = GraphIndex(tensorrt_graph(changed))
    for layer in graph.layers:
        node = index.nodes[layer.name]
        if layer.op == "MatMul":
            node = index.nodes[f"{layer.name}/add_bias"]
        assert np.all(index.constant(node.input[-1]) == 0.25), layer.name
    last = [layer for layer in graph.layers if layer.output in graph.output_names]
    assert last
    assert not np.allclose(
        run(tensorrt_graph(changed), sample(graph))[0], run(tensorrt_graph(quantized), sample(graph))[0]
    )


def test_half_precision_keeps_the_interface_and_moves_the_answer_little(graph: PreparedGraph) -> None:
    quantized = quantize_plainly(graph, alternating(graph))
    half = tensorrt_graph(quantized, high_precision="fp16")
    assert half.graph.input == graph.model.graph.input
    assert half.graph.output == graph.model.graph.output
    assert not [t.name for t in half.graph.initializer if t.data_type == TensorProto.FLOAT]
    feeds = sample(graph)
    expected = run(tensorrt_graph(quantized), feeds)[0]
    # onnxruntime fuses Q/DQ with float16 scales as if they were float32 and answers nonsense, so fuse nothing.
    answer = run(half, feeds, optimize=False)[0]
    assert np.linalg.norm(answer - expected) < 0.05 * np.linalg.norm(expected)


def test_an_unknown_precision_is_refused(graph: PreparedGraph) -> None:
    with pytest.raises(ValueError, match="fp32"):
        tensorrt_graph(quantize_plainly(graph, 8), high_precision="int8")
