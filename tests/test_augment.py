"""Images are flipped and shifted whole, and copies keep to the order of the samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ompq_deploy.artifacts import Samples
from ompq_deploy.augment import Draws, augmented, draw, with_copies

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


def test_arrays_are_not_copied() -> None:
    arrays = samples(IMAGES, None)
    assert with_copies(arrays, 3, 0) is arrays
