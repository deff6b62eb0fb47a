"""Engines built on this machine's CPU, and what is read back from them: the reading must follow the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.artifacts import Layer, PreparedGraph, QuantizedGraph
from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.tensorrt.backend import Backend, Unusable, find_backend, no_backend_note, probe
from ompq_deploy.export.tensorrt.engine import EngineBuild, build_engine, engine_record
from ompq_deploy.export.tensorrt.graph import tensorrt_graph, treat
from ompq_deploy.export.tensorrt.inspect import read_layers
from ompq_deploy.export.tensorrt.inspector import inspector_operations
from ompq_deploy.export.tensorrt.plan_text import plan_operations, weight_section
from ompq_deploy.prepare import prepare
from tests import models
from tests.tensorrt_helpers import branching_network, quantize_plainly

WIDTHS: dict[str, int | Callable[[Layer], int]] = {
    "all 8": 8,
    "all 4": 4,
    "mixed": lambda layer: 4 if sum(map(ord, layer.name)) % 2 else 8,
}


@pytest.fixture(scope="module")
def backend() -> Backend:
    pytest.importorskip("tensorrt_rtx")
    found = find_backend("tensorrt_rtx")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    return prepare(models.save(models.residual_network(), tmp_path_factory.mktemp("engine") / "residual.onnx"))


@pytest.fixture(scope="module")
def built(backend: Backend, residual: PreparedGraph) -> dict[str, tuple[QuantizedGraph, EngineBuild]]:
    """The residual network's engine at each of WIDTHS."""
    quantized = {name: quantize_plainly(residual, bits) for name, bits in WIDTHS.items()}
    return {name: (q, build_engine(tensorrt_graph(q), backend)) for name, q in quantized.items()}


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_record_follows_the_widths(
    built: dict[str, tuple[QuantizedGraph, EngineBuild]], backend: Backend, widths: str
) -> None:
    quantized, build = built[widths]
    record = json.loads(json.dumps(engine_record(build, quantized, backend)))
    assert record["file_bytes"] == len(build.plan)
    assert {"backend", "version", "how_read"} <= record.keys()
    for layer, row in zip(quantized.layers, record["layers"], strict=True):
        assert row["name"] == layer.layer.name
        assert row["weight_bits"] == layer.bits
        assert row["storage"] == f"INT{layer.bits}"
        assert row["compute_type"] == ("INT8" if treat(layer).quantized_input else "FP32")
        assert row["codes_found"] is True
        assert row["weight_bytes"] >= layer.layer.numel * layer.bits // 8
    assert record["weight_bytes"] > sum(row["weight_bytes"] for row in record["layers"])
    assert ("INFO", f"Total Weights Memory: {record['weight_bytes']} bytes") in build.messages


def test_an_int4_engine_has_fewer_weight_bytes(built: dict[str, tuple[QuantizedGraph, EngineBuild]]) -> None:
    size = {name: len(weight_section(build.plan) or b"") for name, (_, build) in built.items()}
    assert 0 < size["all 4"] < size["mixed"] < size["all 8"]


def test_the_reading_tells_what_the_engine_holds_and_not_what_was_meant(
    backend: Backend, residual: PreparedGraph
) -> None:
    """An engine of the float graph, read as if it were the quantized one."""
    quantized = quantize_plainly(residual, 8)
    record = engine_record(build_engine(residual.model, backend), quantized, backend)
    assert {row["storage"] for row in record["layers"]} == {"FP32"}
    assert {row["compute_type"] for row in record["layers"]} == {"FP32"}
    assert {row["codes_found"] for row in record["layers"]} == {None}


