"""Lists that are kept by hand are complete: packages, pins, and the tests that need torch."""

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


def test_every_test_that_needs_torch_is_run_with_it() -> None:
    """`make test` has no torch and skips them."""
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-torch:")[2].partition("\n\n")[0]
    need = [
        path.name for path in (ROOT / "tests").glob("test_*.py") if 'importorskip("' + 'torch")' in path.read_text()
    ]
    assert [name for name in need if f"tests/{name}" not in recipe.split()] == []


def test_constraints_pin_every_direct_dependency() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split("\n") + config["options.extras_require"]["dev"].split("\n")
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    for requirement in filter(None, wanted):
        assert requirement.partition(">=")[0].strip() in pinned, requirement
