"""Errors a user can cause. Each says what is wrong, where, and what to do, and owns an exit code."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class OmpqError(Exception):
    """Base of every error the command line reports without a traceback.

    `what` is the problem, `where` the file, node or flag at fault, `fix` the next step for the user.
    """

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return "\n".join(lines)


class GateFailed(OmpqError):
    """A gate on accuracy, exactness or latency did not hold. The outputs are there, but should not ship."""

    exit_code = 1


class BadInput(OmpqError):
    """A file, an array or a flag cannot be used."""

    exit_code = 2


class InfeasibleBudget(OmpqError):
    """No assignment of widths keeps the budget; the message names the smallest feasible size."""

    exit_code = 3


class BackendMissing(OmpqError):
    """A target asked for by name is not installed, or refused the model."""

    exit_code = 4
