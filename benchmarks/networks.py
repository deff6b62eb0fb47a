"""The classifiers the benchmarks measure, each with its calibration images, labelled images and preprocessing.

Paths are relative to the folders models/ and data/ of `--shared`, which do not ship with this repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ompq_deploy.calib import Preprocess, make_preprocess


@dataclass(frozen=True, kw_only=True)
class Case:
    """A classifier; `evaluation` are (file, images used), `mean` and `std` override the preset's."""

    name: str
    model: str
    calib: str
    evaluation: tuple[tuple[str, int], ...]
    preset: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def preprocess(self) -> Preprocess:
        return make_preprocess(self.preset, mean=self.mean, std=self.std, bgr=None, layout=None)

    @property
    def preprocess_flags(self) -> list[str]:
        """The same for the command line."""
        flags = ["--preprocess", self.preset]
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            flags += [flag, ",".join(map(str, values))] if values else []
        return flags


CIFAR_SHIFTED = "cifar10_test_jpeg_5000.npz"
CIFAR = (("cifar10_test_593.npz", 593), (CIFAR_SHIFTED, 1000))
IMAGENET = (("imagenet_nips17dev_500_224.npz", 500),)

CASES = (
    Case(name="resnet8", model="cifar10/mlperf_tiny_resnet8.onnx", calib="cifar10_train_4000.npz", evaluation=CIFAR,
         preset="raw"),
    Case(name="resnet20", model="cifar10/resnet20.onnx", calib="cifar10_train_4000.npz", evaluation=CIFAR,
         preset="torchvision"),
    Case(name="mobilenet_v2", model="imagenet/mobilenet_v2_1.0_224_keras.onnx", evaluation=IMAGENET,
         calib="imagenet_nips17dev_calib128_224.npz", preset="tf"),
    Case(name="vit_small", model="cifar10/vit_small.onnx", calib="cifar10_train_4000.npz", evaluation=CIFAR,
         preset="unit", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    Case(name="resnet56", model="cifar10/resnet56.onnx", calib="cifar10_train_4000.npz", evaluation=CIFAR,
         preset="torchvision"),
)  # fmt: skip


def selected(names: Sequence[str], counts: Mapping[str, int]) -> list[Case]:
    """The cases of these names; `counts` are numbers of images to use of an evaluation file."""
    return [
        replace(case, evaluation=tuple((file, counts.get(file, count)) for file, count in case.evaluation))
        for case in CASES
        if case.name in names
    ]
