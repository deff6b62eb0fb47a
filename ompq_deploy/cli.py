"""The command line: one verb per stage and the bare run. The only module that prints or exits."""

from __future__ import annotations

import errno
import io
import itertools
import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ompq_deploy.errors import INTERRUPTED, BadInput, OmpqError
from ompq_deploy.options import (
    ARITHMETIC,
    DATA,
    FLOAT_MODEL,
    JUDGING,
    MODEL,
    MOVED_CALIB,
    OUT,
    PATH,
    PLANNING,
    SWITCHES,
    TARGETS_WRITTEN,
    THREADS,
    TRAINING,
    VERBOSITY,
    check_judging,
    default_out,
    deploy_settings,
    plan_settings,
    preprocess_of,
    train_settings,
)
from ompq_deploy.report.console import Console

if TYPE_CHECKING:
    from ompq_deploy.finish import Deployment

INTERNAL_ERROR = 70
BROKEN_PIPE = 141
TERMINATED = 143
LOG_EVERY = 30.0
"""Seconds between two lines about the same stage where standard error is no terminal."""


class _Terminated(BaseException):
    """SIGTERM, as `docker stop`, `timeout` and schedulers send it: the run ends as after Ctrl-C."""


class _DefaultToDeploy(click.Group):
    """`ompq-deploy MODEL.onnx ...` means `ompq-deploy deploy MODEL.onnx ...`; switches may stand before the verb."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        switches = list(itertools.takewhile(SWITCHES.__contains__, args))
        rest = args[len(switches) :]
        if rest and rest[0] in self.commands:
            args = [rest[0], *switches, *rest[1:]]
        elif args and args[0] not in ("--help", "-h", "--version"):
            args = ["deploy", *args]
        return super().parse_args(context, args)


@click.group(
    cls=_DefaultToDeploy,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.version_option(package_name="ompq-deploy")
def cli() -> None:
    """Turn an ONNX network into a mixed INT4/INT8 TensorRT engine under a hard size budget.

    `ompq-deploy MODEL.onnx --size 6.7MB` does the whole job.
    """


@cli.command()
@MODEL
@PLANNING
@DATA
@TARGETS_WRITTEN
@ARITHMETIC
@JUDGING
@click.option("--dry-run", is_flag=True, help="Plan only; write no model.")
@OUT
@VERBOSITY
def deploy(model: Path, **flags: Any) -> None:
    """Plan, quantize, export, build, verify and report: the whole job."""
    from ompq_deploy import pipeline

    settings = deploy_settings({"model": model, **flags})
    _print_deployment(pipeline.deploy(model, settings, _listener(flags)), flags)


@cli.command()
@MODEL
@PLANNING
@DATA
@OUT
@VERBOSITY
def plan(model: Path, **flags: Any) -> None:
    """Decide the widths and write plan.json, in a folder that holds no deployment yet."""
    from ompq_deploy.verbs.plan import write_plan

    out = flags["out"] or default_out(model)
    document = write_plan(model, plan_settings(flags), out, _listener(flags))
    if flags["as_json"]:
        _print_json(document)
    else:
        click.echo(f"plan: {out / 'plan.json'}")


@cli.command()
@MODEL
@PLANNING
@DATA
@click.option(
    "--over", type=click.Choice(("size", "bops", "latency")), default="size", show_default=True, help="What is swept."
)
@click.option("--points", type=click.IntRange(min=2), default=20, show_default=True, help="Limits tried.")
@OUT
@VERBOSITY
def pareto(model: Path, **flags: Any) -> None:
    """The exact front of loss over size, bit operations or latency: pareto.json and pareto.svg.

    The limits given hold at every point, but for the one that is swept. `--solver` is always cp-sat here.
    """
    from ompq_deploy.report.front import front_table
    from ompq_deploy.verbs.plan import write_pareto

    out = flags["out"] or default_out(model)
    document = write_pareto(model, plan_settings(flags), flags["over"], flags["points"], out, _listener(flags))
    if flags["as_json"]:
        _print_json(document)
    else:
        Console().print(front_table(document))
        click.echo(f"front: {out / 'pareto.json'}, {out / 'pareto.svg'}")


@cli.command()
@click.argument("plan_path", metavar="PLAN.json", type=PATH)
@FLOAT_MODEL
@MOVED_CALIB
@TARGETS_WRITTEN
@ARITHMETIC
@THREADS
@OUT
@VERBOSITY
def quantize(plan_path: Path, **flags: Any) -> None:
    """Quantize the model of a plan.json and write its ONNX files."""
    from ompq_deploy.verbs.quantize import write_models

    out = flags["out"] or plan_path.parent
    written = write_models(
        plan_path, flags["model"], flags["targets"], out, _listener(flags),
        calib=flags["calib"], arithmetic=flags["arithmetic"], threads=flags["threads"],
    )  # fmt: skip
    if flags["as_json"]:
        _print_json({"written": [str(path) for path in written.paths], "skipped": written.skipped})
    else:
        for path in written.paths:
            click.echo(f"wrote {path}")
        for name, why in written.skipped.items():
            click.echo(f"skipped {name}: {why}")
    _fail(written.failures)


@cli.command()
@MODEL
@click.option("--plan", required=True, type=PATH, help="plan.json: the widths, which stay.")
@click.option(
    "--train",
    required=True,
    multiple=True,
    type=PATH,
    help="Training data: class folders or .npz; may repeat.",
)
@click.option(
    "--from",
    "start",
    type=PATH,
    help="Begin with the integers in the folder of an earlier run, not with those of the plan's settings.",
)
@TRAINING
@DATA
@TARGETS_WRITTEN
@JUDGING
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out, if there is one.")
@OUT
@VERBOSITY
def finetune(model: Path, **flags: Any) -> None:
    """Train the integers of a plan on data, then export, build, verify and report as the whole job does.

    Several processes: torchrun --nproc-per-node N -m ompq_deploy finetune ...
    """
    from ompq_deploy.finetune import run
    from ompq_deploy.finetune.settings import FinetuneSettings

    check_judging(flags)
    out = flags["out"] or default_out(model)
    settings = FinetuneSettings(
        plan=flags["plan"],
        train=flags["train"],
        out=out,
        training=train_settings(flags),
        start=flags["start"],
        preprocess=preprocess_of(flags),
        eval_data=flags["eval_data"],
        max_drop=flags["max_drop"],
        targets=flags["targets"],
        resume=flags["resume"],
        threads=flags["threads"],
    )
    result = run.finetune(model, settings, _listener(flags))
    if result is not None:
        _print_deployment(result, flags)


@cli.command()
@click.argument("folder", type=PATH)
@click.option("--target", type=click.Choice(("auto", "tensorrt", "tensorrt_rtx")), default="auto", show_default=True)
@FLOAT_MODEL
@VERBOSITY
def build(folder: Path, **flags: Any) -> None:
    """Build the engine of a folder that holds an earlier run."""
    from ompq_deploy.finish import ENGINE_FILE
    from ompq_deploy.verbs.build import write_engine

    record = write_engine(folder, flags["target"], flags["model"], _listener(flags))
    if flags["as_json"]:
        _print_json(record)
    else:
        click.echo(f"engine: {folder / ENGINE_FILE} ({record['file_bytes']:,} bytes)")


@cli.command()
@click.argument("folder", type=PATH)
@FLOAT_MODEL
@MOVED_CALIB
@click.option(
    "--engine-outputs",
    type=PATH,
    help="What the folder's engine computed on another machine: an .npz of its inputs and outputs by name.",
)
@THREADS
@VERBOSITY
def verify(folder: Path, **flags: Any) -> None:
    """Check a folder's files against its plan.json, and the executions of its network against each other."""
    from ompq_deploy.report.verdict import decision, verdict_tables
    from ompq_deploy.verbs.verify import verify_folder, write_verdict
    from ompq_deploy.verify.verdict import verdict_failures

    document = verify_folder(
        folder,
        flags["model"],
        flags["engine_outputs"],
        _listener(flags),
        calib=flags["calib"],
        threads=flags["threads"],
    )
    if flags["as_json"]:
        _print_json(document)
    else:
        Console().print(verdict_tables(document))
        click.echo(decision(document))
    try:
        write_verdict(folder, document)
    except BadInput as e:
        click.echo(f"note: verify.json was not written\n  where: {e.where}\n  why: {e.what}", err=True)
    _fail(verdict_failures(document, str(folder)))


