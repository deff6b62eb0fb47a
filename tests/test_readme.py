"""The README's commands parse, its make targets exist, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ompq_deploy.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^\$ (.+?)(?:\s+#.*)?$", re.MULTILINE)


def commands(tool: str) -> list[str]:
    found = [line for page in PAGES for line in COMMAND.findall(re.sub(r"\\\n\s*", "", page.read_text()))]
    return sorted({line for line in found if line.split()[0] == tool})


@pytest.mark.parametrize("line", commands("ompq-deploy"))
def test_commands_parse(line: str) -> None:
    arguments = shlex.split(line.partition(" > ")[0])[1:]
    verb = arguments.pop(0) if arguments[0] in cli.commands else "deploy"
    cli.commands[verb].make_context(verb, arguments, parent=cli.make_context("ompq-deploy", [verb]))


def test_the_two_commands_are_make_targets() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[1] for line in commands("make")} == {"demo", "test"} <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
