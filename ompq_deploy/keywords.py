"""Flags by name and value, as a TOML file or a Python program gives them: no dashes in front, - and _ alike."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click

from ompq_deploy.errors import BadInput

Switch = tuple[click.Option, bool]
"""An option, and whether the name is that of its --on form; of one without an --off form it is."""


NOT_OF_PROGRAMS = ("config", "verbose", "quiet", "as_json")
"""Parameters about the command line itself."""


def flag_defaults(
    command: click.Command, values: Mapping[str, Any], where: str, *, apart: Container[str | None] = ()
) -> dict[str, Any]:
    """`values` as the defaults of a command's parameters. Lists join to the text of a flag, or repeat one that may.

    Raises BadInput, at `where`, for values that are none and for names that no flag has but the parameters `apart`.
    """
    flags = {name: switch for name, switch in _flags(command).items() if switch[0].name not in apart}
    plain = {name: name.replace("-", "_") for name in values}
    if unknown := sorted(set(plain.values()) - set(flags)):
        close = [match for name in unknown for match in get_close_matches(name, flags)]
        hint = f", such as {', '.join(dict.fromkeys(close))}" if close else ""
        raise BadInput(
            f"unknown settings: {', '.join(unknown)}",
            where=where,
            fix=f"name flags of `ompq-deploy {command.name}` without dashes in front{hint}",
        )
    defaults: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, value in values.items():
        option, on = flags[plain[name]]
        parameter = str(option.name)
        if parameter in named:
            raise BadInput(
                f"{named[parameter]} and {name} are the same flag", where=where, fix="give it once, by one of its names"
            )
        named[parameter] = name
        defaults[parameter] = _default(option, on, value, where)
    return defaults


@contextmanager
def parsed(command: click.Command, argument: str, values: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The parameters of a command of one argument, given the flags in `values`, None for one that is not given; threads
    are limited as they say until it closes. Raises BadInput, at `where`, for what the command refuses."""
    context = click.Context(command, info_name=command.name)
    given = {name: value for name, value in values.items() if value is not None}
    context.default_map = flag_defaults(command, given, where, apart=NOT_OF_PROGRAMS)
    with context:
        try:
            command.parse_args(context, ["--", argument])
        except click.UsageError as e:
            raise BadInput(e.format_message(), where=where, fix=f"see `ompq-deploy {command.name} --help`") from e
        yield context.params


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