def test_other_codes_are_not_found_and_a_damaged_plan_tells_nothing(
    built: dict[str, tuple[QuantizedGraph, EngineBuild]],
) -> None:
    quantized, build = built["mixed"]
    operations, weights = plan_operations(build.plan), weight_section(build.plan)
    others = [replace(layer, codes=np.roll(layer.codes, 1, axis=0)) for layer in quantized.layers]
    assert {reading.codes_found for reading in read_layers(others, operations, weights)} == {False}
    assert plan_operations(build.plan.replace(b"header {", b"reader {")) == ()
    assert weight_section(b"other" + build.plan) is None
    assert {reading.storage for reading in read_layers(quantized.layers, (), weights)} == {None}


def test_repeated_builds_are_byte_identical(
    built: dict[str, tuple[QuantizedGraph, EngineBuild]], backend: Backend
) -> None:
    quantized, build = built["mixed"]
    assert build_engine(tensorrt_graph(quantized), backend).plan == build.plan


def test_half_precision_shows_in_the_record(backend: Backend, residual: PreparedGraph) -> None:
    quantized = quantize_plainly(residual, WIDTHS["mixed"])
    build = build_engine(tensorrt_graph(quantized, high_precision="fp16"), backend)
    for layer, row in zip(quantized.layers, engine_record(build, quantized, backend)["layers"], strict=True):
        assert row["storage"] == f"INT{layer.bits}"
        assert row["compute_type"] == ("INT8" if treat(layer).quantized_input else "FP16")


def test_a_larger_batch_is_another_engine(
    built: dict[str, tuple[QuantizedGraph, EngineBuild]], backend: Backend
) -> None:
    quantized, build = built["mixed"]
    larger = build_engine(tensorrt_graph(quantized), backend, batch=8)
    assert (build.batch, larger.batch) == (1, 8)
    assert larger.plan != build.plan
    assert {row["codes_found"] for row in engine_record(larger, quantized, backend)["layers"]} == {True}


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_kind_of_layer_builds(backend: Backend, tmp_path: Path, widths: str, batch: int | str) -> None:
    graph = prepare(models.save(branching_network(batch), tmp_path / "branching.onnx"))
    quantized = quantize_plainly(graph, WIDTHS[widths])
    rows = engine_record(build_engine(tensorrt_graph(quantized), backend), quantized, backend)["layers"]
    for layer, row in zip(quantized.layers, rows, strict=True):
        assert row["storage"] in (None, treat(layer).storage), row["name"]
    assert sum(row["storage"] is not None for row in rows) >= len(rows) - 1


@pytest.mark.parametrize(
    "relative",
    [
        "models/cifar10/resnet20.onnx",
        "models/cifar10/mlperf_tiny_resnet8.onnx",
        "models/imagenet/mobilenet_v2_1.0_224_keras.onnx",
    ],
)
def test_whole_networks_build_and_every_layer_is_read_back(
    backend: Backend, shared: Callable[[str], Path], relative: str
) -> None:
    quantized = quantize_plainly(prepare(shared(relative)), WIDTHS["mixed"])
    build = build_engine(tensorrt_graph(quantized), backend)
    for layer, row in zip(quantized.layers, engine_record(build, quantized, backend)["layers"], strict=True):
        assert (row["storage"], row["codes_found"]) == (f"INT{layer.bits}", True), row["name"]


def test_a_graph_that_is_refused_names_the_node_and_the_reason(backend: Backend, residual: PreparedGraph) -> None:
    model = tensorrt_graph(quantize_plainly(residual, 8))
    broken = next(node for node in model.graph.node if node.name == "pool")
    broken.op_type = "Unique"
    with pytest.raises(BackendMissing) as caught:
        build_engine(model, backend)
    assert "pool (Unique)" in caught.value.where
    assert caught.value.exit_code == 4


def test_a_build_that_fails_gives_the_builders_words_and_the_node(backend: Backend) -> None:
    """INT4 with an odd element count passes the parser and fails in the builder: why `treat` stores INT8 there."""
    g = models.GraphBuilder()
    codes = onnx.helper.make_tensor("codes", onnx.TensorProto.INT4, [3, 3, 3, 3], bytes(41), raw=True)
    g.initializers.append(codes)
    weight = g.node("DequantizeLinear", ["codes", g.constant(np.ones(3, np.float32), "scale")], "decode", axis=0)
    model = g.model([1, 3, 8, 8], g.node("Conv", ["x", weight], "conv"), [1, 3, 6, 6], opset=21)
    with pytest.raises(BackendMissing, match="odd tensor volume") as caught:
        build_engine(model, backend)
    assert "node decode" in caught.value.where


