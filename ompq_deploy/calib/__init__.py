"""Calibration and evaluation data: read images or arrays, bring them into the model's input tensors, hash them."""

from __future__ import annotations

from ompq_deploy.calib.input_spec import InputSpec, input_specs
from ompq_deploy.calib.load import DEFAULT_SAMPLES, LabelledSet, load_labelled, load_samples, load_unused
from ompq_deploy.calib.preprocess import PRESETS, Preprocess, make_preprocess
from ompq_deploy.calib.sources import DEFAULT_PRESET

__all__ = [
    "DEFAULT_PRESET",
    "DEFAULT_SAMPLES",
    "PRESETS",
    "InputSpec",
    "LabelledSet",
    "Preprocess",
    "input_specs",
    "load_labelled",
    "load_samples",
    "load_unused",
    "make_preprocess",
]
