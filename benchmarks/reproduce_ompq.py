"""Rebuild every size and BOPs figure published for OMPQ from layer tables, and check the published bit lists.

    size  = sum (weights + 2 C_out of BatchNorm, or the bias of a classifier) * b / 8      in MiB, no scales
    BOPs  = sum (MACs + 5 C H W) * b_w * b_a, classifier 2 MACs + C                         in 10^9

The same cost model as `ompq-deploy --size-of paper`. The downsample convolution has the bits of its block's last.
In quantization-aware lists the first and last layer have 8 bits for weights and activations.

Three conventions hold for single rows only, and were found by matching the printed digits:
  - the float baselines count MACs alone, and ResNet-50's with the stride on the first 1 x 1 convolution (v1)
  - ResNet-50's quantized rows count the first 1 x 1 convolution of stage 1 at 112 x 112, and the classifier as if it
    had ResNet-18's 512 inputs, as the authors' code does
  - "5.81" counts weights alone; 5.81 and 97 are cut off, not rounded; "97.8" is not met by any count of parameters

Bit lists: Ma et al., "OMPQ: Orthogonal Mixed Precision Quantization", AAAI 2023, and the lists its authors publish at
github.com/MAC-AutoML/OMPQ (QAT/bit_config.py, PTQ/run_scripts), re-typed.

    python benchmarks/reproduce_ompq.py          exits 1 where any row differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from layer_tables import mobilenet_v2, resnet18, resnet50

from ompq_deploy.artifacts import Layer
from ompq_deploy.limits.resources import paper_operations
from ompq_deploy.limits.sizes import paper_count

MIB = 2**20
EDGE_BITS = 8
Bits = Mapping[str, int]

RESNET18_QAT = (8, 8, 8, 8, 7, 8, 8, 8, 8, 4, 6, 8, 4, 4, 4, 4)
RESNET18_PTQ = {
    "3.0": (4, 3, 4, 4, 4, 4, 4, 3, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2),
    "3.5": (4, 3, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 4, 3, 2, 2, 2, 3),
    "4.0": (4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 4, 3, 2, 3, 3, 3),
    "4.5": (4, 3, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 4, 4, 3, 3, 3, 3),
    "5.0": (4, 3, 3, 3, 4, 4, 4, 3, 4, 3, 4, 3, 4, 3, 3, 4, 4, 4),
    "5.5": (*(4,) * 10, 3, *(4,) * 7),
}
RESNET50_QAT = {
    "16.0": (*(8,) * 21, *(8, 4, 4), *(8, 4, 8) * 2, *(8, 5, 8), *(8, 8, 8), *(8, 4, 8), *(4,) * 8, 8),
    "18.7": (*(8,) * 21, *(8, 8, 4), *(8,) * 15, *(8, 4, 4), *(5, 4, 8), *(8, 4, 8)),
    "21.2": (*(8,) * 39, *(8, 4, 4), *(8, 6, 8), *(8, 8, 8)),
}
MOBILENET_V2_PTQ = {
    "1.5": (*(4,) * 52, 3),
    "1.3": (*(4,) * 50, 3, 3, 2),
    "1.1": (*(4,) * 41, *(3, 3, 4) * 3, 2, 2, 2),
    "0.9": (*(4,) * 21, *(3, 4, 3) * 4, 2, *(4, 2, 2) * 6, 2),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `expected` is what recounting gave before, `paper` what was printed ("" where nothing was);
    `budget` the limit a published list was made for, and whether it keeps it."""

    item: str
    value: float
    expected: str
    paper: str = ""
    budget: float | None = None
    keeps: bool = True
    differs_in_print: bool = False

    @property
    def recomputed(self) -> str:
        return f"{self.value:.{_digits(self.expected)}f}"

    @property
    def problems(self) -> list[str]:
        found = []
        if self.recomputed != self.expected:
            found.append(f"expected {self.expected}")
        near = not self.paper or abs(self.value - float(self.paper)) < 10.0 ** -_digits(self.paper)
        if near == self.differs_in_print:
            found.append(f"printed {self.paper}")
        if self.budget is not None and (self.value <= self.budget) != self.keeps:
            found.append(f"should {'keep' if self.keeps else 'break'} {self.budget}")
        return found


def mib(layers: Iterable[Layer], bits: Bits) -> float:
    """Size of a network in MiB as the paper counts it."""
    return sum(paper_count(layer) * bits[layer.name] for layer in layers) / 8 / MIB


def uniform(layers: Iterable[Layer], width: int) -> Bits:
    return {layer.name: width for layer in layers}


def listed(layers: list[Layer], widths: Iterable[int], *, edges: bool) -> Bits:
    """A published list by layer: without the downsamples, and without the first and last layer where `edges` is
    off; those have 8 bits."""
    plain = [layer.name for layer in layers if not layer.name.endswith("downsample")]
    bits = dict(zip(plain if edges else plain[1:-1], widths, strict=True))
    if not edges:
        bits |= {plain[0]: EDGE_BITS, plain[-1]: EDGE_BITS}
    for layer in layers:
        if layer.name.endswith("downsample"):
            block = layer.name.removesuffix("downsample")
            bits[layer.name] = bits[block + ("conv3" if f"{block}conv3" in bits else "conv2")]
    return bits


def giga_bops(layers: list[Layer], bits: Bits, activation_bits: int, operations: Mapping[str, int]) -> float:
    """BOPs of a list in 10^9, the first and last layer at 8-bit activations."""
    edges = {layers[0].name, layers[-1].name}
    return sum(
        operations[layer.name] * bits[layer.name] * (EDGE_BITS if layer.name in edges else activation_bits)
        for layer in layers
    ) / 1e9  # fmt: skip


