"""setup.cfg lists every package: a folder forgotten there is missing from an installed ompq-deploy."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ompq_deploy").rglob("__init__.py")}
    assert listed == found | {"ompq_deploy.calib_data"}


def test_constraints_pin_every_direct_dependency() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split("\n") + config["options.extras_require"]["dev"].split("\n")
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    for requirement in filter(None, wanted):
        assert requirement.partition(">=")[0].strip() in pinned, requirement
