"""A network's heads, and how far two sets of outputs are apart.

classifier   one output of N x C (or N x C x 1 x 1), C >= 2; with z the logits and p = softmax(z), one head:
                 d_n = sum_c p_c (ln p_c - ln p'_c)
anything else (detectors, images, regressors, several outputs), y_nk being head k for sample n:
                 d_nk = ||y'_nk - y_nk||^2 / V_k        V_k = 1/(N-1) sum_n ||y_nk - mean_m y_mk||^2

divergence = mean over heads and samples of d_nk            additive to second order: the losses of layers
distance   = max over heads of mean_n sqrt(d_nk)            no sample and no head is hidden: what plans are compared by

A head is a part of an output that the same last layers decide (`head_search.py`), such as the box offsets of one
stride of a detector. Each counts the same however few its elements. V_k is how much it depends on the input at all,
over all calibration samples: the score of the background and the place of an anchor are constants, and relative to
||y||^2 they hide any error. Energy is 84 to 18,000 times V_k in UltraFace's heads.
Where a head never varies (or there is one sample) V_k is its energy, mean_n ||y_nk||^2, and 1 where that is zero.

Losses of layers are measured with a classifier's logits divided by SOFTENED: a network is so sure of most calibration
images that at temperature 1 its output KL rests on a few of them (docs/ablation.md).

By Pinsker's inequality sqrt(d_n / 2) bounds how much probability moves. On confident samples, such as training images,
the plain mean rests on the one or two that flip: over 14 contests its winner was 20 % worse in KL on other images than
the best plan, the winner by distance 9 % (docs/ablation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64

SOFTENED = 4.0
"""The temperature at which layers, and refined networks, are compared (Hinton et al., 2015)."""
SMALLEST_VARIATION = 1e-12
"""Share of the energy; below it lie the roundings of float32."""
FALLBACK = "the model is no classifier (one output of samples x classes), so output errors stand for its loss"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The elements of one output that `layers` decide.

    `shape` is that of one sample of `tensor`, `elements` int64 are the flat places in it. `variation` is V_k, positive.
    """

    tensor: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    elements: NDArray[np.int64]
    variation: float

    @property
    def box(self) -> tuple[slice, ...] | None:
        """The elements as one slice per axis of `shape`, or None where they form no box."""
        places = np.unravel_index(self.elements, self.shape) if self.shape else ()
        found = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
        return found if len(self.elements) == np.prod([s.stop - s.start for s in found]) else None

    def of(self, output: NDArray[np.generic]) -> Float64:
        """The head's values in an output with the samples on axis 0, float64 (N, elements)."""
        values: Float64 = output.reshape(len(output), -1)[:, self.elements].astype(np.float64)
        return values


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The tensors to compare, and the parts they are compared by.

    For a classifier `tensors` are the logits, and there are no `parts`: the distribution counts as a whole.
    """

    classifier: bool
    tensors: tuple[str, ...]
    parts: tuple[Head, ...] = ()

    @property
    def measure(self) -> str:
        """What `distance` is, in words."""
        if self.classifier:
            return "root of output KL"
        return "relative output error" if len(self.parts) == 1 else "relative error of the worst head"

    @cached_property
    def root_weights(self) -> list[Float32]:
        """1 / sqrt(K V_k) for every element of one sample of every tensor, float32 (elements,); none for a classifier.

        With W the diagonal matrix of them, ||W (y'_n - y_n)||^2 is the mean of d_nk over the heads.
        """
        sizes = {head.tensor: int(np.prod(head.shape)) for head in self.parts}
        weights = {name: np.zeros(sizes[name], np.float32) for name in self.tensors if name in sizes}
        for head in self.parts:
            weights[head.tensor][head.elements] = 1 / np.sqrt(len(self.parts) * head.variation)
        return list(weights.values())

    @property
    def note(self) -> str:
        """What a metric says when it falls back; empty for a classifier."""
        return "" if self.classifier else FALLBACK


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The float network's `outputs`, one per tensor of `heads` with the samples on axis 0, to compare others with.

    Every method takes the same outputs of another version of the network on the same samples.
    """

    heads: Heads
    outputs: Sequence[Float32]

    def per_sample(self, other: Sequence[Float32], temperature: float = 1.0) -> Float64:
        """sqrt of the mean of d_nk over heads, float64 (N,); `temperature` as in `divergence`."""
        if self.heads.classifier:
            return np.sqrt(self._softened(other, temperature))
        return np.sqrt(self._squares(other))

    def divergence(self, other: Sequence[Float32], temperature: float = 1.0) -> float:
        """Mean of d_nk over heads and samples; `temperature` divides the logits of classifiers."""
        if self.heads.classifier:
            return float(np.mean(self._softened(other, temperature)))
        return float(np.mean(self._squares(other)))

    def distance(self, other: Sequence[Float32], temperature: float = 1.0) -> float:
        """Mean of sqrt(d_nk) over the samples, for the head where it is largest; `temperature` as in `divergence`."""
        if self.heads.classifier:
            return float(np.mean(np.sqrt(self._softened(other, temperature))))
        pairs = {name: (a, b) for name, a, b in zip(self.heads.tensors, self.outputs, other, strict=True)}
        errors = []
        for head in self.heads.parts:
            a, b = (head.of(values) for values in pairs[head.tensor])
            errors.append(float(np.mean(np.sqrt(np.square(b - a).sum(axis=1) / head.variation))))
        return max(errors)

    def _squares(self, other: Sequence[Float32]) -> Float64:
        """Mean of d_nk over the heads of anything but a classifier, float64 (N,)."""
        tensors = zip(self.outputs, other, self.heads.root_weights, strict=True)
        parts = [np.square(weights * _rows(b - a)).sum(axis=1, dtype=np.float64) for a, b, weights in tensors]
        return np.asarray(sum(parts))

    def _softened(self, other: Sequence[Float32], temperature: float) -> Float64:
        return kl_per_sample(self.outputs[0] / temperature, other[0] / temperature)


def kl_per_sample(reference: Float32, other: Float32) -> Float64:
    """d_n of two classifiers' logits, float64 (N,), nonnegative."""
    log_p, log_q = log_softmax(_rows(reference)), log_softmax(_rows(other))
    return np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=1), 0.0)


def variation(energy: float, spread: float) -> float:
    """V_k, positive, of a head with mean_n ||y_nk||^2 and the variance over samples summed over its elements."""
    if spread > SMALLEST_VARIATION * energy:
        return spread
    return energy if energy > 0 else 1.0


def log_softmax(logits: Float32) -> Float64:
    """ln softmax along axis 1 of (N, C)."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def _rows(output: Float32) -> Float32:
    return output.reshape(len(output), -1)
