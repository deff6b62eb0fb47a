"""Flags by name and value, as a TOML file or a Python program gives them: no dashes in front, - and _ alike."""

from __future__ import annotations

from collections.abc import Container, Mapping
from difflib import get_close_matches
from typing import Any

import click

from ompq_deploy.errors import BadInput

Switch = tuple[click.Option, bool]
"""An option, and whether the name is that of its --on form; of one without an --off form it is."""


def flag_defaults(
    command: click.Command, values: Mapping[str, Any], where: str, *, apart: Container[str | None] = ()
) -> dict[str, Any]:
    """`values` as the defaults of a command's parameters. Lists join to the text of a flag, or repeat one that may.

    Raises BadInput, at `where`, for values that are none and for names that no flag has but the parameters `apart`.
    """
    flags = {name: switch for name, switch in _flags(command).items() if switch[0].name not in apart}
    given = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(given) - set(flags)):
        close = [match for name in unknown for match in get_close_matches(name, flags)]
        hint = f", such as {', '.join(dict.fromkeys(close))}" if close else ""
        raise BadInput(
            f"unknown settings: {', '.join(unknown)}",
            where=where,
            fix=f"name flags of `ompq-deploy {command.name}` without dashes in front{hint}",
        )
    return {str(flags[name][0].name): _default(*flags[name], value, where) for name, value in given.items()}


def _flags(command: click.Command) -> dict[str, Switch]:
    """Every name that an option goes by: those of its flags and that of its parameter."""
    found: dict[str, Switch] = {}
    for option in command.params:
        if isinstance(option, click.Option):
            names = [(name, True) for name in (*option.opts, str(option.name))]
            names += [(name, False) for name in option.secondary_opts]
            found |= {name.lstrip("-").replace("-", "_"): (option, on) for name, on in names}
    return found


def _default(option: click.Option, on: bool, value: Any, where: str) -> Any:
    if option.is_flag:
        if not isinstance(value, bool):
            raise BadInput(f"{value!r} is no switch", where=f"{where}: {option.opts[0]}", fix="give true or false")
        return value is on
    if isinstance(value, Mapping):
        raise BadInput(f"{value!r} is no value", where=f"{where}: {option.opts[0]}", fix="give a text, number or list")
    parts = [str(part) for part in (value if isinstance(value, (list, tuple)) else [value])]
    return parts if option.multiple else ",".join(parts)