def test_free_axes_besides_the_batch_are_refused_by_name(backend: Backend) -> None:
    g = models.GraphBuilder()
    model = g.model(["N", 3, "H", 8], g.conv("x", "conv", 3, 4), ["N", 4, "H", 8], opset=21)
    with pytest.raises(BackendMissing, match="'x' has open axes"):
        build_engine(model, backend)


def test_a_backend_asked_for_by_name_and_missing_is_exit_code_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendMissing, match="not installed") as caught:
        find_backend("tensorrt_rtx")
    assert caught.value.exit_code == 4
    assert 'pip install "ompq-deploy[rtx]"' in caught.value.fix


def test_auto_finds_none_and_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_backend("auto") is None
    assert 'pip install "ompq-deploy[rtx]"' in no_backend_note()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("import no_such_bindings", "no_such_bindings"),
        ("raise RuntimeError('TensorRT currently only builds wheels for x86_64')", "x86_64"),
        ("", "a stub without Builder"),
    ],
)
def test_a_stub_counts_as_missing_and_the_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found = probe("tensorrt")
    sys.modules.pop("tensorrt", None)
    assert isinstance(found, Unusable)
    assert reason in found.reason
    assert find_backend("auto") is None
    sys.modules.pop("tensorrt", None)
    with pytest.raises(BackendMissing, match="cannot be used"):
        find_backend("tensorrt")
    sys.modules.pop("tensorrt", None)


def test_auto_prefers_tensorrt_and_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = "__version__ = '10.3.0'\nclass Builder: ...\nclass OnnxParser: ...\n"
    (tmp_path / "tensorrt.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = find_backend("auto")
    sys.modules.pop("tensorrt", None)
    assert found is not None
    assert (found.name, found.version) == ("tensorrt", "10.3.0")
    with pytest.raises(BackendMissing, match="no backend is called"):
        find_backend("openvino")


def test_both_schemas_of_the_inspector_are_read(residual: PreparedGraph) -> None:
    """Not from a device: the 10.x entry follows issue 4020 of NVIDIA/TensorRT, the other what the builder logs."""
    quantized = quantize_plainly(residual, 8)
    old = {
        "Name": "main2 + add2",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [{"Name": "a", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major Int8 format"}],
        "Outputs": [{"Name": "b", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major linear FP32"}],
        "Weights": {"Type": "Int8", "Count": 2304},
        "Metadata": "[ONNX Layer: main2]\u001e[ONNX Layer: add2]",
    }
    new = {
        "Name": "main1_myl0_10",
        "LayerType": "correlation",
        "Inputs": [{"Name": "c", "Dimensions": [1, 8, 16, 16], "Datatype": "Int8", "Format": "(NHWC)"}],
        "Outputs": [{"Name": "d", "Dimensions": [1, 16, 8, 8], "Datatype": "Float", "Format": "(NHWC)"}],
        "Constants": [{"Name": "k", "Dimensions": [16, 8, 3, 3], "Datatype": "Int8", "Format": "(NHWC)"}],
        "Metadata": "[ONNX Layer: main1]\u001f[ONNX Layer: main1_relu]",
    }
    operations = inspector_operations(json.dumps({"Layers": [old, new, "a layer of which only the name is told"]}))
    readings = dict(
        zip((layer.name for layer in residual.layers), read_layers(quantized.layers, operations, None), strict=True)
    )
    for name in ("main1", "main2"):
        assert (readings[name].storage, readings[name].compute_type) == ("INT8", "INT8")
    assert readings["stem"].storage is None
    assert inspector_operations("") == ()