def resnet50_operations(layers: list[Layer]) -> dict[str, int]:
    """The paper's count for ResNet-50, with the two deviations named above."""
    operations = {layer.name: paper_operations(layer) for layer in layers}
    operations["layer1.0.conv1"] *= 4
    operations["fc"] = (2 * 512 + 1) * 1000
    return operations


def baseline_macs(layers: list[Layer], first_stride: bool) -> int:
    """MACs, optionally with the stride of a bottleneck on its first convolution."""
    strided = {f"layer{stage}.0.conv1" for stage in (2, 3, 4)} if first_stride else set()
    return sum(layer.macs // 4 if layer.name in strided else layer.macs for layer in layers)


def rows() -> list[Row]:
    """Every figure, in the order of the paper's tables."""
    r18, r50, mobile = resnet18(), resnet50(), mobilenet_v2()
    edges = {"conv1", "fc"}
    weights_alone = sum(layer.numel * (8 if layer.name in edges else 4) for layer in r18) / 8 / MIB
    qat = listed(r18, RESNET18_QAT, edges=False)
    found = [
        Row(item="ResNet-18 fp32, MiB", value=mib(r18, uniform(r18, 32)), expected="44.592", paper="44.6"),
        Row(item="ResNet-50 fp32, MiB", value=mib(r50, uniform(r50, 32)), expected="97.49", paper="97.8",
            differs_in_print=True),
        Row(item="MobileNetV2 fp32, MiB", value=mib(mobile, uniform(mobile, 32)), expected="13.370", paper="13.4"),
        Row(item="ResNet-18 W8, MiB", value=mib(r18, uniform(r18, 8)), expected="11.148", paper="11.1"),
        Row(item="ResNet-18 W4, first/last 8, weights alone, MiB", value=weights_alone, expected="5.8176",
            paper="5.81"),
        Row(item="ResNet-18 QAT, MiB", value=mib(r18, qat), expected="6.6986", paper="6.7", budget=6.7),
    ]  # fmt: skip
    for budget, expected, paper, keeps in (
        ("16.0", "16.0252", "16.0", False),
        ("18.7", "18.7404", "18.7", False),
        ("21.2", "21.1809", "", True),
    ):
        value = mib(r50, listed(r50, RESNET50_QAT[budget], edges=False))
        found.append(Row(item=f"ResNet-50 QAT {budget}, MiB", value=value, expected=expected, paper=paper,
                         budget=float(budget), keeps=keeps))  # fmt: skip
    for budget, expected in zip(RESNET18_PTQ, ("2.9983", "3.4988", "4.0000", "4.4994", "4.9997", "5.4997"),
                                strict=True):  # fmt: skip
        value = mib(r18, listed(r18, RESNET18_PTQ[budget], edges=True))
        found.append(Row(item=f"ResNet-18 PTQ {budget}, MiB", value=value, expected=expected, paper=budget,
                         budget=float(budget)))  # fmt: skip
    for budget, expected in zip(MOBILENET_V2_PTQ, ("1.5185", "1.2800", "1.0908", "0.8953"), strict=True):
        value = mib(mobile, listed(mobile, MOBILENET_V2_PTQ[budget], edges=True))
        found.append(Row(item=f"MobileNetV2 PTQ {budget}, MiB", value=value, expected=expected, paper=budget,
                         budget=float(budget), keeps=budget != "1.5"))  # fmt: skip
    plain = {layer.name: paper_operations(layer) for layer in r18}
    for activation, expected, paper in ((6, "75.10", "75"), (8, "97.51", "97")):
        found.append(Row(item=f"ResNet-18 QAT a{activation}, G BOPs", value=giga_bops(r18, qat, activation, plain),
                         expected=expected, paper=paper))  # fmt: skip
    for budget, activation, expected, paper in (
        ("16.0", 5, "141.03", "141"),
        ("18.7", 5, "156.42", "156"),
        ("21.2", 7, "226.16", "226"),
    ):
        bits = listed(r50, RESNET50_QAT[budget], edges=False)
        found.append(Row(item=f"ResNet-50 QAT {budget} a{activation}, G BOPs", paper=paper, expected=expected,
                         value=giga_bops(r50, bits, activation, resnet50_operations(r50))))  # fmt: skip
    for name, layers, first, expected, paper in (
        ("ResNet-18", r18, False, "1857.6", "1858"),
        ("ResNet-50", r50, True, "3950.6", "3951"),
    ):
        value = baseline_macs(layers, first) * 32 * 32 / 1e9
        found.append(Row(item=f"{name} baseline, G BOPs", value=value, expected=expected, paper=paper))
    return found


def main() -> int:
    print("| item | recomputed | paper | budget | |\n|---|---|---|---|---|")
    wrong = 0
    for row in rows():
        budget = "" if row.budget is None else f"{row.budget:g} {'kept' if row.value <= row.budget else 'broken'}"
        fine = "ok, but not what is printed" if row.differs_in_print else "ok"
        note = "DIFFERS: " + ", ".join(row.problems) if row.problems else fine
        print(f"| {row.item} | {row.recomputed} | {row.paper or '-'} | {budget} | {note} |")
        wrong += bool(row.problems)
    return 1 if wrong else 0


def _digits(text: str) -> int:
    return len(text.partition(".")[2])


if __name__ == "__main__":
    sys.exit(main())
