"""The outcome of `verify`, and the JSON document it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ompq_deploy.errors import GateFailed


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
    up; the `end_to_end` figures let differences travel between layers. `samples` is 0, and no figure means anything,
    where nothing could be compared."""

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


def not_compared(*checks: Check) -> Verdict:
    """The verdict on files that cannot be run; one of the checks says why."""
    return Verdict(
        checks=checks,
        first_departure=None,
        samples=0,
        matches_reference=False,
        float_tensors_inside=(),
        exact_fraction=0.0,
        max_lsb=0,
        end_to_end_exact_fraction=0.0,
        end_to_end_max_lsb=0,
        output_difference=0.0,
        layers=(),
    )


def verdict_failures(document: Mapping[str, Any], where: str) -> tuple[GateFailed, ...]:
    """The gate that a verdict, as verify.json holds it, fails; none where it passes. `where` is what it judges."""
    faults = [Check(**check).told() for check in document["checks"] if not check["passed"]]
    if not faults:
        return ()
    fix = "do not ship it; restore the files that plan.json records, or write them anew with ompq-deploy"
    return (GateFailed(f"verification failed: {'; '.join(faults)}", where=where, fix=fix),)


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as verify.json holds it."""
    document = {"passed": verdict.passed, **asdict(verdict)}
    for name in ("checks", "layers", "float_tensors_inside"):
        document[name] = list(document[name])
    return document
