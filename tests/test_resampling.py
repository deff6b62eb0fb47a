"""Resize along one axis, against onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.export.integer.resize import whole_weights
from ompq_deploy.graph.resampling import ROUNDINGS, TRANSFORMS, resized, scaled_length

LENGTHS = [(8, 20), (20, 8), (9, 6), (5, 1), (7, 17), (16, 8)]
WEIGHTED = [
    {"mode": mode, **extra}
    for mode, extra in itertools.product(
        ("linear", "cubic"), ({}, {"antialias": 1}, {"antialias": 1, "exclude_outside": 1})
    )
]
CUBIC = [{"mode": "cubic", "exclude_outside": 1}, {"mode": "cubic", "cubic_coeff_a": -0.5}]
NEAREST = [{"mode": "nearest", "nearest_mode": rounding} for rounding in ROUNDINGS]


def by_onnxruntime(x: np.ndarray, scale: np.float32, settings: dict[str, object]) -> np.ndarray:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **settings)
    scales = numpy_helper.from_array(np.array([1, 1, scale, 1], np.float32), "scales")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x.shape), ("y", None))
    ]
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("settings", [*WEIGHTED, *CUBIC, *NEAREST], ids=lambda s: " ".join(map(str, s.values())))
def test_the_taps_are_those_of_onnxruntime(settings: dict[str, object], transform: str) -> None:
    settings = {**settings, "coordinate_transformation_mode": transform}
    for size, length in LENGTHS:
        x = np.random.default_rng(0).standard_normal((1, 1, size, 3)).astype(np.float32)
        scale = np.float32((length + 0.137) / size)
        expected = by_onnxruntime(x, scale, settings)[0, 0]
        taps = resized(settings, size, len(expected), float(scale))
        assert taps is not None
        np.testing.assert_allclose(taps.weight.sum(axis=0), 1)
        found = sum(w[:, None] * x[0, 0, i] for i, w in zip(taps.index, taps.weight, strict=True))
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_nearest_element_is_that_of_onnxruntime_on_the_edge(transform: str, rounding: str) -> None:
    """Scales that put coordinates on whole numbers and halves, where float32 decides."""
    settings = {"mode": "nearest", "coordinate_transformation_mode": transform, "nearest_mode": rounding}
    for scale in (1 / 3, 0.3, 0.6, 0.7, 1.2, 1.3, 1.7, 2.4, 2.5):
        for size in (16, 30, 73, 110):
            x = np.arange(size, dtype=np.float32).reshape(1, 1, size, 1)
            expected = by_onnxruntime(x, np.float32(scale), settings).ravel()
            assert len(expected) == scaled_length(size, scale)
            taps = resized(settings, size, len(expected), float(np.float32(scale)))
            assert taps is not None
            np.testing.assert_array_equal(taps.index[0], expected, err_msg=f"{size} {scale}")


def test_a_region_of_interest_is_not_covered() -> None:
    assert resized({"coordinate_transformation_mode": "tf_crop_and_resize"}, 8, 4, 0.5) is None


def test_whole_weights_sum_to_a_power_of_two() -> None:
    taps = resized({"mode": "cubic"}, 7, 17, 17 / 7)
    assert taps is not None
    whole = whole_weights(taps.weight, 12)
    assert (whole.sum(axis=0) == 1 << 12).all()
    np.testing.assert_allclose(whole / 4096, taps.weight, atol=3 / 4096)
