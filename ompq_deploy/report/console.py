"""The console that everything is printed on: text is printed as it is.

Exporters call layers `conv[0]`, and people folders `runs[/a]` or `b:smile:`, which rich reads as markup and emoji by
default. What is to have a style is a `rich.text.Text` or a style of its table.
"""

from __future__ import annotations

from typing import Any

import rich.console


class Console(rich.console.Console):
    """rich's console, for which no string is markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