@cli.command(name="eval")
@MODEL
@click.option("--eval", "eval_data", required=True, type=PATH, help="Labelled data.")
@DATA
@VERBOSITY
def eval_(model: Path, **flags: Any) -> None:
    """Top-1 and top-5 of a float, Q/DQ or integer-only ONNX model."""
    from ompq_deploy.verbs.facts import eval_model

    result = eval_model(model, flags["eval_data"], preprocess_of(flags), flags["threads"])
    if flags["as_json"]:
        _print_json(result)
    else:
        click.echo(f"n {result['n']}  top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %")


@cli.command()
@click.argument("folder", type=PATH)
@VERBOSITY
def report(folder: Path, **flags: Any) -> None:
    """Print the report of an earlier run."""
    from ompq_deploy.report import load_report, print_report

    document = load_report(folder / "report.json")
    if flags["as_json"]:
        _print_json(document)
    else:
        print_report(document, Console(), str(folder / "report.json"))


@cli.command()
@VERBOSITY
def doctor(**flags: Any) -> None:
    """Tell which versions and engine backends this environment has."""
    from ompq_deploy.verbs.facts import installed

    facts = installed()
    if flags["as_json"]:
        _print_json(facts)
        return
    for name, value in {**facts["packages"], **facts["backends"]}.items():
        click.echo(f"{name:16} {value}")


