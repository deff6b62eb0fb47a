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

from ompq_deploy.bits import SUPPORTED
from ompq_deploy.calib import DEFAULT_PRESET, DEFAULT_SAMPLES, PRESETS, Preprocess, make_preprocess
from ompq_deploy.errors import BadInput, OmpqError
from ompq_deploy.metrics import GRANULARITIES, METRICS, orm
from ompq_deploy.quantize import CALIBRATION_METHODS, EFFORTS
from ompq_deploy.settings import SOLVERS, TARGETS
from ompq_deploy.sizes import SIZES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INTERNAL_ERROR = 70
INTERRUPTED = 130
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _DefaultToDeploy(click.Group):
    """`ompq-deploy MODEL.onnx ...` means `ompq-deploy deploy MODEL.onnx ...`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args.insert(0, "deploy")
        return super().parse_args(context, args)


def _stack(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the keys of a TOML file the defaults of the flags they name."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise BadInput(f"cannot read the configuration: {e}", where=str(path), fix="give a readable TOML file") from e
    known = {parameter.name for parameter in context.command.params}
    settings = {key.replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(set(settings) - {name for name in known if name}):
        raise BadInput(
            f"unknown keys: {', '.join(unknown)}", where=str(path), fix="name the flags of this command, without dashes"
        )
    context.default_map = {**(context.default_map or {}), **settings}


MODEL = click.argument("model", type=click.Path(path_type=Path))
FLOAT_MODEL = click.option(
    "--model", type=click.Path(path_type=Path), help="The float model, where the plan's path no longer holds."
)
OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder to write. Default: MODEL.ompq.")
VERBOSITY = _stack(
    click.option("-v", "--verbose", is_flag=True, help="Log more, and show tracebacks."),
    click.option("--quiet", is_flag=True, help="No progress."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output instead of tables."),
    click.option("--config", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_read_config,
                 help="TOML file with defaults for these flags."),
)  # fmt: skip
DATA = _stack(
    click.option("--preprocess", type=click.Choice(tuple(PRESETS)), help="How images become the input tensor."),
    click.option("--mean", help="Per channel, comma separated, after division; overrides the preset."),
    click.option("--std", help="Per channel, comma separated, after division; overrides the preset."),
    click.option("--bgr/--rgb", default=None, help="Channel order of the input tensor."),
    click.option("--layout", type=click.Choice(("NCHW", "NHWC"), case_sensitive=False), help="Layout of the input."),
    click.option("--threads", type=click.IntRange(min=0), default=0, help="onnxruntime threads; 0: all cores."),
)  # fmt: skip
PLANNING = _stack(
    click.option("--size", help="The budget: 6.7MB, 6.4MiB, 900000B or 60% of the float file."),
    click.option("--size-of", type=click.Choice(SIZES), default="file", show_default=True,
                 help="What the budget counts."),
    click.option("--bits", default="4,8", show_default=True, help="Weight widths allowed: 4,8 or 2-8."),
    click.option("--bops", help="Budget of bit operations, MACs x weight bits x activation bits: 75G."),
    click.option("--activation-memory", help="Budget of activations alive at once, per sample: 4MB."),
    click.option("--latency", help="Budget of time per run: 2ms (needs --latency-table)."),
    click.option("--latency-table", type=click.Path(path_type=Path),
                 help="Nanoseconds per layer and width, .json or .csv."),
    click.option("--solver", type=click.Choice(SOLVERS), default="cp-sat", show_default=True,
                 help="cp-sat and dp are exact; the others are the published methods, for comparison."),
    click.option("--pin", multiple=True, metavar="PATTERN=BITS",
                 help="Fix the width of a layer, or of all whose name a regular expression matches; may repeat."),
    click.option("--exclude", "--nodes-to-exclude", multiple=True, metavar="PATTERN",
                 help="Keep these layers at 8 bits (they are not left in float); may repeat."),
    click.option("--first-last-bits", type=click.IntRange(SUPPORTED[0], SUPPORTED[-1]),
                 help="Fix the first and the last layer; 8 is the rule of quantization-aware training."),
    click.option("--tie", multiple=True, metavar="PATTERN",
                 help="Give all layers that match one width; may repeat."),
    click.option("--tie-residual", is_flag=True, help="Give a downsample convolution the width of its block's last."),
    click.option("--calib", "--calibration-data", "--calibration-data-path", type=click.Path(path_type=Path),
                 help="Images (a directory), .npy or .npz. Default: the bundled photographs."),
    click.option("--samples", type=int, default=DEFAULT_SAMPLES, show_default=True, help="Calibration samples used."),
    click.option("--metric", type=click.Choice(METRICS), default="auto", show_default=True, help="Layer sensitivity."),
    click.option("--orm-estimator", type=click.Choice(orm.ESTIMATORS), default="debiased", show_default=True),
    click.option("--orm-form", type=click.Choice(orm.FORMS), default="concave", show_default=True,
                 help="linear: Eq. 10 as published."),
    click.option("--orm-function", type=click.Choice(tuple(orm.FUNCTIONS)), default="exp", show_default=True,
                 help="Decreasing function of Eq. 9: e^-x, -log x, -x, -x^3, -e^x."),
    click.option("--orm-granularity", type=click.Choice(GRANULARITIES), default="layer", show_default=True,
                 help="What shares one importance."),
    click.option("--orm-beta", type=float, default=orm.DEFAULT_BETA, show_default=True, help="Eq. 9's beta."),
    click.option("--effort", type=click.Choice(EFFORTS), default="default", show_default=True,
                 help="quick: round to nearest. default: round for the least error of every layer's output."),
    click.option("--calibration-method", type=click.Choice(CALIBRATION_METHODS), default="mse", show_default=True,
                 help="How activation ranges become scales."),
    click.option("--bias-correction/--no-bias-correction", default=True, show_default=True),
    click.option("--equalize/--no-equalize", default=False, show_default=True,
                 help="Balance weight ranges across layers first."),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip


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
        plan=_plan_settings(flags),
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
    document = verbs.write_plan(model, _plan_settings(flags), out, _listener(flags))
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
    document = verbs.write_pareto(model, _plan_settings(flags), flags["over"], flags["points"], out, _listener(flags))
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

    result = verbs.eval_model(model, flags["eval_data"], _preprocess(flags), flags["threads"])
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


def _plan_settings(flags: dict[str, Any]) -> Any:
    from ompq_deploy.bits import parse_bits
    from ompq_deploy.metrics import MetricSettings
    from ompq_deploy.quantize import QuantizeSettings
    from ompq_deploy.rules import Rules
    from ompq_deploy.settings import PlanSettings

    if not any(flags.get(name) for name in ("size", "bops", "activation_memory", "latency", "over")):
        raise BadInput(
            "there is no budget to keep",
            where="--size",
            fix="give --size 60%, or one of --bops, --activation-memory and --latency",
        )

    return PlanSettings(
        size=flags["size"],
        size_of=flags["size_of"],
        bops=flags["bops"],
        activation_memory=flags["activation_memory"],
        latency=flags["latency"],
        latency_table=flags["latency_table"],
        solver=flags["solver"],
        rules=Rules(
            pins=flags["pin"],
            exclude=flags["exclude"],
            first_last_bits=flags["first_last_bits"],
            ties=flags["tie"],
            tie_residual=flags["tie_residual"],
        ),
        bits=parse_bits(flags["bits"]),
        calib=flags["calib"],
        preprocess=_preprocess(flags),
        samples=flags["samples"],
        metric=MetricSettings(
            name=flags["metric"],
            estimator=flags["orm_estimator"],
            form=flags["orm_form"],
            function=flags["orm_function"],
            granularity=flags["orm_granularity"],
            beta=flags["orm_beta"],
            seed=flags["seed"],
        ),
        quantize=QuantizeSettings(
            effort=flags["effort"],
            calibration_method=flags["calibration_method"],
            bias_correction=flags["bias_correction"],
            equalize=flags["equalize"],
        ),
        seed=flags["seed"],
        threads=flags["threads"],
    )


def _preprocess(flags: dict[str, Any]) -> Preprocess | None:
    """The preprocessing the flags ask for, or None where they leave it to the data."""
    mean, std = _numbers(flags["mean"], "--mean"), _numbers(flags["std"], "--std")
    if flags["preprocess"] is None and mean is std is flags["bgr"] is flags["layout"] is None:
        return None
    return make_preprocess(
        flags["preprocess"] or DEFAULT_PRESET, mean=mean, std=std, bgr=flags["bgr"], layout=flags["layout"]
    )


def _numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise BadInput(f"{text!r} is not a list of numbers", where=flag, fix="write it like 0.485,0.456,0.406") from e


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
