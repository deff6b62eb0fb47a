"""The Q/DQ model: valid, as large as planned, and close to the float model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy.artifacts import BitPlan, Budget, PlannedLayer, SolverRecord
from ompq_deploy.errors import BadInput
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.export.qdq_reader import read_qdq
from ompq_deploy.limits.sizes import size_table
from tests import models
from tests.quantized import inputs, quantize_graph, with_zero_points


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def plan_of(quantized: object) -> BitPlan:
    rows = tuple(
        PlannedLayer(
            name=q.layer.name, op=q.layer.op, weight_bits=q.bits, activation_bits=8, numel=0, bytes=0, score=0.0
        )
        for q in quantized.layers  # type: ignore[attr-defined]
    )
    solver = SolverRecord(name="none", status="NONE", objective=0, bound=0, seconds=0)
    return BitPlan(layers=rows, budget=Budget(size_bytes=1), size_bytes=0, metric="none", solver=solver)


@pytest.mark.parametrize("batch", ["N", 1])
def test_eight_bits_stay_close_to_the_float_model(batch: int | str, tmp_path: Path) -> None:
    quantized = quantize_graph(models.save(models.residual_network(batch), tmp_path / "m.onnx"))
    model = qdq_model(quantized)
    onnx.checker.check_model(model, full_check=True)
    feeds = inputs(quantized.graph)
    reference, found = run(quantized.graph.model, feeds), run(model, feeds)
    assert np.abs(found - reference).max() < 0.05 * np.abs(reference).max()
    assert np.abs(found - reference).max() > 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_fewer_bits_mean_a_larger_error_and_the_size_table_is_right(bits: int, residual_model: Path) -> None:
    quantized = quantize_graph(residual_model, bits)
    model = qdq_model(quantized)
    onnx.checker.check_model(model)
    table = size_table(quantized.graph, (bits,), "file")
    planned = table.fixed + int(table.bytes.sum())
    assert planned - 64 <= model.ByteSize() <= planned


def test_mixed_plans_from_all_widths_never_exceed_the_size_table(residual_model: Path) -> None:
    random = np.random.default_rng(0)
    widths = tuple(range(2, 9))
    graph = quantize_graph(residual_model).graph
    table = size_table(graph, widths, "file")
    for _ in range(20):
        columns = random.integers(0, len(widths), len(graph.layers))
        bits = {layer.name: widths[c] for layer, c in zip(graph.layers, columns, strict=True)}
        planned = table.fixed + int(table.bytes[np.arange(len(columns)), columns].sum())
        assert qdq_model(quantize_graph(residual_model, bits)).ByteSize() <= planned


@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 255])
def test_the_size_does_not_depend_on_the_grids(zero_point: int, residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    moved = with_zero_points(quantized, [zero_point])
    assert qdq_model(moved).ByteSize() == qdq_model(quantized).ByteSize()


def test_int4_weights_are_int4_and_packed(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model, 4)
    stored = {t.name: t for t in qdq_model(quantized).graph.initializer}
    names = QdqNames(quantized.graph)
    for layer in quantized.layers:
        tensor = stored[names.tensor(layer.layer.weight)]
        assert tensor.data_type == TensorProto.INT4
        assert len(tensor.raw_data) == (layer.layer.numel + 1) // 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_file_reads_back_as_what_was_written(bits: int, residual_model: Path) -> None:
    quantized = with_zero_points(quantize_graph(residual_model, bits), [0, 255, 128, 3])
    model = qdq_model(quantized)
    found = read_qdq(model, quantized.graph, plan_of(quantized))
    assert found.grids == quantized.grids
    assert qdq_model(found).SerializeToString() == model.SerializeToString()
    for before, after in zip(quantized.layers, found.layers, strict=True):
        np.testing.assert_array_equal(before.codes, after.codes)


def test_reading_a_foreign_file_names_the_missing_tensor(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    with pytest.raises(BadInput, match="holds no tensor"):
        read_qdq(quantized.graph.model, quantized.graph, plan_of(quantized))


def test_residual_sums_can_fuse(residual_model: Path) -> None:
    """Between a convolution and the Q after its Add and Relu there is no other Q."""
    model = qdq_model(quantize_graph(residual_model))
    producers = {name: node for node in model.graph.node for name in node.output}
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(adds) == 2
    for add in adds:
        kinds = sorted(producers[name].op_type for name in add.input)
        assert kinds == ["Conv", "DequantizeLinear"]


def test_onnxruntime_computes_layers_behind_relu_in_integers(tmp_path: Path) -> None:
    """With zero-point 0 it drops Relu and Clip into the rounding; behind Flatten the classifier finds its own pair."""
    g = models.GraphBuilder()
    zero, six = g.constant(np.float32(0), "zero"), g.constant(np.float32(6), "six")
    x = g.node("Relu", [g.conv("x", "first", 3, 8)], "relu")
    x = g.node("Clip", [g.conv(x, "second", 8, 8, groups=8), zero, six], "clip")
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool")], "flatten")
    model = g.model(["N", 3, 16, 16], g.gemm(x, "fc", 8, 5), ["N", 5])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    written = qdq_model(quantize_graph(models.save(model, tmp_path / "m.onnx")))
    ort.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 2
    assert kinds["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Relu", "Clip"} & set(kinds)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("cifar10/vit_small.onnx", False),
        ("other/ultraface_slim320.onnx", False),
        ("other/yolox_nano.onnx", True),
        ("other/fast_style_transfer_starry_night_256.onnx", True),
    ],
)
@pytest.mark.parametrize("bits", [3, 8])
def test_real_models_run(name: str, raw: bool, bits: int, shared: Callable[[str], Path]) -> None:
    quantized = quantize_graph(shared(f"models/{name}"), bits, raw=raw)
    model = qdq_model(quantized)
    onnx.checker.check_model(model)
    feeds = inputs(quantized.graph, count=1, raw=raw)
    reference, found = run(quantized.graph.model, feeds), run(model, feeds)
    assert found.shape == reference.shape
    if bits == 8:
        assert np.corrcoef(found.ravel(), reference.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("given", "returned"), [("t0", "y"), ("c1", "w0"), ("x", "b0"), ("z0", "t1_q")])
def test_names_people_know_may_look_like_short_ones(given: str, returned: str, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.conv(g.node("Relu", [g.conv(given, "first", 3, 4)], "relu"), "last", 4, 2)
    model = g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8])
    model.graph.input[0].name = given
    model.graph.output[0].name = model.graph.node[-1].output[0] = returned
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    written = qdq_model(quantized)
    onnx.checker.check_model(written, full_check=True)
    feeds = inputs(quantized.graph)
    reference, found = run(quantized.graph.model, feeds), run(written, feeds)
    assert np.abs(found - reference).max() < 0.05 * np.abs(reference).max()
    assert qdq_model(read_qdq(written, quantized.graph, plan_of(quantized))) == written


def test_branches_read_the_tensors_they_read_before(tmp_path: Path) -> None:
    """One from the graph, one that is a constant there, and one of a branch's own that is called as others here."""
    g = models.GraphBuilder()
    first, two = g.conv("x", "first", 3, 4), g.constant(np.float32(2), "two")
    branches = {}
    for name, factors in (("then_branch", ["t0", two]), ("else_branch", [two, "t0"])):
        nodes = [helper.make_node("Relu", [first], ["t0"]), helper.make_node("Mul", factors, [name])]
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 8])
        branches[name] = helper.make_graph(nodes, name, [], [result])
    zero = g.constant(np.float32(0), "zero")
    positive = g.node("Greater", [g.node("ReduceMean", ["x"], "mean", keepdims=0), zero], "positive")
    y = g.conv(g.node("If", [positive], "chosen", **branches), "last", 4, 2)
    quantized = quantize_graph(models.save(g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8]), tmp_path / "m.onnx"))
    written = qdq_model(quantized)
    onnx.checker.check_model(written, full_check=True)
    for shift in (-0.3, 0.3):
        feeds = {"x": inputs(quantized.graph)["x"] + np.float32(shift)}
        reference, found = run(quantized.graph.model, feeds), run(written, feeds)
        assert np.abs(found - reference).max() < 0.05 * np.abs(reference).max()


def test_the_input_of_a_product_is_rounded_by_its_own_grid_alone(tmp_path: Path) -> None:
    """Behind a Pad onnxruntime does not carry a Q/DQ pair on, and would round once more by a scale of the moment."""
    g = models.GraphBuilder()
    weights = [g.constant(g.random.standard_normal((64, 64)).astype(np.float32) / 8, name) for name in ("A", "B")]
    pads = g.constant(np.array([0, 1, 0, 0, 1, 0]), "pads")
    padded = g.node("Pad", [g.node("MatMul", ["x", weights[0]], "first"), pads], "padded")
    model = g.model(["N", 6, 64], g.node("MatMul", [padded, weights[1]], "second"), ["N", 8, 64])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    written, feeds = qdq_model(quantized), inputs(quantized.graph, count=8)
    assert len([node for node in written.graph.node if node.op_type == "QuantizeLinear"]) == 3
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written = ort.InferenceSession(written.SerializeToString(), options).run(None, feeds)[0]
    np.testing.assert_allclose(run(written, feeds), as_written, atol=1e-4)
