"""Codes come back from the file as they went in, and take the bytes the size model says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy import numerics
from ompq_deploy.artifacts import Layer
from ompq_deploy.export import storage
from ompq_deploy.numerics import pack_bits, packed_bytes, signed_range, unpack_bits


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (5, 7), (1, 1), (3, 1, 3)])
def test_codes_survive_the_file(bits: int, shape: tuple[int, ...]) -> None:
    low, high = signed_range(bits)
    codes = np.random.default_rng(bits).integers(low, high + 1, shape).astype(np.int8)
    codes.reshape(-1)[:1] = low
    initializers, nodes, name = storage.store_codes(codes, bits, "w")
    graph = helper.make_graph(
        [*nodes, helper.make_node("DequantizeLinear", [name, "one"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [*initializers, onnx.numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(storage.FUNCTION_DOMAIN, 1)],
        functions=[storage.unpack_function(bits)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_have_no_gaps_and_unpack(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = signed_range(bits)
    codes = np.random.default_rng(bits).integers(low, high + 1, 101).astype(np.int8)
    packed = pack_bits(codes, bits)
    assert packed.size == packed_bytes(101, bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, 101), codes)
    monkeypatch.setattr(numerics, "PACKED_AT_ONCE", 16)
    np.testing.assert_array_equal(pack_bits(codes, bits), packed)
    np.testing.assert_array_equal(unpack_bits(packed, bits, 101), codes)


def test_four_bit_packing_is_onnx_int4() -> None:
    codes = np.array([-8, 7, 1, -1], np.int8)
    tensor = onnx.helper.make_tensor("w", TensorProto.INT4, [4], codes)
    assert tensor.raw_data == pack_bits(codes, 4).tobytes() or list(tensor.int32_data) == pack_bits(codes, 4).tolist()


def layer(op: str, shape: tuple[int, ...]) -> Layer:
    return Layer(
        name="l",
        op=op,
        nodes=("l",),
        weight="w",
        shape=shape,
        channel_axis=0,
        groups=1,
        inputs=("x",),
        output="y",
        macs=0,
    )


def test_a_narrower_weight_takes_fewer_bytes() -> None:
    sizes = [storage.stored_bytes(layer("Conv", (64, 64, 3, 3)), bits, "w") for bits in range(2, 9)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 64 * 64 * 9 * 2 // 8 + 200


def test_an_int8_gemm_tells_its_zero_points() -> None:
    codes = np.zeros((10, 16), np.int8)
    stored = storage.store_weight(layer("Gemm", (10, 16)), codes, 8, "w")
    zeros = next(t for t in stored.initializers if t.name == stored.zero_points[0])
    assert list(zeros.dims) == [10]
    assert zeros.data_type == TensorProto.INT8
    assert storage.store_weight(layer("Gemm", (10, 16)), codes, 4, "w").zero_points == []
    assert storage.store_weight(layer("Conv", (10, 16)), codes, 8, "w").zero_points == []