def main() -> None:
    """Entry point: run, and turn every error into its message and exit code."""
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot write is no reason to fail
    try:
        code = cli.main(standalone_mode=False)
    except OmpqError as e:
        _explain(e)
        _trace(verbose)
        code = e.exit_code
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except (click.Abort, KeyboardInterrupt, _Terminated) as e:
        click.echo("interrupted; nothing was left half-written", err=True)
        code = TERMINATED if isinstance(e, _Terminated) else INTERRUPTED
    except SystemExit:  # click's and rich's answer to a pipe whose reader is gone
        code = BROKEN_PIPE
    except Exception as e:
        code = _explain_unexpected(e)
        _trace(verbose)
    sys.exit(code)


def _terminate(*_: object) -> None:
    raise _Terminated


def _explain(error: OmpqError) -> None:
    click.echo(f"error: {error}", err=True)


def _explain_unexpected(error: Exception) -> int:
    """Tell of an error that no stage foresaw; the exit code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = BadInput(f"cannot write: {error.strerror}", where=error.filename or "standard output", fix="make room")
        _explain(full)
        return full.exit_code
    click.echo(f"error: internal error: {error!r}\n  to do: run again with -v and report the traceback", err=True)
    return INTERNAL_ERROR


def _trace(verbose: bool) -> None:
    if verbose:
        traceback.print_exc()


def _print_deployment(result: Deployment, flags: dict[str, Any]) -> None:
    from ompq_deploy.finish import written_before
    from ompq_deploy.report import print_report
    from ompq_deploy.report.terminal import render

    if flags["as_json"]:
        _print_json(result.report)
    elif flags.get("dry_run") and written_before(result.out):
        Console().print(render(result.report))
        click.echo(f"dry run: no file was written, {result.out} holds a deployment")
    else:
        print_report(result.report, Console(), str(result.out / "report.json"))
    _fail(result.failures)


def _fail(failures: tuple[OmpqError, ...]) -> None:
    """Tell every failure; leave with the exit code of the first."""
    for failure in failures:
        _explain(failure)
    if failures:
        raise click.exceptions.Exit(failures[0].exit_code)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def _listener(flags: dict[str, Any]) -> Callable[[str, float | None], None] | None:
    """Progress on standard error: one line per finished stage, and the one under way; that is overwritten on a terminal
    and told every LOG_EVERY seconds elsewhere."""
    if flags["quiet"]:
        return None
    console = Console(stderr=True)
    told = time.monotonic()

    def tell(stage: str, seconds: float | None) -> None:
        nonlocal told
        width = console.width - 1 if console.is_terminal else 0
        if seconds is not None:
            line, end = f"  {stage:10} {seconds:7.2f} s", "\n"
        elif console.is_terminal:
            line, end = f"  {stage} ...", "\r"
        elif time.monotonic() - told >= LOG_EVERY:
            line, end = f"  {stage}", "\n"
        else:
            return
        told = time.monotonic()
        console.print(line.ljust(width), end=end, highlight=False)

    return tell


if __name__ == "__main__":
    main()
