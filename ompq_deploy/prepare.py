"""Load an ONNX model and bring it into the one form every later stage reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx_ir.passes import common as ir_passes

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.files.lock import model_sha256
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.graph.layers import find_layers
from ompq_deploy.graph.placement import place_activations
from ompq_deploy.graph.wide_grids import place_wide
from ompq_deploy.passes.bound_masks import bound_masks
from ompq_deploy.passes.drop_identities import drop_identities
from ompq_deploy.passes.fix_baked_batch import fix_baked_batch
from ompq_deploy.passes.fixed_sizes import write_fixed_sizes
from ompq_deploy.passes.fold_constants import fold_constants
from ompq_deploy.passes.fold_dimensions import fold_dimensions
from ompq_deploy.passes.fold_repeated import fold_repeated
from ompq_deploy.passes.fuse_layer_norm import fuse_layer_norm
from ompq_deploy.passes.fuse_linear import fuse_linear
from ompq_deploy.passes.fuse_pad_into_pool import fuse_pad_into_pool
from ompq_deploy.passes.input_sizes import give_sizes, open_unknown_sizes
from ompq_deploy.passes.keep_outputs import keep_outputs
from ompq_deploy.passes.name_nodes import layer_origins, name_nodes
from ompq_deploy.passes.old_resize import LAST_WITHOUT, give_coordinates
from ompq_deploy.passes.own_weights import own_weights
from ompq_deploy.passes.plain_products import plain_products
from ompq_deploy.passes.single_precision import float_type, single_precision
from ompq_deploy.passes.split_attention import split_attention
from ompq_deploy.passes.split_einsum import split_einsum
from ompq_deploy.passes.split_norms import split_norms
from ompq_deploy.passes.split_pools import split_pools
from ompq_deploy.units import format_bytes

OPSET = 21
IR_VERSION = 10
QUANTIZED_OPS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger")
)  # fmt: skip


def prepare(path: Path | str, input_shapes: Sequence[str] = ()) -> PreparedGraph:
    """Read `path` (external data beside it included) and return the canonical graph.

    `input_shapes` are sizes for symbolic axes of the inputs, as text (`passes/input_sizes.py`). Raises BadInput for
    anything that is not a float ONNX model with at least one quantizable layer, and for shapes that do not fit it.
    """
    path = Path(path)
    original, float_bytes = load_sized(path, input_shapes)
    _refuse_quantized(original, path)
    _refuse_training(original, path)
    _refuse_nan(original, path)
    model = canonicalize(original, path)
    bare = PreparedGraph(
        model=model,
        layers=(),
        activations=(),
        batch=_fixed_batch(model, path),
        source=path,
        sha256=model_sha256(path),
        float_bytes=float_bytes,
        float_type=float_type(original),
    )
    graph = rewritten(bare, model)
    if not graph.layers:
        raise BadInput(
            "the model has no layer to quantize",
            where=str(path),
            fix="give a network with Conv, ConvTranspose, Gemm or MatMul nodes whose weights are float constants",
        )
    _refuse_infinite_layers(graph)
    return graph


def rewritten(graph: PreparedGraph, model: onnx.ModelProto) -> PreparedGraph:
    """The graph with another canonical model of the same network, its layers and grids listed."""
    index = GraphIndex(model)
    layers = find_layers(index)
    activations = place_activations(index, layers)
    wide = place_wide(index, layers, activations)
    return replace(graph, model=model, layers=layers, activations=activations, wide=wide)


def load_sized(path: Path, input_shapes: Sequence[str]) -> tuple[onnx.ModelProto, int]:
    """The file's model, its inputs of the sizes given where it leaves them open, and the bytes of the file's own."""
    model = load_model(path)
    size = model.ByteSize()
    open_unknown_sizes(model)
    give_sizes(model, input_shapes)
    return model, size


def load_model(path: Path) -> onnx.ModelProto:
    """Parse and check an ONNX file, or raise BadInput saying what is wrong with it."""
    if not path.is_file():
        raise BadInput("no such model file", where=str(path), fix="check the path of the .onnx file")
    try:
        model = onnx.load(path, format="protobuf")
    except DecodeError as e:
        raise BadInput(
            "this is not an ONNX file, or it is cut short", where=str(path), fix="export or copy the model again"
        ) from e
    except (OSError, ValueError, onnx.checker.ValidationError) as e:
        raise BadInput(
            f"the model cannot be read: {e}", where=str(path), fix="check the file and its external data"
        ) from e
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise BadInput(
            f"the model takes {format_bytes(model.ByteSize())}, more than one ONNX file can hold",
            where=str(path),
            fix="deploy it in parts of less than 2 GiB",
        )
    if not model.graph.node:
        raise BadInput("the model's graph is empty", where=str(path), fix="export the model again")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        first_line = str(e).strip().splitlines()[0]
        raise BadInput(
            f"the model breaks the ONNX standard: {first_line}", where=str(path), fix="export the model again"
        ) from e
    return model


def canonicalize(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A new model, opset 21 or its own if later, with constants, BatchNorm, Pad and Identity folded, nodes named.

    Its floats are float32. Every output is made by a node, and every layer's weight read by that layer alone.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model, convert_version=True)
    try:
        upgraded = onnx.version_converter.convert_version(model, OPSET) if opset_of(model) < OPSET else model
    except (RuntimeError, onnx.version_converter.ConvertError) as e:
        raise BadInput(
            f"the model cannot be brought to opset {OPSET}: {e}",
            where=str(path),
            fix=f"export it with opset {OPSET} or lower it to standard operators",
        ) from e
    graph = ir.from_proto(single_precision(upgraded))
    ir_passes.RemoveInitializersFromInputsPass()(graph)
    name_nodes(graph)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    drop_identities(graph)
    origins = layer_origins(graph)
    changed = True
    while changed:
        changed = fold_constants(graph) | split_norms(graph) | split_pools(graph) | split_attention(graph)
        changed |= split_einsum(graph) | plain_products(graph) | fuse_pad_into_pool(graph)
        changed |= fuse_linear(graph) | fuse_layer_norm(graph) | fold_dimensions(graph)
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        changed |= drop_identities(graph)
    _quiet_deduplication(graph)
    ir_passes.RemoveUnusedNodesPass()(graph)
    ir_passes.TopologicalSortPass()(graph)
    ir_passes.ClearMetadataAndDocStringPass()(graph)
    name_nodes(graph, origins)
    graph.graph.metadata_props.clear()
    result = ir.to_proto(graph)
    result.ir_version = max(IR_VERSION, model.ir_version)
    del result.graph.value_info[:]
    if opset_of(model) <= LAST_WITHOUT:
        give_coordinates(result)
    fix_baked_batch(result)
    fold_repeated(result)
    keep_outputs(result)
    bound_masks(result)
    own_weights(result)
    inferred = onnx.shape_inference.infer_shapes(result, data_prop=True)
    write_fixed_sizes(inferred)
    return inferred


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set a model imports."""
    return next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)


