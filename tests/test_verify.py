"""verify passes on what the exporters write, and fails on each way of being wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.errors import GateFailed
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerConv, IntegerMatMul, IntegerProgram
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.verify import verdict_document, verify
from tests import models
from tests.quantized import inputs, quantize_graph


def samples_of(quantized: QuantizedGraph, count: int = 3) -> Samples:
    feeds = inputs(quantized.graph, count)
    if quantized.graph.batch is not None:
        feeds = {name: np.concatenate([x] * count) for name, x in feeds.items()}
    return Samples(inputs=feeds, labels=None, source="seeded noise", sha256="")


@pytest.fixture
def quantized(residual_model: Path) -> QuantizedGraph:
    return quantize_graph(residual_model)


def change_initializer(
    model: onnx.ModelProto, suffix: str, change: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    """A copy in which one initializer, found by the end of its name, is changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name.endswith(suffix))
    before = numpy_helper.to_array(tensor)
    after = change(before.copy())
    assert (before != after).any()
    tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
    return copy


def flip_one(weights: np.ndarray) -> np.ndarray:
    weights.reshape(-1)[weights.argmax()] ^= 0x7F
    return weights


def swap_two(weights: np.ndarray) -> np.ndarray:
    weights[[0, 1]] = weights[[1, 0]]
    return weights


def add_one_percent(multiplier: np.ndarray) -> np.ndarray:
    return multiplier + multiplier // 100


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_exported_models_pass(batch: int | str, tmp_path: Path) -> None:
    quantized = quantize_graph(models.save(models.residual_network(batch), tmp_path / "m.onnx"), 4)
    program = lower(quantized)
    verdict = verify(program, integer_model(program), qdq_model(quantized), samples_of(quantized))
    assert verdict.passed
    assert verdict.matches_reference
    assert verdict.float_tensors_inside == ()
    assert verdict.samples == 3
    assert [layer.name for layer in verdict.layers] == list(quantized.graph.activations)
    assert max(layer.max_lsb for layer in verdict.layers) <= 1
    assert verdict.exact_fraction > 0.99
    assert verdict.output_difference < 0.01


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("main1_relu_out_codes_half0", flip_one),
        ("main1_relu_out_codes_half1", swap_two),
        ("depthwise_clip_out_codes", swap_two),
        ("main1_relu_out_last_scaled_multiplier", add_one_percent),
        ("main1_relu_out_last_shift", lambda shift: shift + 1),
        ("add2_relu_out_skip_multiplier", add_one_percent),
        ("main1_relu_out_last_offset", lambda offset: offset + (offset >> 8)),
        ("dequantize_scale", lambda scale: scale * np.float32(1.001)),
    ],
)
def test_a_defect_in_the_integer_model_is_found(
    suffix: str, change: Callable[[np.ndarray], np.ndarray], quantized: QuantizedGraph
) -> None:
    program = lower(quantized)
    broken = change_initializer(integer_model(program), suffix, change)
    verdict = verify(program, broken, qdq_model(quantized), samples_of(quantized))
    assert not verdict.matches_reference
    assert not verdict.passed


def with_layer_changed(program: IntegerProgram, output: str, **changes: object) -> IntegerProgram:
    operations = tuple(
        dataclasses.replace(op, **changes) if op.output == output else op  # type: ignore[arg-type]
        for op in program.operations
    )
    return dataclasses.replace(program, operations=operations)


def test_a_defect_in_program_and_model_alike_shows_against_the_qdq_model(quantized: QuantizedGraph) -> None:
    program = lower(quantized)
    layer = next(op for op in program.operations if op.output == "main1_relu_out")
    assert isinstance(layer, IntegerConv)
    assert layer.requantize is not None
    larger = dataclasses.replace(layer.requantize, multiplier=add_one_percent(layer.requantize.multiplier) * 2)
    wrong = with_layer_changed(program, "main1_relu_out", requantize=larger)
    verdict = verify(wrong, integer_model(wrong), qdq_model(quantized), samples_of(quantized))
    assert verdict.matches_reference
    assert not verdict.passed
    worst = {layer.name for layer in verdict.layers if layer.max_lsb > 1}
    assert worst == {"main1_relu_out"}


def test_few_differences_of_many_steps_fail_too(quantized: QuantizedGraph) -> None:
    program = lower(quantized)
    layer = next(op for op in program.operations if op.output == "main1_relu_out")
    assert isinstance(layer, IntegerConv)
    bias = layer.bias.copy()
    bias[3] += np.abs(layer.bias).max()
    wrong = with_layer_changed(program, "main1_relu_out", bias=bias)
    verdict = verify(wrong, integer_model(wrong), qdq_model(quantized), samples_of(quantized))
    assert min(layer.exact_fraction for layer in verdict.layers) > 0.9
    assert max(layer.max_lsb for layer in verdict.layers) > 1
    assert not verdict.passed


