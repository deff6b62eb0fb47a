"""The command line: one verb per stage and the bare run. The only module that prints or exits."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ompq_deploy.errors import BadInput, OmpqError
from ompq_deploy.options import DATA, FLOAT_MODEL, MODEL, OUT, PLANNING, VERBOSITY, plan_settings, preprocess_of
from ompq_deploy.settings import TARGETS

INTERNAL_ERROR = 70
INTERRUPTED = 130


class _DefaultToDeploy(click.Group):
    """`ompq-deploy MODEL.onnx ...` means `ompq-deploy deploy MODEL.onnx ...`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args.insert(0, "deploy")
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
@click.option(
    "--target",
    "targets",
    type=click.Choice(TARGETS),
    multiple=True,
    default=("auto",),
    show_default=True,
    help="What is written; may repeat.",
)
@click.option("--eval", "eval_data", type=click.Path(path_type=Path), help="Labelled data: class folders or .npz.")
@click.option("--max-drop", type=float, help="Largest tolerated drop of top-1, in points (needs --eval).")
@click.option("--dry-run", is_flag=True, help="Plan only; write no model.")
@OUT
@VERBOSITY
def deploy(model: Path, **flags: Any) -> None:
    """Plan, quantize, export, build, verify and report: the whole job."""
    from ompq_deploy import pipeline
    from ompq_deploy.report import print_report
    from ompq_deploy.settings import DeploySettings

    if flags["max_drop"] is not None and flags["eval_data"] is None:
        raise BadInput("--max-drop needs labelled data", where="--max-drop", fix="add --eval DATA")
    settings = DeploySettings(
        plan=plan_settings(flags),
        out=flags["out"] or _default_out(model),
        targets=flags["targets"],
        eval_data=flags["eval_data"],
        max_drop=flags["max_drop"],
        dry_run=flags["dry_run"],
    )
    result = pipeline.deploy(model, settings, _listener(flags))
    if flags["as_json"]:
        _print_json(result.report)
    else:
        print_report(result.report, Console(), str(settings.out / "report.json"))
    _fail(result.failures)


@cli.command()
@MODEL
@PLANNING
@DATA
@OUT
@VERBOSITY
def plan(model: Path, **flags: Any) -> None:
    """Decide the widths and write plan.json."""
    from ompq_deploy import verbs

    out = flags["out"] or _default_out(model)
    document = verbs.write_plan(model, plan_settings(flags), out, _listener(flags))
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
    from ompq_deploy import verbs
    from ompq_deploy.report.front import front_table

    out = flags["out"] or _default_out(model)
    document = verbs.write_pareto(model, plan_settings(flags), flags["over"], flags["points"], out, _listener(flags))
    if flags["as_json"]:
        _print_json(document)
    else:
        Console().print(front_table(document))
        click.echo(f"front: {out / 'pareto.json'}, {out / 'pareto.svg'}")


@cli.command()
@click.argument("plan_path", metavar="PLAN.json", type=click.Path(path_type=Path))
@FLOAT_MODEL
@click.option(
    "--target", "targets", type=click.Choice(TARGETS), multiple=True, default=("onnx", "integer"), show_default=True
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="onnxruntime threads; 0: all cores.")
@OUT
@VERBOSITY
def quantize(plan_path: Path, **flags: Any) -> None:
    """Quantize the model of a plan.json and write its ONNX files."""
    from ompq_deploy import verbs

    out = flags["out"] or plan_path.parent
    written = verbs.write_models(plan_path, flags["model"], flags["targets"], out, _listener(flags))
    _print_written(written, flags)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(("auto", "tensorrt", "tensorrt_rtx")), default="auto", show_default=True)
@FLOAT_MODEL
@VERBOSITY
def build(folder: Path, **flags: Any) -> None:
    """Build the engine of a folder that holds an earlier run."""
    from ompq_deploy import verbs

    record = verbs.build(folder, flags["target"], flags["model"], _listener(flags))
    if flags["as_json"]:
        _print_json(record)
    else:
        click.echo(f"engine: {folder / verbs.ENGINE_FILE} ({record['file_bytes']:,} bytes)")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@FLOAT_MODEL
@VERBOSITY
def verify(folder: Path, **flags: Any) -> None:
    """Check the integer-only model of a folder against its Q/DQ model and the NumPy reference."""
    from ompq_deploy import verbs

    document = verbs.verify_folder(folder, flags["model"], _listener(flags))
    if flags["as_json"]:
        _print_json(document)
    else:
        word = "passed" if document["passed"] else "FAILED"
        click.echo(
            f"{word}: {100 * document['exact_fraction']:.4f} % equal, largest difference {document['max_lsb']} steps"
        )
    if not document["passed"]:
        raise click.exceptions.Exit(1)


@cli.command(name="eval")
@MODEL
@click.option("--eval", "eval_data", required=True, type=click.Path(path_type=Path), help="Labelled data.")
@DATA
@VERBOSITY
def eval_(model: Path, **flags: Any) -> None:
    """Top-1 and top-5 of a float, Q/DQ or integer-only ONNX model."""
    from ompq_deploy import verbs

    result = verbs.eval_model(model, flags["eval_data"], preprocess_of(flags), flags["threads"])
    if flags["as_json"]:
        _print_json(result)
    else:
        click.echo(f"n {result['n']}  top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
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
    from ompq_deploy import verbs

    facts = verbs.doctor()
    if flags["as_json"]:
        _print_json(facts)
        return
    for name, value in {**facts["packages"], **facts["backends"]}.items():
        click.echo(f"{name:16} {value}")


def main() -> None:
    """Entry point: run, and turn every error into its message and exit code."""
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
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
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was left half-written", err=True)
        code = INTERRUPTED
    except Exception as e:
        click.echo(f"error: internal error: {e!r}\n  to do: run again with -v and report the traceback", err=True)
        _trace(verbose)
        code = INTERNAL_ERROR
    sys.exit(code)


def _explain(error: OmpqError) -> None:
    click.echo(f"error: {error}", err=True)


def _trace(verbose: bool) -> None:
    if verbose:
        traceback.print_exc()


def _fail(failures: tuple[OmpqError, ...]) -> None:
    """Tell every failure; leave with the exit code of the first."""
    for failure in failures:
        _explain(failure)
    if failures:
        raise click.exceptions.Exit(failures[0].exit_code)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def _print_written(paths: list[Path], flags: dict[str, Any]) -> None:
    if flags["as_json"]:
        _print_json({"written": [str(path) for path in paths]})
    else:
        for path in paths:
            click.echo(f"wrote {path}")


def _default_out(model: Path) -> Path:
    """MODEL.ompq in the current directory."""
    return Path(f"{model.stem}.ompq")


def _listener(flags: dict[str, Any]) -> Callable[[str, float | None], None] | None:
    """Progress on standard error: one line per finished stage, and on a terminal the one under way."""
    if flags["quiet"]:
        return None
    console = Console(stderr=True)

    def tell(stage: str, seconds: float | None) -> None:
        if seconds is None:
            if console.is_terminal:
                console.print(f"  {stage} ...", end="\r", highlight=False)
        else:
            console.print(f"  {stage:10} {seconds:7.2f} s", highlight=False)

    return tell


if __name__ == "__main__":
    main()
