"""The outcome of `verify`, and the JSON document it becomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise that was checked. `detail` says what is wrong, `layer` names the layer at fault; both are "" where
    nothing is, and `layer` also where no single one is."""

    name: str
    passed: bool
    detail: str = ""
    layer: str = ""

    def told(self) -> str:
        """What is wrong, in one clause."""
        at = f" at {self.layer}" if self.layer else ""
        return f"{self.name}{at}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The first layer in execution order that breaks a check, and the tensor it computes."""

    layer: str
    tensor: str


@dataclass(frozen=True, kw_only=True)
class LayerVerdict:
    """How one tensor compares with the Q/DQ model's: share of equal elements, largest difference in steps and SQNR in
    dB, its layer fed the same integers; and from end to end. An SQNR is None where nothing differs."""

    name: str
    exact_fraction: float
    max_lsb: int
    sqnr_db: float | None
    end_to_end_exact_fraction: float
    end_to_end_sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`matches_reference` is bit-exactness of the integer-only model against the NumPy reference; `layers` compares
    the reference with the Q/DQ model, every layer fed the same integers, and `exact_fraction` and `max_lsb` sum them
    up; the `end_to_end` figures let differences travel between layers."""

    checks: tuple[Check, ...]
    first_departure: Departure | None
    samples: int
    matches_reference: bool
    float_tensors_inside: tuple[str, ...]
    exact_fraction: float
    max_lsb: int
    end_to_end_exact_fraction: float
    end_to_end_max_lsb: int
    output_difference: float
    layers: tuple[LayerVerdict, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as verify.json holds it."""
    document = {"passed": verdict.passed, **asdict(verdict)}
    for name in ("checks", "layers", "float_tensors_inside"):
        document[name] = list(document[name])
    return document