@pytest.mark.parametrize("factor", [1.02, 0.0], ids=["a scale off by 2 %", "no bias"])
def test_a_defect_where_the_integers_end_is_found(factor: float, quantized: QuantizedGraph) -> None:
    """The last layer leaves no integers to compare."""
    program = lower(quantized)
    last = program.operations[-1]
    assert isinstance(last, IntegerMatMul)
    assert last.bias.any()
    if factor:
        ending = dataclasses.replace(program.dequantized[0], scale=program.dequantized[0].scale * np.float32(factor))
        wrong = dataclasses.replace(program, dequantized=(ending,))
    else:
        wrong = with_layer_changed(program, last.output, bias=0 * last.bias)
    verdict = verify(wrong, integer_model(wrong), qdq_model(quantized), samples_of(quantized))
    assert verdict.matches_reference
    assert [(check.name, check.layer) for check in verdict.checks if not check.passed] == [("outputs", "fc")]


def test_a_model_that_does_not_run_fails(quantized: QuantizedGraph) -> None:
    program = lower(quantized)
    broken = integer_model(program)
    next(node for node in broken.graph.node if node.op_type == "ConvInteger").input[0] = "nothing"
    with pytest.raises(GateFailed, match="onnxruntime cannot run"):
        verify(program, broken, qdq_model(quantized), samples_of(quantized))


def test_many_differences_of_one_step_fail_too(quantized: QuantizedGraph) -> None:
    """Half a step too much everywhere stays within one step, but is not rounding."""
    program = lower(quantized)
    layer = next(op for op in program.operations if op.output == "stem_relu_out")
    assert isinstance(layer, IntegerConv)
    assert layer.requantize is not None
    half = np.rint(0.5 * np.exp2(layer.requantize.clamp.shift) / layer.requantize.multiplier).astype(np.int32)
    wrong = with_layer_changed(program, "stem_relu_out", bias=layer.bias + half.reshape(-1))
    verdict = verify(wrong, integer_model(wrong), qdq_model(quantized), samples_of(quantized))
    assert max(layer.max_lsb for layer in verdict.layers) == 1
    assert not verdict.passed


def test_a_float_inside_fails_however_exact(quantized: QuantizedGraph) -> None:
    program = lower(quantized)
    model = integer_model(program)
    position, target = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "ConvInteger")
    model.graph.node.insert(position, helper.make_node("Cast", ["planted"], ["back"], to=TensorProto.UINT8))
    model.graph.node.insert(position, helper.make_node("Cast", [target.input[0]], ["planted"], to=TensorProto.FLOAT))
    model.graph.node[position + 2].input[0] = "back"
    verdict = verify(program, model, qdq_model(quantized), samples_of(quantized))
    assert verdict.matches_reference
    assert verdict.float_tensors_inside == ("planted",)
    assert not verdict.passed


def test_the_document_is_json_with_the_promised_fields(quantized: QuantizedGraph) -> None:
    program = lower(quantized)
    verdict = verify(program, integer_model(program), qdq_model(quantized), samples_of(quantized), max_samples=2)
    document = json.loads(json.dumps(verdict_document(verdict)))
    assert document["passed"] is True
    assert document["samples"] == 2
    assert {"exact_fraction", "max_lsb", "layers", "output_difference", "matches_reference"} <= set(document)
    assert document["first_departure"] is None
    assert [check["name"] for check in document["checks"]] == ["reference", "integer-only", "qdq", "outputs"]
    assert {"name", "exact_fraction", "max_lsb", "sqnr_db"} <= set(document["layers"][0])


def test_an_output_whose_size_depends_on_the_values(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    first = g.node("Sigmoid", [g.conv("x", "first", 3, 8)], "gate")
    found = g.node("NonZero", [g.node("Relu", [g.conv(first, "second", 8, 4)], "relu")], "found")
    model = g.model(["N", 3, 16, 16], g.node("Cast", [found], "cast", to=TensorProto.FLOAT), [4, "found"])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    program, samples = lower(quantized), samples_of(quantized)
    verdict = verify(program, integer_model(program), qdq_model(quantized), samples)
    assert verdict.passed
    assert verdict.output_difference <= 1


def test_a_fixed_batch_larger_than_the_samples_is_filled(tmp_path: Path) -> None:
    quantized = quantize_graph(models.save(models.residual_network(4), tmp_path / "m.onnx"))
    few = Samples(inputs={"x": inputs(quantized.graph)["x"][:3]}, labels=None, source="", sha256="")
    program = lower(quantized)
    assert verify(program, integer_model(program), qdq_model(quantized), few).passed


@pytest.mark.parametrize(
    "name",
    ["cifar10/resnet20.onnx", "cifar10/mlperf_tiny_resnet8.onnx", "imagenet/mobilenet_v2_1.0_224_keras.onnx"],
)
def test_real_networks_pass(name: str, shared: Callable[[str], Path]) -> None:
    quantized = quantize_graph(shared(f"models/{name}"))
    program = lower(quantized)
    verdict = verify(program, integer_model(program), qdq_model(quantized), samples_of(quantized, 1))
    assert verdict.passed
    assert min(layer.exact_fraction for layer in verdict.layers) > 0.999
