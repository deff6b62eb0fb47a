"""The console that everything is printed on: text is printed as it is.

Exporters call layers `conv[0]`, and people folders `runs[/a]` or `b:smile:`, which rich reads as markup and emoji by
default. What is to have a style is a `rich.text.Text` or a style of its table.
"""

from __future__ import annotations

import os
from typing import Any

import rich.console

UNKNOWN_WIDTH = 80


class Console(rich.console.Console):
    """rich's console, for which no string is markup."""

    def __init__(self, **options: Any) -> None:
        if os.environ.get("COLUMNS") == "0":  # a terminal that does not know its size; rich would print nothing
            options = {"width": UNKNOWN_WIDTH, **options}
        super().__init__(markup=False, emoji=False, **options)
