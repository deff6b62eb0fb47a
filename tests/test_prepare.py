"""prepare: the canonical graph computes what the input model computes, and bad files are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.prepare import prepare
from tests import models

REAL_MODELS = (
    "cifar10/mlperf_tiny_resnet8.onnx",
    "cifar10/resnet20.onnx",
    "cifar10/resnet20_rawexport.onnx",
    "cifar10/resnet56.onnx",
    "cifar10/vit_small.onnx",
    "imagenet/mobilenet_v2_1.0_224_keras.onnx",
    "other/fast_style_transfer_starry_night_256.onnx",
    "other/stm_mobilenet_v2_128_0.5.onnx",
    "other/ultraface_slim320.onnx",
    "other/yolox_nano.onnx",
)


COUNTS_CEIL_PADS = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24), reason="older onnxruntime counts ceil-mode pads wrongly"
)


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options)


def outputs(model: bytes, seed: int = 0, batch: int = 2) -> list[np.ndarray]:
    runner = session(model)
    spec = runner.get_inputs()[0]
    shape = [size if isinstance(size, int) else batch for size in spec.shape]
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return runner.run(None, {spec.name: x})


def assert_equivalent(path: Path, graph: PreparedGraph) -> None:
    for before, after in zip(outputs(path.read_bytes()), outputs(graph.model.SerializeToString()), strict=True):
        assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models_keep_their_outputs(name: str, shared: Callable[[str], Path]) -> None:
    path = shared(f"models/{name}")
    graph = prepare(path)
    onnx.checker.check_model(graph.model, full_check=True)
    assert_equivalent(path, graph)
    assert graph.model.opset_import[0].version == 21
    node_names = [node.name for node in graph.model.graph.node]
    assert all(node_names)
    assert len(set(node_names)) == len(node_names)
    left = {node.op_type for node in graph.model.graph.node}
    assert not left & {"BatchNormalization", "Identity", "Constant", "ConstantOfShape"}


@pytest.mark.parametrize("batch", ["N", 1])
def test_symbolic_and_static_batch(batch: int | str, tmp_path: Path) -> None:
    path = models.save(models.residual_network(batch), tmp_path / "m.onnx")
    graph = prepare(path)
    assert graph.batch == (None if batch == "N" else 1)
    before, after = session(path.read_bytes()), session(graph.model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(before.run(None, {"x": x})[0], after.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_the_same_file_gives_the_same_graph(residual_model: Path) -> None:
    first, second = prepare(residual_model), prepare(residual_model)
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert first.layers == second.layers


def test_batchnorm_and_pad_fold_into_the_convolution(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    pads = g.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
    padded = g.node("Pad", ["x", pads], "pad")
    y = g.conv(padded, "conv", 3, 4, pads=[0, 0, 0, 0])
    scale, shift, mean = (g.constant(g.random.standard_normal(4).astype(np.float32), n) for n in "abm")
    variance = g.constant(g.random.uniform(0.5, 2, 4).astype(np.float32), "v")
    y = g.node("BatchNormalization", [y, scale, shift, mean, variance], "bn")
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Conv"]
    assert_equivalent(path, graph)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        *(("Gemm", shape) for shape in ((), (1,), (6,), (1, 6), (6, 1), (6, 6))),
        *(("MatMul", shape) for shape in ((), (1,), (6,), (1, 6), (6, 1), (6, 6), (1, 1, 6))),
    ],
    ids=str,
)
def test_only_a_constant_per_column_is_a_bias(op: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Six rows and six columns, so that sizes alone do not tell one from the other."""
    g = models.GraphBuilder()
    weight = g.constant(g.random.standard_normal((4, 6)).astype(np.float32), "weight")
    added = g.constant(g.random.standard_normal(shape).astype(np.float32), "added")
    y = g.node("Gemm", ["x", weight, added], "layer") if op == "Gemm" else g.node("MatMul", ["x", weight], "layer")
    y = g.node("Relu", [y if op == "Gemm" else g.node("Add", [y, added], "sum")], "relu")
    path = models.save(g.model([6, 4], y, [*shape[:-2], 6, 6][-3:]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    layer, *others = graph.model.graph.node
    assert layer.name == graph.layers[0].name == "layer"
    bias = shape[:-1] == (1,) * len(shape[:-1]) and len(shape) <= 2
    assert (len(layer.input), [node.op_type for node in others]) == ((3, ["Relu"]) if bias else (2, ["Add", "Relu"]))


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_layer_that_adds_a_computed_matrix_is_a_layer(op: str, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    weight = g.constant(g.random.standard_normal((4, 4)).astype(np.float32), "weight")
    y = g.node("Gemm", ["x", weight, "x"], "layer") if op == "Gemm" else g.node("MatMul", ["x", weight], "layer")
    y = y if op == "Gemm" else g.node("Add", [y, "x"], "sum")
    path = models.save(g.model(["N", 4], y, ["N", 4]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert [layer.name for layer in graph.layers] == ["layer"]


@pytest.mark.parametrize("bounds", [(-0.2, 0.7), (2.0, 3.0), (-3.0, -2.0)], ids=str)
def test_one_clip_after_another(bounds: tuple[float, float], tmp_path: Path) -> None:
    """The second bounds overlap the first, lie above and below."""
    g = models.GraphBuilder()
    ends = [g.constant(np.float32(value), f"end{i}") for i, value in enumerate((-1.0, 1.0, *bounds))]
    y = g.node("Clip", [g.conv("x", "conv", 3, 4), *ends[:2]], "first")
    y = g.conv(g.node("Clip", [y, *ends[2:]], "second"), "last", 4, 2)
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8]), tmp_path / "m.onnx")
    assert_equivalent(path, prepare(path))


def test_external_data_is_read(tmp_path: Path) -> None:
    model = models.residual_network()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    inline = prepare(models.save(models.residual_network(), tmp_path / "inline.onnx"))
    external = prepare(tmp_path / "m.onnx")
    for name, weight in inline.layer_weights().items():
        np.testing.assert_array_equal(weight, external.layer_weights()[name])


@pytest.mark.parametrize("attribute", [False, True], ids=["initializers", "constants"])
def test_other_weights_in_external_data_are_another_model(attribute: bool, tmp_path: Path) -> None:
    model = models.residual_network()
    if attribute:
        constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
        nodes = [*constants, *model.graph.node]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
    path, data = tmp_path / "m.onnx", tmp_path / "m.bin"
    external = {"save_as_external_data": True, "location": "m.bin", "size_threshold": 0}
    onnx.save(model, path, convert_attribute=attribute, **external)
    before = prepare(path).sha256
    assert prepare(path).sha256 == before
    weights = np.fromfile(data, np.uint8)
    weights[-1] ^= 1
    weights.tofile(data)
    assert prepare(path).sha256 != before


def test_a_model_in_one_file_has_the_digest_of_that_file(residual_model: Path) -> None:
    assert prepare(residual_model).sha256 == hashlib.sha256(residual_model.read_bytes()).hexdigest()


def test_a_shared_weight_is_one_layer(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    first = g.node("Relu", [g.conv("x", "a", 4, 4)], "relu")
    second = g.node("Conv", [first, "a_weight"], "b", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    graph = prepare(models.save(g.model(["N", 4, 8, 8], second, ["N", 4, 8, 8]), tmp_path / "m.onnx"))
    assert [layer.nodes for layer in graph.layers] == [("a", "b")]


def test_a_weight_read_along_two_axes_is_two_layers(tmp_path: Path) -> None:
    """As in a tied autoencoder; the rows that another node looks up are a third use."""
    g = models.GraphBuilder()
    weight = g.constant(g.random.standard_normal((6, 6)).astype(np.float32), "weight")
    code = g.node("Relu", [g.node("Gemm", ["x", weight], "encode", transB=1)], "relu")
    y = g.node("Gemm", [code, weight], "decode")
    rows = g.node("Gather", [weight, g.constant(np.array([1]), "row")], "rows", axis=0)
    path = models.save(g.model(["N", 6], g.node("Mul", [y, rows], "scaled"), ["N", 6]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [(layer.nodes, layer.channel_axis) for layer in graph.layers] == [(("encode",), 0), (("decode",), 1)]
    index = GraphIndex(graph.model)
    assert [len(index.consumers(layer.weight)) for layer in graph.layers] == [1, 1]
    assert_equivalent(path, graph)


def test_rows_of_a_table_that_a_layer_reads_lie_on_a_grid(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    table = g.constant(g.random.standard_normal((9, 6)).astype(np.float32), "table")
    places = g.node("Cast", [g.node("Relu", ["x"], "positive")], "places", to=TensorProto.INT64)
    rows = g.node("Flatten", [g.node("Gather", [table, places], "rows")], "flat")
    graph = prepare(models.save(g.model(["N", 2], g.gemm(rows, "fc", 12, 3), ["N", 3]), tmp_path / "m.onnx"))
    assert graph.activations == ("flat_out",)


def test_every_layer_input_lies_on_a_grid(residual_model: Path) -> None:
    graph = prepare(residual_model)
    produced = set(graph.input_names) | {name for node in graph.model.graph.node for name in node.output}
    assert set(graph.activations) <= produced
    index = GraphIndex(graph.model)
    fused = {node.input[0] for node in index.graph.node if node.op_type in ("Relu", "Clip")}
    assert not fused & set(graph.activations), "a tensor between a layer and its activation must stay unquantized"
    for layer in graph.layers:
        assert layer.inputs[0] in graph.activations or index.producer[layer.inputs[0]].op_type == "Flatten"


def test_macs_of_the_paper_networks(shared: Callable[[str], Path]) -> None:
    graph = prepare(shared("models/imagenet/mobilenet_v2_1.0_224_keras.onnx"))
    assert round(sum(layer.macs for layer in graph.layers) / 1e6) == 301
    assert len(graph.layers) == 53


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"just some text\n", "not an ONNX file"), (b"", "empty"), (b"\x08\x08\x12", "not an ONNX file")],
)
def test_files_that_are_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        prepare(path)


def test_a_truncated_model(residual_model: Path) -> None:
    residual_model.write_bytes(residual_model.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"cut short|breaks the ONNX standard"):
        prepare(residual_model)


def test_infinite_values_may_mask(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    mask = g.constant(np.array([0, -np.inf, 0, 0], np.float32), "mask")
    y = g.node("Softmax", [g.node("Add", [g.conv("x", "conv", 3, 4), mask], "masked")], "softmax")
    path = models.save(g.model(["N", 3, 4, 4], y, ["N", 4, 4, 4]), tmp_path / "m.onnx")
    assert_equivalent(path, prepare(path))
    y = g.conv(y, "last", 4, 2)
    g.initializers[-1].CopyFrom(numpy_helper.from_array(np.array([1, np.inf], np.float32), "last_bias"))
    with pytest.raises(BadInput, match="last_bias"):
        prepare(models.save(g.model(["N", 3, 4, 4], y, ["N", 2, 4, 4]), tmp_path / "m.onnx"))


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = models.residual_network()
    weight = next(t for t in model.graph.initializer if t.name == "main1_weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, "main1_weight"))
    with pytest.raises(BadInput, match="main1_weight"):
        prepare(models.save(model, tmp_path / "nan.onnx"))


def test_a_model_without_layers(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    path = models.save(g.model(["N", 3], g.node("Relu", ["x"], "relu"), ["N", 3]), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="no layer to quantize"):
        prepare(path)


def test_an_empty_graph(tmp_path: Path) -> None:
    graph = helper.make_graph([], "empty", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="empty"):
        prepare(tmp_path / "m.onnx")


def test_a_missing_file() -> None:
    with pytest.raises(BadInput, match="no such model file"):
        prepare("nowhere.onnx")


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    scale, zero = g.constant(np.float32(0.1), "s"), g.constant(np.int8(0), "z")
    x = g.node("DequantizeLinear", [g.node("QuantizeLinear", ["x", scale, zero], "q"), scale, zero], "dq")
    path = models.save(g.model(["N", 3, 8, 8], g.conv(x, "conv", 3, 4), ["N", 4, 8, 8]), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="quantized already: node 'q'"):
        prepare(path)


@pytest.mark.parametrize(
    ("opset", "mode", "scale"),
    [(9, "linear", 2.0), (9, "nearest", 1.5), (10, "linear", 2.0), (10, "nearest", 1.5), (10, "nearest", 0.6)],
)
def test_a_resize_of_old_opsets_keeps_its_coordinates(opset: int, mode: str, scale: float, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    scales = g.constant(np.array([1, 1, scale, scale], np.float32), "scales")
    resized = g.node("Upsample" if opset == 9 else "Resize", [g.conv("x", "first", 3, 4), scales], "resized", mode=mode)
    y = g.conv(resized, "last", 4, 2)
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 2, "H", "W"], opset=opset), tmp_path / "m.onnx")
    assert_equivalent(path, prepare(path))


def test_functions_of_the_model_are_inlined_before_its_opset_is_raised(tmp_path: Path) -> None:
    opset = helper.make_opsetid("", 17)
    body = [helper.make_node("Conv", ["a", "w"], ["c"], kernel_shape=[3, 3]), helper.make_node("Relu", ["c"], ["o"])]
    g = models.GraphBuilder()
    g.conv("x", "first", 3, 4)
    g.nodes[:] = [helper.make_node("Block", ["x", "first_weight"], ["block_out"], domain="local", name="block")]
    model = g.model(["N", 3, 8, 8], g.conv("block_out", "last", 4, 2), ["N", 2, 6, 6], opset=17)
    model.functions.append(helper.make_function("local", "Block", ["a", "w"], ["o"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Relu", "Conv"]
    assert_equivalent(path, graph)


def outputs_of(results: Callable[[models.GraphBuilder, str], list[str]]) -> onnx.ModelProto:
    """A model of one convolution and what `results` makes of its output, all returned."""
    g = models.GraphBuilder()
    y = g.conv("x", "conv", 3, 4)
    names = results(g, y)
    model = g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.input)}
    model.graph.output.extend(known[name] for name in names)
    return model


@pytest.mark.parametrize(
    "results",
    [
        lambda g, y: [y],
        lambda g, y: [y, g.node("Identity", [y], "again")],
        lambda g, y: [g.node("Identity", ["x"], "given")],
        lambda g, y: [g.node("Neg", [g.constant(np.ones(3, np.float32), "ones")], "anchors")],
    ],
    ids=["a tensor", "it twice", "the input", "a constant"],
)
def test_every_output_keeps_its_name(results: Callable[..., list[str]], tmp_path: Path) -> None:
    path = models.save(outputs_of(results), tmp_path / "m.onnx")
    graph = prepare(path)
    assert list(graph.output_names) == [value.name for value in onnx.load(path).graph.output]
    assert_equivalent(path, graph)


def test_an_identity_in_a_branch_stays(tmp_path: Path) -> None:
    """It makes a tensor from outside the branch's result."""
    g = models.GraphBuilder()
    y = g.conv("x", "conv", 3, 4)
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Identity")):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 8])
        branches[name] = helper.make_graph([helper.make_node(op, [y], [name])], name, [], [result])
    mean = g.node("ReduceMean", ["x"], "mean", keepdims=0)
    chosen = g.node(
        "If", [g.node("Greater", [mean, g.constant(np.float32(0), "zero")], "positive")], "chosen", **branches
    )
    path = models.save(g.model(["N", 3, 8, 8], chosen, ["N", 4, 8, 8]), tmp_path / "m.onnx")
    assert_equivalent(path, prepare(path))


@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float32).min])
def test_padding_in_front_of_a_pool_becomes_the_pools_own(lowest: float, tmp_path: Path) -> None:
    def pooled(value: float, **settings: Any) -> list[str]:
        g = models.GraphBuilder()
        pads = g.constant(np.array([0, 0, 0, 1, 0, 0, 1, 1]), "pads")
        padded = g.node("Pad", [g.conv("x", "first", 3, 4), pads, g.constant(np.float32(value), "value")], "padded")
        y = g.conv(g.node("MaxPool", [padded], "pool", kernel_shape=[2, 3], **settings), "last", 4, 2)
        path = models.save(g.model(["N", 3, 7, 7], y, ["N", 2, "H", "W"]), tmp_path / "m.onnx")
        graph = prepare(path)
        assert_equivalent(path, graph)
        return [node.op_type for node in graph.model.graph.node]

    fused = ["Conv", "MaxPool", "Conv"]
    assert pooled(lowest) == pooled(lowest, strides=[2, 2]) == pooled(lowest, pads=[1, 0, 0, 1]) == fused
    assert "Pad" in pooled(-1.0)
    assert "Pad" in pooled(-1.0, auto_pad="SAME_UPPER")


def test_a_model_exported_for_training_is_refused(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    ones = g.constant(np.ones(4, np.float32), "ones")
    y = g.node("BatchNormalization", [g.conv("x", "conv", 3, 4), ones, ones, ones, ones], "norm", training_mode=1)
    g.nodes[-1].output.extend(["mean", "variance"])
    with pytest.raises(BadInput, match="exported for training: 'norm'"):
        prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 4, 8, 8]), tmp_path / "m.onnx"))


