"""Settings survive the lock file, also one written before a setting existed."""

from __future__ import annotations

import json
from pathlib import Path

from ompq_deploy.calib import make_preprocess
from ompq_deploy.limits.rules import Rules
from ompq_deploy.quantize import QuantizeSettings
from ompq_deploy.settings import PlanSettings

SETTINGS = PlanSettings(
    size="2MB",
    bits=(3, 8),
    calib=Path("images"),
    preprocess=make_preprocess("tf", mean=None, std=None, bgr=None, layout=None),
    rules=Rules(exclude=("stem",)),
    quantize=QuantizeSettings(effort="quick", activation_grid="symmetric"),
)


def test_recorded_settings_read_back() -> None:
    assert PlanSettings.from_recorded(json.loads(json.dumps(SETTINGS.recorded()))) == SETTINGS


def test_a_plan_written_before_there_were_kinds_of_grid_reads_back() -> None:
    recorded = SETTINGS.recorded()
    del recorded["quantize"]["activation_grid"]
    assert PlanSettings.from_recorded(recorded).quantize == QuantizeSettings(effort="quick")