def _quiet_deduplication(graph: ir.Model) -> None:
    """Merge equal initializers, so that a weight stored twice is one layer."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        ir_passes.DeduplicateInitializersPass(size_limit=1 << 30)(graph)
    finally:
        logger.setLevel(level)


def _refuse_quantized(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if node.op_type in QUANTIZED_OPS:
            raise BadInput(
                f"the model is quantized already: node {node.name or node.output[0]!r} is a {node.op_type}",
                where=str(path),
                fix="give the float model it was made from",
            )


def _refuse_training(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and attributes(node).get("training_mode", 0):
            raise BadInput(
                f"the model was exported for training: {node.name or node.output[0]!r} normalizes by its batch",
                where=str(path),
                fix="export it for inference (in PyTorch: model.eval())",
            )


def _refuse_nan(model: onnx.ModelProto, path: Path) -> None:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and np.isnan(numpy_helper.to_array(tensor)).any():
            raise _bad_weight(tensor.name, "NaN", path)


def _refuse_infinite_layers(graph: PreparedGraph) -> None:
    """Infinite values may mask something, but not in what a layer multiplies or adds."""
    index = GraphIndex(graph.model)
    for layer in graph.layers:
        for name in filter(index.is_constant, index.nodes[layer.name].input):
            if not np.isfinite(index.constant(name)).all():
                raise _bad_weight(name, "NaN or infinite values", graph.source)


def _bad_weight(name: str, values: str, path: Path) -> BadInput:
    return BadInput(
        f"weight {name!r} holds {values}",
        where=str(path),
        fix="check the training run or the export; such a network cannot be quantized",
    )


def _fixed_batch(model: onnx.ModelProto, path: Path) -> int | None:
    """The size of the inputs' first axis, along which samples lie; None where it is symbolic for all."""
    axes = {value.name: value.type.tensor_type.shape.dim[:1] for value in model.graph.input}
    sizes = {name: dims[0].dim_value for name, dims in axes.items() if dims and dims[0].HasField("dim_value")}
    if len(set(sizes.values())) > 1:
        raise BadInput(
            f"the first axes of the inputs differ: {', '.join(f'{name} {size}' for name, size in sizes.items())}",
            where=str(path),
            fix="export the model with the batch in front of every input",
        )
    return next(iter(sizes.values()), None)