@pytest.mark.parametrize("opset", [11, 13, 18, 21, 22, 23])
def test_any_opset(opset: int, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.gemm(g.node("Flatten", [g.node("Relu", [g.conv("x", "conv", 3, 4)], "relu")], "flat"), "fc", 4 * 64, 5)
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 5], opset=opset), tmp_path / "m.onnx")
    graph = prepare(path)
    assert graph.model.opset_import[0].version == max(opset, 21)
    assert_equivalent(path, graph)


def test_a_batch_baked_into_a_reshape_becomes_the_batch(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.node("Relu", [g.conv("x", "conv", 3, 4)], "relu")
    baked = g.constant(np.array([1, -1], np.int64), "baked")
    y = g.gemm(g.node("Reshape", [y, baked], "view"), "fc", 4 * 64, 5)
    path = models.save(g.model(["N", 3, 8, 8], y, ["N", 5]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert graph.batch == 1
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    before, after = session(path.read_bytes()), session(graph.model.SerializeToString())
    np.testing.assert_allclose(before.run(None, {"x": x})[0], after.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_a_free_reshape_leaves_the_batch_free(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    free = g.constant(np.array([0, -1], np.int64), "free")
    y = g.gemm(g.node("Reshape", [g.conv("x", "conv", 3, 4), free], "view"), "fc", 4 * 64, 5)
    assert prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 5]), tmp_path / "m.onnx")).batch is None


def test_what_is_looked_up_in_a_table_by_constants_is_a_constant(tmp_path: Path) -> None:
    builder = models.GraphBuilder()
    table = builder.constant(builder.random.standard_normal((169, 3)).astype(np.float32), "table")
    places = builder.constant(builder.random.integers(0, 169, 100 * 100), "places")
    column = builder.node("Unsqueeze", [places, builder.constant(np.array([1]), "last")], "column")
    found = builder.node("GatherND", [table, column], "found")
    grid = builder.node("Reshape", [found, builder.constant(np.array([1, 100, 100, 3]), "shape")], "grid")
    added = builder.node("Add", ["x", builder.node("Transpose", [grid], "bias", perm=[0, 3, 1, 2])], "added")
    y = builder.conv(added, "layer", 3, 4)
    path = models.save(builder.model(["N", 3, 100, 100], y, ["N", 4, 100, 100]), tmp_path / "table.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Add", "Conv"]
    assert_equivalent(path, graph)


def test_sizes_that_are_known_are_folded_out_of_shape_arithmetic(tmp_path: Path) -> None:
    """The head size comes from a Shape whose batch is symbolic; only the batch is left to compute."""
    g = models.GraphBuilder()
    x = g.conv("x", "first", 3, 8)
    shape = g.node("Shape", [x], "shape")
    batch, channels = (
        g.node("Gather", [shape, g.constant(np.array([axis], np.int64), f"axis{axis}")], f"size{axis}", axis=0)
        for axis in (0, 1)
    )
    half = g.node("Div", [channels, g.constant(np.array([2], np.int64), "two")], "half")
    rest = g.constant(np.array([2, -1], np.int64), "rest")
    target = g.node("Concat", [batch, half, rest], "target", axis=0)
    root = g.node("Sqrt", [g.node("Cast", [half], "real", to=1)], "root")
    scaled = g.node("Mul", [g.node("Reshape", [x, target], "reshaped"), root], "scaled")
    path = models.save(g.model(["N", 3, 4, 4], scaled, ["N", 4, 2, None]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    kinds = [node.op_type for node in graph.model.graph.node]
    assert kinds.count("Gather") == 1
    assert {"Div", "Cast", "Sqrt"}.isdisjoint(kinds)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("divide", ["Div", "Reciprocal"])
def test_a_layer_norm_written_out_becomes_one_node(square: str, divide: str, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    x = g.conv("x", "first", 3, 4)
    centred = g.node("Sub", [x, g.node("ReduceMean", [x], "mean", axes=[-1])], "centred")
    other = centred if square == "Mul" else g.constant(np.array(2, np.float32), "two")
    variance = g.node("ReduceMean", [g.node(square, [centred, other], "square")], "variance", axes=[-1])
    shifted = g.node("Add", [variance, g.constant(np.array(1e-5, np.float32), "epsilon")], "shifted")
    deviation = g.node("Sqrt", [shifted], "deviation")
    if divide == "Div":
        normal = g.node("Div", [centred, deviation], "normal")
    else:
        normal = g.node("Mul", [centred, g.node("Reciprocal", [deviation], "inverse")], "normal")
    gamma, beta = (g.constant(g.random.standard_normal(5).astype(np.float32), name) for name in ("gamma", "beta"))
    last = g.conv(g.node("Add", [g.node("Mul", [normal, gamma], "scaled"), beta], "added"), "second", 4, 2)
    path = models.save(g.model(["N", 3, 4, 5], last, ["N", 2, 4, 5]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "LayerNormalization", "Conv"]


def test_a_group_norm_is_written_out(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    parameters = [g.constant(g.random.standard_normal(6).astype(np.float32), name) for name in ("gamma", "beta")]
    normal = g.node("GroupNormalization", [g.conv("x", "first", 3, 6), *parameters], "norm", num_groups=3, epsilon=0.1)
    model = g.model(["N", 3, 4, 5], g.conv(normal, "second", 6, 2), ["N", 2, 4, 5], opset=21)
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    kinds = [node.op_type for node in graph.model.graph.node]
    assert kinds == ["Conv", "Reshape", "InstanceNormalization", "Reshape", "Mul", "Add", "Conv"]
    assert all(GraphIndex(graph.model).shapes[name] for node in graph.model.graph.node for name in node.output)


@pytest.mark.parametrize("settings", [{"size": 5}, {"size": 3, "alpha": 2.0, "beta": 0.5, "bias": 3.0}], ids=str)
def test_a_local_response_norm_is_written_out(settings: dict[str, Any], tmp_path: Path) -> None:
    g = models.GraphBuilder()
    normal = g.node("LRN", [g.conv("x", "first", 3, 6)], "norm", **settings)
    path = models.save(g.model(["N", 3, 4, 5], g.conv(normal, "second", 6, 2), ["N", 2, 4, 5]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert "LRN" not in {node.op_type for node in graph.model.graph.node}


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]},
        {"kernel_shape": [2, 2], "dilations": [2, 1], "auto_pad": "SAME_UPPER"},
    ],
    ids=["global", "pads", "automatic pads"],
)
def test_lp_pools_are_written_out(p: int, settings: dict[str, Any], tmp_path: Path) -> None:
    g = models.GraphBuilder()
    kind = "LpPool" if settings else "GlobalLpPool"
    pooled = g.node(kind, [g.conv("x", "first", 3, 6)], "pool", p=p, **settings)
    path = models.save(
        g.model(["N", 3, 6, 7], g.conv(pooled, "second", 6, 2), ["N", 2, "h", "w"], opset=21), tmp_path / "m.onnx"
    )
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert kind not in {node.op_type for node in graph.model.graph.node}


@pytest.mark.parametrize(
    "op", ["MaxPool", "AveragePool", pytest.param("AveragePool that counts pads", marks=COUNTS_CEIL_PADS)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [0, 0, 1, 1]},
    ],
    ids=["no pads", "valid", "pads", "a last window in the pads", "both"],
)
@pytest.mark.parametrize("sizes", [(8, 9), (9, 11)], ids=str)
def test_ceil_mode_becomes_pads(sizes: tuple[int, int], settings: dict[str, Any], op: str, tmp_path: Path) -> None:
    """Sizes are those that onnxruntime makes, also where onnx infers others."""
    counted = {"count_include_pad": 1} if "counts" in op else {}
    g = models.GraphBuilder()
    pool = g.node(op.split()[0], [g.conv("x", "first", 3, 4)], "pool", ceil_mode=1, **counted, **settings)
    model = g.model(["N", 3, *sizes], g.conv(pool, "second", 4, 2), ["N", 2, "h", "w"])
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    (result,) = (node for node in graph.model.graph.node if node.name == "pool")
    assert "ceil_mode" not in attributes(result)
    assert GraphIndex(graph.model).shapes["y"][2:] == outputs(path.read_bytes())[0].shape[2:]


@COUNTS_CEIL_PADS
def test_of_open_sizes_only_pads_that_count_change(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    first, rest = g.conv("x", "first", 3, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    tested = g.node("AveragePool", [first], "pool", kernel_shape=[3, 3], count_include_pad=1, **rest)
    path = models.save(g.model(["N", 3, "H", "W"], tested, ["N", 4, "h", "w"]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Pad", "AveragePool"]
    for size in (7, 8):
        x = np.ones((1, 3, size, size), np.float32)
        before, after = (
            session(m).run(None, {"x": x})[0] for m in (path.read_bytes(), graph.model.SerializeToString())
        )
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_an_lp_pool_with_windows_over_the_edge_stays(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    pooled = g.node("LpPool", [g.conv("x", "first", 3, 6)], "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    path = models.save(
        g.model(["N", 3, 5, 5], g.conv(pooled, "second", 6, 2), ["N", 2, 3, 3], opset=21), tmp_path / "m.onnx"
    )
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert "LpPool" in {node.op_type for node in graph.model.graph.node}


OPSET_23 = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 23), reason="this onnxruntime knows no opset 23"
)


@OPSET_23
@pytest.mark.parametrize("axis", [-1, 2])
def test_a_root_mean_square_norm_is_written_out(axis: int, tmp_path: Path) -> None:
    g = models.GraphBuilder()
    gamma = g.constant(g.random.standard_normal((4, 5)[axis - 4 :]).astype(np.float32), "gamma")
    normal = g.node("RMSNormalization", [g.conv("x", "first", 3, 6), gamma], "norm", axis=axis, epsilon=0.1)
    model = g.model(["N", 3, 4, 5], g.conv(normal, "second", 6, 2), ["N", 2, 4, 5], opset=23)
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert "RMSNormalization" not in {node.op_type for node in graph.model.graph.node}


def attention_model(rank: int, mask: str = "", keys: int = 2, **settings: float) -> onnx.ModelProto:
    """Queries, keys and values of 5 tokens of 12 numbers, 2 heads of 6, into an Attention, and a MatMul behind it."""
    g = models.GraphBuilder()

    def projected(name: str, heads: int) -> str:
        weight = g.constant(g.random.standard_normal((12, 6 * heads)).astype(np.float32), f"{name}_weight")
        x = g.node("MatMul", ["x", weight], name)
        if rank == 3:
            return x
        apart = g.constant(np.array([0, 0, heads, 6], np.int64), f"{name}_shape")
        return g.node("Transpose", [g.node("Reshape", [x, apart], f"{name}_apart")], f"{name}_heads", perm=[0, 2, 1, 3])

    inputs = [projected("q", 2), projected("k", keys), projected("v", keys)]
    if mask:
        values = g.random.standard_normal((5, 5)).astype(np.float32)
        seen = (values > -1) | np.eye(5, dtype=bool)  # each token sees itself, no row is empty
        inputs.append(g.constant(seen if mask == "bool" else values, "mask"))
    if rank == 3:
        settings |= {"q_num_heads": 2, "kv_num_heads": keys}
    y = g.node("Attention", inputs, "attention", **settings)
    if rank == 4:
        together = g.constant(np.array([0, 0, 12], np.int64), "together")
        y = g.node("Reshape", [g.node("Transpose", [y], "tokens", perm=[0, 2, 1, 3]), together], "rows")
    last = g.constant(g.random.standard_normal((12, 3)).astype(np.float32), "last_weight")
    return g.model(["N", 5, 12], g.node("MatMul", [y, last], "last"), ["N", 5, 3], opset=23)


@OPSET_23
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.2},
        {"mask": "float", "scale": 0.2},
        {"mask": "bool"},
        {"is_causal": 1},
        {"is_causal": 1, "mask": "bool"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [3, 4])
def test_an_attention_node_is_written_out(rank: int, settings: dict[str, Any], tmp_path: Path) -> None:
    path = models.save(attention_model(rank, **settings), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    kinds = [node.op_type for node in graph.model.graph.node]
    assert "Attention" not in kinds
    assert kinds.count("MatMul") == 6
    assert all(GraphIndex(graph.model).shapes[name] for node in graph.model.graph.node for name in node.output)


@OPSET_23
@pytest.mark.parametrize("settings", [{"softcap": 2.0}, {"keys": 1}])
def test_an_attention_node_of_another_kind_stays(settings: dict[str, Any], tmp_path: Path) -> None:
    path = models.save(attention_model(4, **settings), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert "Attention" in [node.op_type for node in graph.model.graph.node]


def model_with_mask(*, by_sample: bool) -> onnx.ModelProto:
    """A convolution's result plus another's of running sums of ones (N, 2, 4, 5), along the samples or the rows."""
    g = models.GraphBuilder()
    ints = {"first": [0], "last": [1], "rest": [2, 4, 5], "axis": [0 if by_sample else 2]}
    first, last, rest, axis = (g.constant(np.array(value, np.int64), name) for name, value in ints.items())
    batch = g.node("Slice", [g.node("Shape", ["x"], "shape"), first, last], "batch")
    size = g.node("Concat", [batch, rest], "size", axis=0)
    ones = numpy_helper.from_array(np.ones(1, np.float32))
    places = g.node("CumSum", [g.node("ConstantOfShape", [size], "ones", value=ones), axis], "places")
    added = g.node("Add", [g.conv("x", "layer", 3, 4), g.conv(places, "encoding", 2, 4)], "added")
    return g.model(["N", 3, 4, 5], g.conv(added, "last_layer", 4, 2), ["N", 2, 4, 5])


def test_what_is_computed_alike_for_every_sample_is_a_constant(tmp_path: Path) -> None:
    path = models.save(model_with_mask(by_sample=False), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Add", "Conv"]
    assert [layer.name for layer in graph.layers] == ["layer", "last_layer"]
    assert_equivalent(path, graph)


def queries_of_all_samples() -> onnx.ModelProto:
    """Learned queries, expanded over the batch and projected by a layer, look up tokens; a mask of all samples."""
    g = models.GraphBuilder()
    weights = {n: g.constant(g.random.standard_normal((8, 8)).astype(np.float32) / 3, n) for n in ("Q", "K", "V")}
    ints = {"zero": [0], "one": [1], "rest": [4, 8], "alone": [1, 4, 6]}
    zero, one, rest, alone = (g.constant(np.array(value, np.int64), name) for name, value in ints.items())
    batch = g.node("Slice", [g.node("Shape", ["x"], "shape"), zero, one], "batch")
    learned = g.constant(g.random.standard_normal((1, 4, 8)).astype(np.float32), "learned")
    queries = g.node("Expand", [learned, g.node("Concat", [batch, rest], "size", axis=0)], "queries")
    seen = g.constant(g.random.standard_normal((4, 6)).astype(np.float32), "seen")
    repeats = g.node("Concat", [batch, one, one], "repeats", axis=0)
    mask = g.node("Tile", [g.node("Reshape", [seen, alone], "mask_rows"), repeats], "mask")
    q, k, v = (g.node("MatMul", [a, weights[n]], n.lower()) for n, a in (("Q", queries), ("K", "x"), ("V", "x")))
    scores = g.node("MatMul", [q, g.node("Transpose", [k], "turned", perm=[0, 2, 1])], "scores")
    shares = g.node("Softmax", [g.node("Add", [scores, mask], "masked")], "softmax", axis=-1)
    return g.model(["N", 6, 8], g.node("MatMul", [shares, v], "mixed"), ["N", 4, 8])


def test_queries_and_masks_of_all_samples_are_those_of_one(tmp_path: Path) -> None:
    path = models.save(queries_of_all_samples(), tmp_path / "m.onnx")
    graph = prepare(path)
    operators = [node.op_type for node in graph.model.graph.node]
    assert not {"Shape", "Expand", "Tile", "Concat"} & set(operators)
    assert [layer.name for layer in graph.layers] == ["k", "v"]
    assert_equivalent(path, graph)


def test_what_differs_by_the_sample_is_computed(tmp_path: Path) -> None:
    path = models.save(model_with_mask(by_sample=True), tmp_path / "m.onnx")
    graph = prepare(path)
    assert "CumSum" in {node.op_type for node in graph.model.graph.node}
    assert_equivalent(path, graph)


def test_parts_of_a_constant_are_weights(tmp_path: Path) -> None:
    """As exporters write the projections of an attention: one weight, split."""
    g = models.GraphBuilder()
    whole = g.constant(g.random.standard_normal((12, 4)).astype(np.float32), "in_proj")
    sizes = g.constant(np.array([4, 8], np.int64), "sizes")
    g.nodes.append(helper.make_node("Split", [whole, sizes], ["first", "others"], name="split", axis=0))
    g.nodes.append(helper.make_node("Split", ["others"], ["second", "third"], name="halves", axis=0, num_outputs=2))
    y = "x"
    for name in ("first", "second", "third"):
        y = g.node("MatMul", [y, g.node("Transpose", [name], f"{name}_turned", perm=[1, 0])], f"{name}_product")
    path = models.save(g.model(["N", 5, 4], y, ["N", 5, 4], opset=18), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [layer.name for layer in graph.layers] == ["first_product", "second_product", "third_product"]
    assert_equivalent(path, graph)


def test_what_is_made_of_constants_alone_is_one(tmp_path: Path) -> None:
    """Learned queries, normalized and projected before they meet the sample."""
    g = models.GraphBuilder()
    queries, gamma, beta, weight = (
        g.constant(g.random.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"queries": (1, 5, 4), "gamma": (4,), "beta": (4,), "weight": (4, 4)}.items()
    )
    normal = g.node("LayerNormalization", [queries, gamma, beta], "normal", epsilon=1e-5)
    added = g.node("Add", ["x", g.node("MatMul", [normal, weight], "projected")], "added")
    last = g.node("MatMul", [added, g.constant(np.eye(4, dtype=np.float32), "w")], "last")
    path = models.save(g.model(["N", 5, 4], last, ["N", 5, 4]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["Add", "MatMul"]
    assert_equivalent(path, graph)


def test_what_is_made_of_constants_alone_stays_where_the_model_returns_it(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    queries, gamma = (g.constant(g.random.standard_normal(4).astype(np.float32), name) for name in ("queries", "gamma"))
    normal = g.node("LayerNormalization", [queries, gamma], "normal")
    last = g.node("MatMul", ["x", g.constant(np.eye(4, dtype=np.float32), "w")], "last")
    model = g.model(["N", 4], g.node("Add", [last, normal], "added"), ["N", 4])
    model.graph.output.append(helper.make_tensor_value_info(normal, TensorProto.FLOAT, [4]))
    path = models.save(model, tmp_path / "m.onnx")
    assert "LayerNormalization" in {node.op_type for node in prepare(path).model.graph.node}


def test_padding_by_nothing_is_nothing(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    weights = [g.constant(g.random.standard_normal((5, 5)).astype(np.float32), name) for name in ("A", "B")]
    nothing = g.constant(np.zeros(6, np.int64), "nothing")
    padded = g.node("Pad", [g.node("MatMul", ["x", weights[0]], "first"), nothing], "padded")
    model = g.model(["N", 4, 5], g.node("MatMul", [padded, weights[1]], "second"), ["N", 4, 5])
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node] == ["MatMul", "MatMul"]
    assert_equivalent(path, graph)


def test_the_shape_of_some_axes_is_known(tmp_path: Path) -> None:
    """The batch and the number of rows, of which the second is fixed."""
    g = models.GraphBuilder()
    some = g.node("Shape", ["x"], "shape", start=0, end=3)
    rows = g.node("Gather", [some, g.constant(np.array([2]), "two")], "rows")
    batch = g.node("Gather", [some, g.constant(np.array([0]), "zero")], "batch")
    size = g.node("Concat", [batch, rows, g.constant(np.array([-1]), "rest")], "size", axis=0)
    moved = g.node("Reshape", [g.conv("x", "layer", 3, 4), size], "moved")
    weight = g.constant(g.random.standard_normal((20, 6)).astype(np.float32), "weight")
    model = g.model(["N", 3, 4, 5], g.node("MatMul", [moved, weight], "last"), ["N", 4, 6])
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert [node.op_type for node in graph.model.graph.node].count("Gather") <= 1
    assert_equivalent(path, graph)


def test_steps_of_a_slice_without_axes_are_steps(tmp_path: Path) -> None:
    """Every other size of an input of (N, 3, 4, 5), from the second on: 3 and 5."""
    g = models.GraphBuilder()
    first, last, step = (g.constant(np.array([value], np.int64), f"int{value}") for value in (1, 4, 2))
    sizes = g.node("Slice", [g.node("Shape", ["x"], "shape"), first, last, "", step], "sizes")
    factor = g.node("ReduceProd", [g.node("Cast", [sizes], "float", to=onnx.TensorProto.FLOAT)], "factor", keepdims=0)
    scaled = g.node("Mul", [g.conv("x", "layer", 3, 4), factor], "scaled")
    path = models.save(g.model(["N", 3, 4, 5], scaled, ["N", 4, 4, 5]), tmp_path / "m.onnx")
    assert_equivalent(path, prepare(path))


def test_what_a_branch_reads_from_outside_counts(tmp_path: Path) -> None:
    """The condition is made from the batch size alone; what is chosen is not."""
    g = models.GraphBuilder()
    layer, other = g.conv("x", "layer", 3, 4), g.conv("x", "other", 3, 4)
    first = g.node("Gather", [g.node("Shape", ["x"], "shape"), g.constant(np.array(0), "axis")], "first")
    several = g.node("Greater", [first, g.constant(np.array(1), "one")], "several")
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        result = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4, 4, 5])
        branches[name] = helper.make_graph([helper.make_node(op, [other], [name])], name, [], [result])
    added = g.node("Add", [layer, g.node("If", [several], "chosen", **branches)], "added")
    model = g.model(["N", 3, 4, 5], g.conv(added, "last_layer", 4, 2), ["N", 2, 4, 5])
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert "If" in {node.op_type for node in graph.model.graph.node}


def einsum_model(equation: str, *others: tuple[int, ...]) -> onnx.ModelProto:
    """An Einsum of 5 tokens of 7 numbers with constants of the shapes `others`; of two without one, with |tokens|."""
    g = models.GraphBuilder()
    weight = g.constant(g.random.standard_normal((6, 7)).astype(np.float32), "first_weight")
    tokens = g.node("MatMul", ["x", weight], "first")
    inputs = [g.constant(g.random.standard_normal(of).astype(np.float32), f"other{i}") for i, of in enumerate(others)]
    if not others and "," in equation:
        inputs = [g.node("Abs", [tokens], "other")]
    first = equation.startswith("b")
    y = g.node("Einsum", [tokens, *inputs] if first else [*inputs, tokens], "einsum", equation=equation)
    rank = len(equation.partition("->")[2].replace("...", ".")) or 1
    return g.model(["N", 5, 6], y, [None] * rank)


@pytest.mark.parametrize(
    ("equation", "of", "kinds", "layers"),
    [
        ("bnd,df->bnf", (7, 4), ["MatMul"], 2),
        ("bnd,dhk->bhnk", (7, 2, 3), ["MatMul", "Reshape", "Transpose"], 2),
        ("kd,bnd->bnk", (4, 7), ["MatMul"], 2),
        ("bnd , nd", (5, 7), ["Reshape", "MatMul", "Reshape"], 2),
        ("bnd,bmd->bnm", None, ["Transpose", "MatMul"], 1),
        ("bnd,bnk->bkd", None, ["Transpose", "MatMul", "Transpose"], 1),
        ("bnd,nkd->bkn", (5, 3, 7), ["Transpose", "MatMul", "Transpose"], 1),
        ("bnd,bnd->bn", None, ["Reshape", "Reshape", "MatMul", "Reshape"], 1),
    ],
)
def test_an_einsum_of_two_becomes_a_product(
    equation: str, of: tuple[int, ...] | None, kinds: list[str], layers: int, tmp_path: Path
) -> None:
    path = models.save(einsum_model(equation, *([of] if of else [])), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert [node.op_type for node in graph.model.graph.node if node.op_type != "Abs"][1:] == kinds
    assert len(graph.layers) == layers


@pytest.mark.parametrize(
    ("equation", "others"),
    [
        ("bnd->bdn", []),
        ("bnd,bme->bnm", []),
        ("b...d,d->b...", [(7,)]),
        ("bnd,d,n->bn", [(7,), (5,)]),
        ("bnd,ke->bnk", [(2, 3)]),
    ],
)
def test_other_einsums_stay(equation: str, others: list[tuple[int, ...]], tmp_path: Path) -> None:
    path = models.save(einsum_model(equation, *others), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    assert graph.model.graph.node[-1].op_type == "Einsum"


def test_sizes_beside_a_symbolic_batch_are_known(tmp_path: Path) -> None:
    """Reshape to (batch, -1, 4): shape inference alone knows no more than the 4."""
    g = models.GraphBuilder()
    x = g.conv("x", "first", 3, 8)
    batch = g.node(
        "Gather", [g.node("Shape", ["x"], "shape"), g.constant(np.array([0], np.int64), "zero")], "batch", axis=0
    )
    target = g.node("Concat", [batch, g.constant(np.array([-1, 4], np.int64), "rest")], "target", axis=0)
    tokens = g.node("Reshape", [x, target], "tokens")
    weight = g.constant(g.random.standard_normal((4, 5)).astype(np.float32), "weight")
    path = models.save(
        g.model(["N", 3, 4, 4], g.node("MatMul", [tokens, weight], "last"), ["N", None, 5]), tmp_path / "m.onnx"
    )
    graph = prepare(path)
    assert GraphIndex(graph.model).shapes["tokens_out"] == (None, 32, 4)
