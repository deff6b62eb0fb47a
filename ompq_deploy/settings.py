"""Everything a user can choose about a run, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ompq_deploy.calib import DEFAULT_SAMPLES, Preprocess
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.program import DYADIC
from ompq_deploy.limits.rules import Rules
from ompq_deploy.metrics import MetricSettings
from ompq_deploy.quantize import QuantizeSettings

SOLVERS = ("cp-sat", "dp", "mpqco-greedy", "ompq-lp", "ompq-dfs")
TARGETS = ("auto", "onnx", "integer", "tensorrt", "tensorrt_rtx")
DEFAULT_BITS = (4, 8)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What decides the plan and the integers. Limits are text: `size` "6.7MB" or "60%", `bops` "75G",
    `activation_memory` "4MB", `latency` "2ms"; None is no limit. `input_shapes` are those of `--input-shape`. `samples`
    are drawn to calibrate, and weights rounded by up to `rounding_samples`, those among them, where there are as many.
    """

    size: str | None = None
    size_of: str = "file"
    bops: str | None = None
    activation_memory: str | None = None
    latency: str | None = None
    latency_table: Path | None = None
    solver: str = "cp-sat"
    rules: Rules = field(default_factory=Rules)
    bits: tuple[int, ...] = DEFAULT_BITS
    input_shapes: tuple[str, ...] = ()
    calib: Path | None = None
    preprocess: Preprocess | None = None
    samples: int = DEFAULT_SAMPLES
    rounding_samples: int = 0
    metric: MetricSettings = field(default_factory=MetricSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    seed: int = 0
    threads: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width a plan may hold: `bits`, and those only a rule asks for."""
        return self.rules.widths(self.bits)

    def recorded(self) -> dict[str, Any]:
        """The settings as JSON values, for the lock file."""
        values = asdict(self)
        metric = values.pop("metric")
        values["metric"] = metric.pop("name")
        values["metric_settings"] = metric
        values["calib"] = str(self.calib) if self.calib else None
        values["latency_table"] = str(self.latency_table) if self.latency_table else None
        values["bits"] = list(self.bits)
        values["input_shapes"] = list(self.input_shapes)
        return values

    @classmethod
    def from_recorded(cls, values: dict[str, Any]) -> PlanSettings:
        """The settings a lock file holds; the inverse of `recorded`. Raises BadInput for settings of other versions."""
        try:
            return cls._from_values(dict(values))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInput(
                f"plan.json has settings that this version does not know: {e}",
                where="plan.json: settings",
                fix="make the plan again with this version, or use the one named under `versions` there",
            ) from e

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> PlanSettings:
        metric = MetricSettings(name=values.pop("metric"), **values.pop("metric_settings"))
        preprocess = values.pop("preprocess")
        calib = values.pop("calib")
        table = values.pop("latency_table", None)
        return cls(
            metric=metric,
            preprocess=Preprocess.from_recorded(preprocess) if preprocess else None,
            calib=Path(calib) if calib else None,
            latency_table=Path(table) if table else None,
            rules=Rules.from_recorded(values.pop("rules", {})),
            bits=tuple(values.pop("bits")),
            input_shapes=tuple(values.pop("input_shapes", ())),
            quantize=QuantizeSettings(**values.pop("quantize")),
            **values,
        )


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """A whole run: the plan, what to write, how to judge it. `arithmetic` is that of the integer-only model."""

    plan: PlanSettings
    out: Path
    targets: tuple[str, ...] = ("auto",)
    arithmetic: str = DYADIC
    eval_data: Path | None = None
    max_drop: float | None = None
    dry_run: bool = False
