"""Operators that the Q/DQ model leaves in floating point: integer-only through 16-bit grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

from ompq_deploy.artifacts import Grid
from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerNormalization
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.simulator import run_program
from tests import models
from tests.integer import assert_equal_to_reference, quantized_case, run, settings, steps_from_qdq
from tests.models import GraphBuilder
from tests.quantized import inputs, with_zero_points

SAMPLES = 2
Build = Callable[[GraphBuilder], str]


def scalar(g: GraphBuilder, name: str, value: float) -> str:
    return g.constant(np.float32(value), name)


def per_channel(g: GraphBuilder, name: str, channels: int, *trailing: int) -> str:
    return g.constant(g.random.standard_normal((channels, *trailing)).astype(np.float32), name)


def after_conv(op: str, **attributes: object) -> Build:
    return lambda g: g.node(op, [g.conv("x", "first", 4, 6)], "tested", **attributes)


def on_input(op: str, **attributes: object) -> Build:
    return lambda g: g.node(op, ["x"], "tested", **attributes)


def silu(g: GraphBuilder) -> str:
    x = g.conv("x", "first", 4, 6)
    return g.node("Mul", [x, g.node("Sigmoid", [x], "gate")], "tested")


def gelu_by_erf(g: GraphBuilder) -> str:
    x = g.conv("x", "first", 4, 6)
    erf = g.node("Erf", [g.node("Div", [x, scalar(g, "root", 2**0.5)], "scaled")], "erf")
    gate = g.node("Add", [erf, scalar(g, "one", 1.0)], "plus_one")
    return g.node("Mul", [g.node("Mul", [x, gate], "gated"), scalar(g, "half", 0.5)], "tested")


def function_of_a_sum(g: GraphBuilder) -> str:
    x = g.node("Add", [g.conv("x", "first", 4, 6), g.conv("x", "second", 4, 6, kernel=1)], "sum")
    return g.node("Mul", [x, g.node("HardSigmoid", [x], "gate")], "tested")


def prelu(g: GraphBuilder) -> str:
    return g.node("PRelu", [g.conv("x", "first", 4, 6), per_channel(g, "slope", 6, 1, 1)], "tested")


def squeeze_and_excite(g: GraphBuilder) -> str:
    x = g.node("Relu", [g.conv("x", "first", 4, 6)], "relu")
    pooled = g.node("GlobalAveragePool", [x], "pool")
    gate = g.node("Sigmoid", [g.conv(pooled, "excite", 6, 6, kernel=1)], "gate")
    return g.node("Mul", [x, gate], "tested")


def difference(g: GraphBuilder) -> str:
    return g.node("Sub", [g.conv("x", "first", 4, 6), g.conv("x", "second", 4, 6, kernel=1)], "tested")


def quotient(g: GraphBuilder) -> str:
    divisor = g.node("Exp", [g.conv("x", "second", 4, 6, kernel=1)], "divisor")
    return g.node("Div", [g.conv("x", "first", 4, 6), divisor], "tested")


def signed_quotient(g: GraphBuilder) -> str:
    """A divisor between -5 and 5 that keeps away from 0, one per channel."""
    pooled = g.node("GlobalAveragePool", [g.conv("x", "second", 4, 6)], "pool")
    sign = g.node("Mul", [g.node("Sign", [pooled], "sign"), scalar(g, "four", 4.0)], "fours")
    divisor = g.node("Add", [g.node("Sigmoid", [pooled], "gate"), sign], "divisor")
    return g.node("Div", [g.node("Relu", [g.conv("x", "first", 4, 6)], "relu"), divisor], "tested")


def extreme(op: str) -> Build:
    def build(g: GraphBuilder) -> str:
        parts = [g.conv("x", "first", 4, 6), g.node("Relu", [g.conv("x", "second", 4, 6)], "relu")]
        return g.node(op, [*parts, per_channel(g, "bound", 6, 1, 1)], "tested")

    return build


def largest_of_three(g: GraphBuilder) -> str:
    return g.node("Max", [g.conv("x", "first", 4, 6), scalar(g, "low", -0.5), scalar(g, "higher", 0.2)], "tested")


def flattened_from_behind(g: GraphBuilder) -> str:
    return g.node("Flatten", [g.conv("x", "first", 4, 6)], "tested", axis=-3)


def centred(g: GraphBuilder) -> str:
    """Axes that are empty are all axes."""
    x = g.conv("x", "first", 4, 6)
    return g.node("Sub", [x, g.node("ReduceMax", [x, settings(g, "none")], "largest")], "tested")


def computed_bound(g: GraphBuilder) -> str:
    largest = g.node("ReduceMax", ["x"], "largest", keepdims=0)
    return g.node("Clip", [g.conv("x", "first", 4, 6), "", largest], "tested")


def computed_slope(g: GraphBuilder) -> str:
    return g.node("PRelu", [g.conv("x", "first", 4, 6), g.conv("x", "second", 4, 6)], "tested")


def computed_statistics(g: GraphBuilder) -> str:
    constants = [per_channel(g, name, 6) for name in ("gamma", "beta")]
    mean = g.node("ReduceMax", [g.conv("x", "first", 4, 6), settings(g, "axes", 0, 2, 3)], "mean", keepdims=0)
    variance = g.constant(np.ones(6, np.float32), "variance")
    return g.node("BatchNormalization", ["first_out", *constants, mean, variance], "tested")


def normalized_to_length(g: GraphBuilder) -> str:
    x = g.conv("x", "first", 4, 6)
    length = g.node("ReduceL2", [x, settings(g, "channels", 1)], "length", keepdims=1)
    held = g.node("Clip", [length, scalar(g, "least", 1e-12)], "held")
    return g.node("Div", [x, held], "tested")


def padded_with(value: float, *pads: int, axes: tuple[int, ...] = ()) -> Build:
    def build(g: GraphBuilder) -> str:
        x = g.node("Sigmoid", [g.conv("x", "first", 4, 6)], "gate")
        inputs = [x, settings(g, "pads", *pads), scalar(g, "value", value)]
        return g.node("Pad", [*inputs, settings(g, "axes", *axes)] if axes else inputs, "tested")

    return build


def with_constant(op: str, *, first: bool) -> Build:
    def build(g: GraphBuilder) -> str:
        values = g.constant((g.random.standard_normal((6, 1, 1)) + 3).astype(np.float32), "values")
        x = g.conv("x", "first", 4, 6)
        return g.node(op, [values, x] if first else [x, values], "tested")

    return build


def batch_norm(g: GraphBuilder) -> str:
    x = g.node("MaxPool", [g.conv("x", "first", 4, 6)], "pool", kernel_shape=[2, 2])
    positive = g.constant(g.random.uniform(0.5, 2, 6).astype(np.float32), "variance")
    return g.node(
        "BatchNormalization", [x, *(per_channel(g, name, 6) for name in ("gamma", "beta", "mean")), positive], "tested"
    )


def wide_max_pool(g: GraphBuilder) -> str:
    pooled = g.node(
        "MaxPool",
        [g.conv("x", "first", 4, 6)],
        "pool",
        kernel_shape=[3, 2],
        strides=[2, 1],
        dilations=[1, 3],
        pads=[1, 0, 0, 1],
    )
    return g.node("Sigmoid", [pooled], "tested")


def instance_norm(g: GraphBuilder) -> str:
    parameters = [per_channel(g, "gamma", 6), per_channel(g, "beta", 6)]
    return g.node("InstanceNormalization", [g.conv("x", "first", 4, 6), *parameters], "tested")


def group_norm(g: GraphBuilder) -> str:
    grouped = g.node("Reshape", [g.conv("x", "first", 4, 6), settings(g, "apart", 0, 3, -1)], "grouped")
    ones, zeros = g.constant(np.ones(3, np.float32), "ones"), g.constant(np.zeros(3, np.float32), "zeros")
    normal = g.node("InstanceNormalization", [grouped, ones, zeros], "normal")
    back = g.node("Reshape", [normal, settings(g, "back", 0, 6, 9, 9)], "back")
    scaled = g.node("Mul", [back, per_channel(g, "gamma", 6, 1, 1)], "scaled")
    return g.node("Add", [scaled, per_channel(g, "beta", 6, 1, 1)], "tested")


def layer_norm(g: GraphBuilder) -> str:
    x = g.node("Transpose", [g.conv("x", "first", 4, 6)], "last", perm=[0, 2, 3, 1])
    return g.node("LayerNormalization", [x, per_channel(g, "gamma", 6), per_channel(g, "beta", 6)], "tested", axis=-1)


def attention(g: GraphBuilder) -> str:
    tokens = g.node("Reshape", [g.conv("x", "first", 4, 6), settings(g, "tokens", 0, 6, 81)], "tokens")
    tokens = g.node("Transpose", [tokens], "tokens_last", perm=[0, 2, 1])
    weight = g.constant((g.random.standard_normal((6, 36)) * 0.5).astype(np.float32), "weight")
    heads = g.node("MatMul", [tokens, weight], "project")
    heads = g.node("Reshape", [heads, settings(g, "heads", 0, 81, 3, 3, 4)], "heads")
    heads = g.node("Transpose", [heads], "heads_first", perm=[2, 0, 3, 1, 4])
    g.nodes.append(
        models.helper.make_node(
            "Split", [heads, settings(g, "parts", 1, 1, 1)], ["q5", "k5", "v5"], name="split", axis=0
        )
    )
    q, k, v = (g.node("Squeeze", [name, settings(g, f"{name}_axis", 0)], name[0]) for name in ("q5", "k5", "v5"))
    scores = g.node("MatMul", [q, g.node("Transpose", [k], "kt", perm=[0, 1, 3, 2])], "scores")
    weights = g.node("Softmax", [g.node("Mul", [scores, scalar(g, "scale", 0.5)], "scaled")], "weights", axis=-1)
    mixed = g.node("Transpose", [g.node("MatMul", [weights, v], "mixed")], "tokens_back", perm=[0, 2, 1, 3])
    return g.node("Reshape", [mixed, settings(g, "joined", 0, 81, 12)], "tested")


def matmul_residual(g: GraphBuilder) -> str:
    weight = g.constant(g.random.standard_normal((9, 9)).astype(np.float32), "weight")
    total = g.node("Add", [g.node("MatMul", ["x", weight], "product"), "x"], "sum")
    return g.node("Relu", [total], "tested")


def product_of_matrices(g: GraphBuilder) -> str:
    return g.node("MatMul", [g.conv("x", "first", 4, 4), g.node("Sigmoid", ["x"], "gate")], "tested")


def transposed(**attributes: object) -> Build:
    def build(g: GraphBuilder) -> str:
        groups = int(str(attributes.get("group", 1)))
        weight = g.constant((g.random.standard_normal((6, 4 // groups, 3, 3)) / 4).astype(np.float32), "weight")
        bias = g.constant(g.random.standard_normal(4).astype(np.float32), "bias")
        return g.node("ConvTranspose", [g.conv("x", "first", 4, 6), weight, bias], "tested", **attributes)

    return build


def resized(mode: str, coordinates: str, scales: tuple[float, ...], **attributes: object) -> Build:
    def build(g: GraphBuilder) -> str:
        factors = g.constant(np.array((1, 1, *scales), np.float32), "scales")
        x = g.conv("x", "first", 4, 6)
        return g.node(
            "Resize", [x, "", factors], "tested", mode=mode, coordinate_transformation_mode=coordinates, **attributes
        )

    return build


def resized_to(g: GraphBuilder) -> str:
    sizes = settings(g, "sizes", 13, 7)
    return g.node("Resize", [g.conv("x", "first", 4, 6), "", "", sizes], "tested", mode="linear", axes=[2, 3])


def split(g: GraphBuilder) -> str:
    x = g.conv("x", "first", 4, 6)
    g.nodes.append(models.helper.make_node("Split", [x], ["low", "high"], name="split", axis=1, num_outputs=2))
    return g.node("Mul", ["low", g.node("Sigmoid", ["high"], "gate")], "tested")


def gathered(g: GraphBuilder) -> str:
    x = g.node("Gather", [g.conv("x", "first", 4, 6), settings(g, "order", 5, 0, 3)], "tested", axis=1)
    return g.node("Tile", [x, settings(g, "repeats", 1, 2, 1, 1)], "tiled")


def class_token(g: GraphBuilder) -> str:
    tokens = g.node("Reshape", [g.conv("x", "first", 4, 6), settings(g, "tokens", 0, 6, 81)], "tokens")
    tokens = g.node("Transpose", [tokens], "tokens_last", perm=[0, 2, 1])
    batch = g.node("Gather", [g.node("Shape", ["x"], "shape"), settings(g, "first_axis", 0)], "batch", axis=0)
    target = g.node("Concat", [batch, settings(g, "rest", -1, -1)], "target", axis=0)
    known = g.node("Equal", [target, settings(g, "minus", -1)], "known")
    target = g.node("Where", [known, settings(g, "one", 1), target], "chosen")
    token = g.constant(g.random.standard_normal((1, 1, 6)).astype(np.float32), "token")
    joined = g.node("Concat", [g.node("Expand", [token, target], "expanded"), tokens], "joined", axis=1)
    return g.node("Add", [joined, per_channel(g, "positions", 82, 6)], "tested")


def positions(g: GraphBuilder) -> str:
    return g.node("Add", [g.conv("x", "first", 4, 6), per_channel(g, "embedding", 6, 9, 9)], "tested")


def shuffled(op: str, **attributes: object) -> Build:
    def build(g: GraphBuilder) -> str:
        x = g.node("Slice", [g.conv("x", "first", 4, 8), *(settings(g, n, v) for n, v in SLICE.items())], "even")
        x = g.node("Slice", [x, *(settings(g, f"{n}3", v) for n, v in (SLICE | {"axes": 3}).items())], "even3")
        return g.node(op, [x], "tested", blocksize=2, **attributes)

    return build


SLICE = {"starts": 0, "ends": 8, "axes": 2}


def global_max_pool(g: GraphBuilder) -> str:
    return g.node("GlobalMaxPool", [silu(g)], "pool")


def reduced(op: str) -> Build:
    return lambda g: g.node(op, [g.conv("x", "first", 4, 6), settings(g, "axes", 2, 3)], "tested", keepdims=1)


CASES: dict[str, Build] = {
    **{op.lower(): after_conv(op) for op in ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Softplus", "Abs")},
    **{f"{op.lower()}_of_the_input": on_input(op) for op in ("Exp", "Gelu", "Mish", "Neg", "Selu", "Celu", "Softsign")},
    "silu": silu,
    "gelu_by_erf": gelu_by_erf,
    "gelu_tanh": after_conv("Gelu", approximate="tanh"),
    "function_of_a_sum": function_of_a_sum,
    "prelu": prelu,
    "squeeze_and_excite": squeeze_and_excite,
    "sub": difference,
    **{
        f"{op.lower()}_constant{'_first' * first}": with_constant(op, first=first)
        for op, first in (("Mul", False), ("Mul", True), ("Sub", False), ("Sub", True), ("Div", False))
    },
    "quotient": quotient,
    "signed_quotient": signed_quotient,
    "max": extreme("Max"),
    "min": extreme("Min"),
    "max_of_three": largest_of_three,
    "reduce_l2": reduced("ReduceL2"),
    "normalized_to_length": normalized_to_length,
    "local_response_norm": after_conv("LRN", size=3, alpha=2.0, beta=0.75, bias=1.0),
    "lp_pool": after_conv("LpPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "global_lp_pool_of_cubes": after_conv("GlobalLpPool", p=3),
    "pad_with_half": padded_with(0.5, 0, 0, 1, 2, 0, 1, 0, 1),
    "pad_with_more_than_there_is": padded_with(3.0, 0, 2, 1, 0, axes=(3, -2)),
    "batch_norm": batch_norm,
    "wide_max_pool": wide_max_pool,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "softmax": after_conv("Softmax", axis=1),
    "softmax_of_the_input": on_input("Softmax", axis=-1),
    "product_of_matrices": product_of_matrices,
    "attention": attention,
    "matmul_residual": matmul_residual,
    "conv_transpose": transposed(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "conv_transpose_uneven": transposed(strides=[3, 1], pads=[0, 1, 2, 0]),
    "conv_transpose_groups": transposed(group=2, strides=[2, 2], dilations=[2, 1]),
    "conv_transpose_same": transposed(strides=[2, 2], auto_pad="SAME_UPPER"),
    "conv_transpose_same_apart": transposed(strides=[4, 2], auto_pad="SAME_LOWER"),
    "conv_transpose_shape": transposed(strides=[2, 2], output_shape=[18, 17]),
    "resize_nearest": resized("nearest", "asymmetric", (2, 2), nearest_mode="floor"),
    "resize_nearest_half_pixel": resized("nearest", "half_pixel", (1.5, 0.5)),
    "resize_nearest_corners": resized("nearest", "align_corners", (2, 3), nearest_mode="round_prefer_ceil"),
    "resize_nearest_thirds": resized("nearest", "asymmetric", (1 / 3, 0.6), nearest_mode="floor"),
    "resize_that_keeps_sizes": resized("nearest", "asymmetric", (1.1, 1.05), nearest_mode="floor"),
    "resize_linear": resized("linear", "half_pixel", (2, 2)),
    "resize_linear_corners": resized("linear", "align_corners", (2, 1.5)),
    "resize_linear_pytorch": resized("linear", "pytorch_half_pixel", (0.7, 2)),
    "resize_linear_sizes": resized_to,
    "resize_linear_antialias": resized("linear", "half_pixel", (0.4, 0.7), antialias=1),
    "resize_cubic": resized("cubic", "half_pixel", (2, 1.5)),
    "resize_cubic_corners": resized("cubic", "align_corners", (1.5, 0.7), cubic_coeff_a=-0.5, exclude_outside=1),
    "resize_cubic_antialias": resized("cubic", "pytorch_half_pixel", (0.4, 2), antialias=1),
    "flatten_from_behind": flattened_from_behind,
    "split": split,
    "gather_and_tile": gathered,
    "class_token": class_token,
    "positions": positions,
    "depth_to_space": shuffled("DepthToSpace"),
    "depth_to_space_crd": shuffled("DepthToSpace", mode="CRD"),
    "space_to_depth": shuffled("SpaceToDepth"),
    "global_max_pool": global_max_pool,
    "reduce_sum": reduced("ReduceSum"),
    "reduce_max": reduced("ReduceMax"),
    "reduce_min": reduced("ReduceMin"),
}


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("case", CASES)
def test_every_operator_equals_the_reference_and_the_qdq_model(case: str, batch: int | str) -> None:
    quantized = quantized_case(CASES[case], batch)
    program = lower(quantized)
    feeds = inputs(quantized.graph, SAMPLES)
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(quantized, program, feeds) <= 1
    floats, integers = run(quantized.graph.model, feeds)["y"], run(integer_model(program), feeds)["y"]
    assert np.linalg.norm(integers - floats) < 0.1 * np.linalg.norm(floats)


@pytest.mark.parametrize("value", [-1e6, 0.0, 1e6])
@pytest.mark.parametrize("case", CASES)
def test_every_operator_equals_the_reference_on_extreme_inputs(case: str, value: float) -> None:
    """Constant and saturated inputs, on 8-bit grids whose zero is at either end."""
    for zero_point in (0, 255):
        program = lower(with_zero_points(quantized_case(CASES[case]), [zero_point]))
        assert_equal_to_reference(program, {"x": np.full((1, 4, 9, 9), value, np.float32)})


def test_a_reduction_over_no_named_axis_is_over_all() -> None:
    quantized = quantized_case(centred, 1)
    program, feeds = lower(quantized), inputs(quantized.graph, 1)
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(quantized, program, feeds) <= 1


@pytest.mark.parametrize("build", [computed_bound, computed_slope, computed_statistics])
def test_computed_parameters_are_refused(build: Build) -> None:
    with pytest.raises(BackendMissing, match="computed") as refusal:
        lower(quantized_case(build, 1))
    assert refusal.value.where.endswith(": tested")


def test_wide_grids_leave_the_qdq_model_alone() -> None:
    quantized = quantized_case(silu)
    assert quantized.graph.wide == ("first_out",)
    assert set(quantized.graph.wide).isdisjoint(quantized.graph.activations)
    kinds = {tensor.data_type for tensor in qdq_model(quantized).graph.initializer}
    assert TensorProto.UINT16 not in kinds


def test_an_epsilon_of_less_than_a_squared_step_counts_as_what_it_is() -> None:
    """Inputs of a step or two, as of a class token beside large ones: n eps / s^2 is 0.03 here, and was taken for 1."""
    quantized = quantized_case(layer_norm)
    (source,) = (name for name in quantized.wide_grids if name.endswith("_out"))
    fine = Grid(scale=0.0447, zero_point=1 << 15, bits=16)
    program = lower(replace(quantized, wide_grids={**quantized.wide_grids, source: fine}))
    (norm,) = (operation for operation in program.operations if isinstance(operation, IntegerNormalization))
    feeds = inputs(quantized.graph, 1)
    codes = np.random.default_rng(0).integers(-1, 2, run_program(program, feeds).integers[norm.input].shape)
    found = run_program(program, feeds, given={norm.input: codes.astype(np.int32)}).integers[norm.output]
    x = codes * fine.scale
    index = GraphIndex(quantized.graph.model)
    gamma, beta = (index.constant(name) for name in index.nodes["tested"].input[1:])
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    expected = (x - x.mean(axis=-1, keepdims=True)) / deviation * gamma + beta
    assert np.abs(found - program.grids[norm.output].steps(expected.astype(np.float32))).max() <= 1
