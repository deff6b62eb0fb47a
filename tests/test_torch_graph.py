"""The torch executor: equal to onnxruntime, differentiable, and open to other weights and hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy import torch_graph
from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BackendMissing
from ompq_deploy.graph.real_functions import ELEMENTWISE, apply
from ompq_deploy.prepare import prepare
from tests.quantized import inputs

TOLERANCE = 1e-4
SHARED_MODELS = (
    ("cifar10/resnet20.onnx", False),
    ("cifar10/resnet20_rawexport.onnx", False),
    ("cifar10/resnet56.onnx", False),
    ("cifar10/mlperf_tiny_resnet8.onnx", True),
    ("cifar10/vit_small.onnx", False),
    ("imagenet/mobilenet_v2_1.0_224_keras.onnx", False),
    ("other/yolox_nano.onnx", True),
    ("other/ultraface_slim320.onnx", False),
    ("other/stm_mobilenet_v2_128_0.5.onnx", False),
    ("other/fast_style_transfer_starry_night_256.onnx", True),
)


def test_without_torch_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, residual_model: Path) -> None:
    monkeypatch.setattr(torch_graph, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"torch is not installed") as caught:
        torch_graph.load(prepare(residual_model), "--metric mpqco")
    assert caught.value.exit_code == 4
    assert 'pip install "ompq-deploy[torch]"' in caught.value.fix


def run_onnx(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def run_torch(graph: PreparedGraph, feeds: dict[str, np.ndarray], **settings: Any) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    network = torch_graph.load(graph, "the test")
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    return [value.detach().numpy() for value in network(tensors, **settings).values()]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() <= TOLERANCE * max(np.abs(theirs).max(), 1e-6)


def test_a_residual_network_gives_what_onnxruntime_gives(residual_model: Path) -> None:
    graph = prepare(residual_model)
    feeds = inputs(graph)
    assert_equal(run_torch(graph, feeds), run_onnx(graph.model, feeds))


@pytest.mark.parametrize(("file", "raw"), SHARED_MODELS, ids=[Path(file).stem for file, _ in SHARED_MODELS])
def test_real_networks_give_what_onnxruntime_gives(shared: Callable[[str], Path], file: str, raw: bool) -> None:
    graph = prepare(shared(f"models/{file}"))
    feeds = inputs(graph, raw=raw)
    assert_equal(run_torch(graph, feeds), run_onnx(graph.model, feeds))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


IMAGE = (2, 4, 7, 6)
NODES: dict[str, tuple[str, tuple[int, ...], list[np.ndarray | None], dict[str, Any]]] = {
    "average pool, uneven pads": ("AveragePool", IMAGE, [],
                                  {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "strides": [2, 2]}),
    "average pool, pads counted": ("AveragePool", IMAGE, [],
                                   {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    "average pool, dilated": ("AveragePool", IMAGE, [],
                              {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1]}),
    "average pool, dilated, pads": ("AveragePool", IMAGE, [],
                                    {"kernel_shape": [2, 2], "dilations": [3, 2], "pads": [1, 1, 0, 1]}),
    "average pool, dilated, pads counted": ("AveragePool", IMAGE, [],
                                            {"kernel_shape": [2, 2], "dilations": [3, 2], "pads": [1, 1, 0, 1],
                                             "count_include_pad": 1}),
    "average pool, dilated, ceil": ("AveragePool", IMAGE, [],
                                    {"kernel_shape": [2, 2], "dilations": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "max pool, ceil": ("MaxPool", IMAGE, [],
                       {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
    "same-upper convolution": ("Conv", IMAGE, [floats(8, 2, 3, 3)],
                               {"auto_pad": "SAME_UPPER", "strides": [2, 2], "group": 2}),
    "same-lower convolution": ("Conv", IMAGE, [floats(8, 4, 2, 2), floats(8)], {"auto_pad": "SAME_LOWER"}),
    "dilated convolution": ("Conv", IMAGE, [floats(8, 4, 3, 3)], {"dilations": [2, 1], "pads": [2, 0, 1, 1]}),
    "transposed convolution": ("ConvTranspose", IMAGE, [floats(4, 3, 3, 3), floats(6)],
                               {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]}),
    "transposed convolution to a shape": ("ConvTranspose", IMAGE, [floats(4, 3, 3, 3)],
                                          {"strides": [2, 2], "output_shape": [14, 11]}),
    "transposed convolution, strides over the kernel": ("ConvTranspose", IMAGE, [floats(4, 3, 2, 2)],
                                                        {"strides": [4, 2], "auto_pad": "SAME_LOWER"}),
    "one-dimensional convolution": ("Conv", (2, 4, 9), [floats(5, 4, 3)], {"pads": [1, 1]}),
    "nearest resize, half pixel": ("Resize", IMAGE, [None, np.array([1, 1, 1.7, 0.6], np.float32)],
                                   {"mode": "nearest"}),
    "nearest resize, asymmetric": ("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)],
                                   {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    "nearest resize that keeps sizes": ("Resize", IMAGE, [None, np.array([1, 1, 1.1, 1.15], np.float32)],
                                        {"mode": "nearest"}),
    "nearest resize, one size kept": ("Resize", (2, 4, 20, 6), [None, np.array([1, 1, 0.7, 1.15], np.float32)],
                                      {"mode": "nearest", "nearest_mode": "floor"}),
    "linear resize to a size": ("Resize", IMAGE, [None, None, ints(2, 4, 13, 5)], {"mode": "linear"}),
    "linear resize, aligned corners": ("Resize", IMAGE, [None, None, ints(2, 4, 13, 5)],
                                       {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "cubic resize": ("Resize", IMAGE, [None, np.array([1, 1, 1.7, 0.6], np.float32)], {"mode": "cubic"}),
    "cubic resize, antialiased": ("Resize", IMAGE, [None, np.array([1, 1, 0.4, 2], np.float32)],
                                  {"mode": "cubic", "antialias": 1, "exclude_outside": 1}),
    "reflecting pad": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "pad with a value on one axis": ("Pad", IMAGE, [ints(1, 2), np.float32(3), ints(-1)], {}),
    "edge pad": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    "backward slice": ("Slice", IMAGE, [ints(-1, 5), ints(-6, -100), ints(2, 3), ints(-2, -1)], {}),
    "gather with negative indices": ("Gather", IMAGE, [np.array([[0, -1], [2, 1]], np.int64)], {"axis": 2}),
    "depth to space": ("DepthToSpace", IMAGE, [], {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", (1, 2, 4, 6), [], {"blocksize": 2}),
    "group normalization": ("GroupNormalization", IMAGE, [floats(4), floats(4)], {"num_groups": 2}),
    "instance normalization": ("InstanceNormalization", IMAGE, [floats(4), floats(4)], {}),
    "layer normalization": ("LayerNormalization", IMAGE, [floats(7, 6), floats(7, 6)], {"axis": 2}),
    "hard swish": ("HardSwish", IMAGE, [], {}),
    "hard sigmoid": ("HardSigmoid", IMAGE, [], {"alpha": 0.3, "beta": 0.4}),
    "gelu": ("Gelu", IMAGE, [], {"approximate": "tanh"}),
    "mish": ("Mish", IMAGE, [], {}),
    "prelu": ("PRelu", IMAGE, [floats(4, 1, 1)], {}),
    "leaky relu": ("LeakyRelu", IMAGE, [], {"alpha": 0.2}),
    "elu": ("Elu", IMAGE, [], {"alpha": 0.7}),
    "softmax over channels": ("Softmax", IMAGE, [], {"axis": 1}),
    "reduce max": ("ReduceMax", IMAGE, [ints(1, 3)], {"keepdims": 0}),
    "reduce L2 over all": ("ReduceL2", IMAGE, [], {}),
    "transposed product": ("Gemm", (4, 3), [floats(4, 5), floats(5)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "running sum": ("CumSum", IMAGE, [np.array(2)], {}),
    "running sum from behind, without itself": ("CumSum", IMAGE, [np.array(-1)], {"exclusive": 1, "reverse": 1}),
    "flatten": ("Flatten", IMAGE, [], {"axis": 2}),
    "expand": ("Expand", (1, 4, 1, 6), [ints(2, 1, 7, 1)], {}),
    "tile": ("Tile", (2, 3), [ints(2, 1)], {}),
    "integer power": ("Pow", IMAGE, [np.float32(2)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES)
def test_single_operators_give_what_onnxruntime_gives(case: str) -> None:
    op, shape, constants, settings = NODES[case]
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(constants))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="node", **settings)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for value, name in zip(constants, names[1:], strict=True) if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}
    assert_equal(run_torch(bare(model), feeds), run_onnx(model, feeds))


def bare(model: onnx.ModelProto) -> PreparedGraph:
    return PreparedGraph(
        model=model, layers=(), activations=(), batch=None, source=Path("test"), sha256="", float_bytes=0
    )


@pytest.mark.parametrize(("last", "places"), [(0, [1, 0]), (1, [2, 3])])
def test_of_equal_maxima_the_one_asked_for_is_found(last: int, places: list[int]) -> None:
    torch = pytest.importorskip("torch")
    from ompq_deploy.torch_graph.elementwise import OPERATORS

    x = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 1.0, 2.0]])
    assert OPERATORS["ArgMax"](x, axis=1, keepdims=0, select_last_index=last).tolist() == places


def test_gradients_are_those_of_finite_differences(residual_model: Path) -> None:
    torch = pytest.importorskip("torch")
    graph = prepare(residual_model)
    network = torch_graph.load(graph, "the test")
    network.constants = {k: v.double() if v.is_floating_point() else v for k, v in network.constants.items()}
    feeds = {name: torch.from_numpy(value).double() for name, value in inputs(graph).items()}
    weights = {name: weight.clone().requires_grad_() for name, weight in network.weights().items()}

    def loss(values: dict[str, Any]) -> Any:
        return network(feeds, values)["y"].square().sum()

    gradients = torch.autograd.grad(loss(weights), list(weights.values()))
    step = 1e-6
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (loss({name: weight + sign * step * direction}) for sign in (1, -1))
        assert float((ahead - behind) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_weights_are_replaced_by_layer_name(residual_model: Path) -> None:
    torch = pytest.importorskip("torch")
    graph = prepare(residual_model)
    feeds = inputs(graph)
    other = graph.layer_weights()["main2"] * 2
    changed = onnx.ModelProto()
    changed.CopyFrom(graph.model)
    name = next(layer.weight for layer in graph.layers if layer.name == "main2")
    next(t for t in changed.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(other, name))
    assert_equal(run_torch(graph, feeds, weights={"main2": torch.from_numpy(other)}), run_onnx(changed, feeds))


def test_a_hook_stands_for_its_tensor_and_a_part_of_the_graph_can_be_run(residual_model: Path) -> None:
    torch = pytest.importorskip("torch")
    graph = prepare(residual_model)
    network = torch_graph.load(graph, "the test")
    tensor = next(layer.output for layer in graph.layers if layer.name == "main2")
    feeds = {name: torch.from_numpy(value) for name, value in inputs(graph).items()}
    whole = network(feeds, outputs=[tensor, *network.outputs])
    hooked = network(feeds, hooks={tensor: lambda value: value * 0}, outputs=[tensor, *network.outputs])
    assert not hooked[tensor].any()
    assert not torch.equal(hooked["y"], whole["y"])
    skip = next(layer.output for layer in graph.layers if layer.name == "downsample")
    both = network(feeds, outputs=[tensor, skip])
    torch.testing.assert_close(network(both)["y"], whole["y"])
    with pytest.raises(KeyError, match="no feed leads to"):
        network({tensor: both[tensor]})


def test_an_operator_it_does_not_know_is_named(residual_model: Path) -> None:
    pytest.importorskip("torch")
    node = helper.make_node("NonZero", ["x"], ["y"], name="strange")
    graph = helper.make_graph([node], "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [])
    with pytest.raises(BackendMissing, match="no operator NonZero") as caught:
        torch_graph.load(bare(helper.make_model(graph)), "the test")
    assert caught.value.where == "node strange"


FUNCTION_SETTINGS: dict[str, dict[str, Any]] = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 1.5},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "Selu": {"alpha": 1.2, "gamma": 0.8},
    "Shrink": {"lambd": 0.7, "bias": 0.2},
    "Swish": {"alpha": 1.5},
}


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_every_function_that_becomes_a_table_has_a_torch_form(op: str) -> None:
    torch = pytest.importorskip("torch")
    from ompq_deploy.torch_graph.elementwise import OPERATORS

    x = np.linspace(-0.9, 0.9, 41)
    if op in ("Acosh", "Log", "Pow", "Reciprocal", "Sqrt"):
        x = np.abs(x) + 1.01
    others = [np.array(1.7)] if op in ("Add", "Div", "Max", "Min", "Mul", "Pow", "PRelu", "Sub") else []
    settings = FUNCTION_SETTINGS.get(op, {})
    ours = OPERATORS[op](*(torch.from_numpy(value) for value in (x, *others)), **settings)
    np.testing.assert_allclose(ours.numpy(), apply(op, [x, *others], settings), rtol=1e-6, atol=1e-6)
