"""Layer tables of ResNet-18, ResNet-50 and MobileNetV2 for 224 x 224 inputs, from their published definitions.

ResNet:       He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1; the stride of a
              bottleneck lies on its 3 x 3 convolution, as in torchvision; the first block of a stage has a 1 x 1
              downsample convolution (ResNet-18: from the second stage on).
MobileNetV2:  Sandler et al., CVPR 2018, Table 2.
"""

from __future__ import annotations

import math

from ompq_deploy.artifacts import Layer

IMAGE = 224
CLASSES = 1000
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Width and stride of each ResNet stage."""
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, stride of each MobileNetV2 stage."""


def conv(name: str, c_in: int, c_out: int, kernel: int, size: int, groups: int = 1) -> Layer:
    """A convolution with `size` x `size` outputs."""
    shape = (c_out, c_in // groups, kernel, kernel)
    return _layer(name, "Conv", shape, math.prod(shape) * size * size, groups)


def linear(name: str, c_in: int, c_out: int) -> Layer:
    return _layer(name, "Gemm", (c_out, c_in), c_in * c_out, 1)


def resnet18() -> list[Layer]:
    """Stem, 8 blocks of two 3 x 3 convolutions, each downsample after the block's last convolution, classifier."""
    layers, size, c_in = [conv("conv1", 3, 64, 7, IMAGE // 2)], IMAGE // 4, 64
    for stage, (width, stride) in enumerate(STAGES, start=1):
        for block in range(2):
            name, here = f"layer{stage}.{block}", stride if block == 0 else 1
            size //= here
            layers.append(conv(f"{name}.conv1", c_in, width, 3, size))
            layers.append(conv(f"{name}.conv2", width, width, 3, size))
            if here != 1:
                layers.append(conv(f"{name}.downsample", c_in, width, 1, size))
            c_in = width
    return [*layers, linear("fc", c_in, CLASSES)]


def resnet50() -> list[Layer]:
    """Stem, 16 bottlenecks, each downsample after the block's last convolution, classifier."""
    layers, size, c_in = [conv("conv1", 3, 64, 7, IMAGE // 2)], IMAGE // 4, 64
    for stage, ((width, stride), blocks) in enumerate(zip(STAGES, (3, 4, 6, 3), strict=True), start=1):
        for block in range(blocks):
            name, here = f"layer{stage}.{block}", stride if block == 0 else 1
            layers.append(conv(f"{name}.conv1", c_in, width, 1, size))
            size //= here
            layers.append(conv(f"{name}.conv2", width, width, 3, size))
            layers.append(conv(f"{name}.conv3", width, 4 * width, 1, size))
            if block == 0:
                layers.append(conv(f"{name}.downsample", c_in, 4 * width, 1, size))
            c_in = 4 * width
    return [*layers, linear("fc", c_in, CLASSES)]


def mobilenet_v2() -> list[Layer]:
    """Stem, 17 inverted residuals (expand, depthwise, project), last convolution, classifier: 53 layers."""
    size, c_in = IMAGE // 2, 32
    layers = [conv("stem", 3, c_in, 3, size)]
    for stage, (expansion, channels, repeats, stride) in enumerate(INVERTED, start=1):
        for block in range(repeats):
            name, hidden = f"stage{stage}.{block}", c_in * expansion
            if expansion != 1:
                layers.append(conv(f"{name}.expand", c_in, hidden, 1, size))
            size //= stride if block == 0 else 1
            layers.append(conv(f"{name}.depthwise", hidden, hidden, 3, size, groups=hidden))
            layers.append(conv(f"{name}.project", hidden, channels, 1, size))
            c_in = channels
    return [*layers, conv("last", c_in, 1280, 1, size), linear("fc", 1280, CLASSES)]


def _layer(name: str, op: str, shape: tuple[int, ...], macs: int, groups: int) -> Layer:
    return Layer(
        name=name,
        op=op,
        nodes=(name,),
        weight=f"{name}.weight",
        shape=shape,
        channel_axis=0,
        groups=groups,
        inputs=("x",),
        output=name,
        macs=macs,
    )
