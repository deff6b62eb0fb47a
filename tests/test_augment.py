"""Images are flipped and shifted whole, and copies keep to the order of the samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ompq_deploy.artifacts import Samples
from ompq_deploy.augment import Draws, augmented, chosen_augmentation, copies_for, draw, with_copies
from ompq_deploy.errors import BadInput

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 16, 24)).astype(np.float32)


def samples(images: np.ndarray, layout: str | None) -> Samples:
    return Samples(inputs={"x": images}, labels=np.arange(len(images)), source="", sha256="sum", layout=layout)


def test_images_are_flipped_and_shifted_whole() -> None:
    flipped = augmented(IMAGES, Draws(flip=np.array([True, False] * 2), shift=np.zeros((4, 2))), "flip")
    np.testing.assert_array_equal(flipped[0], IMAGES[0, :, :, ::-1])
    np.testing.assert_array_equal(flipped[1], IMAGES[1])
    middle = Draws(flip=np.zeros(4, bool), shift=np.full((4, 2), 0.5))
    np.testing.assert_array_equal(augmented(IMAGES, middle, "crop"), IMAGES)
    corner = augmented(IMAGES, replace(middle, shift=np.zeros((4, 2))), "crop")
    np.testing.assert_array_equal(corner[:, :, 2:, 3:], IMAGES[:, :, :-2, :-3])
    draws = draw(1000, np.random.default_rng(0))
    assert math.isclose(draws.flip.mean(), 0.5, abs_tol=0.05)
    assert 0 <= draws.shift.min() < 0.01
    assert 0.99 < draws.shift.max() < 1


def test_copies_follow_the_samples_in_their_order() -> None:
    constant = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 3, 16, 24))
    found = with_copies(samples(constant, "NCHW"), 3, 0)
    np.testing.assert_array_equal(found.inputs["x"], np.concatenate([constant] * 3))
    np.testing.assert_array_equal(found.labels, np.tile(np.arange(4), 3))


def test_copies_differ_in_either_layout_and_the_samples_stay() -> None:
    rows_first, channels_last = (
        with_copies(samples(images, layout), 3, 0).inputs["x"]
        for images, layout in ((IMAGES, "NCHW"), (IMAGES.transpose(0, 2, 3, 1), "NHWC"))
    )
    np.testing.assert_array_equal(channels_last.transpose(0, 3, 1, 2), rows_first)
    originals, *copies = np.split(rows_first, 3)
    np.testing.assert_array_equal(originals, IMAGES)
    assert all((copy != originals).any() for copy in copies)
    assert (copies[0] != copies[1]).any()


def test_arrays_are_not_copied_nor_what_is_not_to_be() -> None:
    arrays, images = samples(IMAGES, None), samples(IMAGES, "NCHW")
    assert with_copies(arrays, 3, 0) is arrays
    assert with_copies(images, 3, 0, "none") is images


def test_copies_are_made_as_asked() -> None:
    copy = with_copies(samples(IMAGES, "NCHW"), 2, 1, "flip").inputs["x"][4:]
    whole, mirrored = (
        [(c == i).all() for c, i in zip(copy, other, strict=True)] for other in (IMAGES, IMAGES[..., ::-1])
    )
    assert all(np.logical_xor(whole, mirrored))
    assert any(mirrored)


def test_copies_stop_at_the_rows_wanted_and_the_numbers_allowed() -> None:
    assert [copies_for(count, 10, 256, 10**9) for count in (20, 64, 200, 1000)] == [12, 4, 1, 1]
    assert [copies_for(count, 10, 256, 2 * 64 * 10) for count in (64, 1000)] == [2, 1]


def test_images_are_flipped_and_cropped_unless_told_otherwise() -> None:
    assert [chosen_augmentation(asked, "NCHW") for asked in ("auto", "flip", "none")] == ["flip+crop", "flip", "none"]
    assert [chosen_augmentation(asked, None) for asked in ("auto", "none")] == ["none", "none"]
    with pytest.raises(BadInput, match="only images"):
        chosen_augmentation("crop", None)
