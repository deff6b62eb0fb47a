"""The flags of the command line, grouped as the verbs share them, and their translation into settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ompq_deploy.augment import AUGMENTATIONS
from ompq_deploy.calib import DEFAULT_PRESET, DEFAULT_SAMPLES, PRESETS, Preprocess, make_preprocess
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.program import ARITHMETICS, DYADIC
from ompq_deploy.finetune.settings import DEVICES, PRECISIONS, TrainSettings
from ompq_deploy.keywords import flag_defaults
from ompq_deploy.limits.bits import SUPPORTED, parse_bits
from ompq_deploy.limits.rules import Rules
from ompq_deploy.limits.sizes import SIZES
from ompq_deploy.metrics import GRANULARITIES, METRICS, MetricSettings, orm
from ompq_deploy.quantize import ACTIVATION_GRIDS, CALIBRATION_METHODS, EFFORTS, FISHER_USES, ROWS, QuantizeSettings
from ompq_deploy.quantize.reconstruct import LOSSES
from ompq_deploy.runtime.threads import blas_threads
from ompq_deploy.settings import SOLVERS, TARGETS, DeploySettings, PlanSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_SEED = 2**31 - 1
"""What CP-SAT takes."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _stack(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _limit_blas(context: click.Context, _: click.Parameter, threads: int) -> int:
    """BLAS on these threads until the command ends."""
    context.with_resource(blas_threads(threads))
    return threads


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the keys of a TOML file the defaults of the flags they name."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadInput(f"cannot read the configuration: {e}", where=str(path), fix="give a readable TOML file") from e
    context.default_map = flag_defaults(context.command, values, str(path), apart=("config", "verbose"))


def _finite(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuses "nan", which no comparison fails, and "inf"."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number", param=option)
    return value


class _Path(click.Path):
    """A path. An empty one, such as an unset variable of a shell gives, is none, and not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or click's refusal."""
        if str(value) == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
MODEL = click.argument("model", type=PATH)
FLOAT_MODEL = click.option("--model", type=PATH, help="The float model, where the plan's path no longer holds.")
MOVED_CALIB = click.option(
    "--calib", "--calibration-data", "--calibration-data-path", type=PATH,
    help="The plan's calibration data, where its path no longer holds.",
)  # fmt: skip
OUT = click.option("--out", type=PATH, help="Folder to write. Default: MODEL.ompq.")
TARGETS_WRITTEN = click.option(
    "--target",
    "targets",
    type=click.Choice(TARGETS),
    multiple=True,
    default=("auto",),
    show_default=True,
    help="What is written besides model.qdq.onnx; may repeat.",
)
ARITHMETIC = click.option(
    "--arithmetic",
    type=click.Choice(ARITHMETICS),
    default=DYADIC,
    show_default=True,
    help="How model.int.onnx rescales: by integers alone, or layers in float32 as TensorRT does.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    callback=_limit_blas,
    help="Threads of onnxruntime, torch and BLAS; 0: all cores granted, BLAS half of them.",
)
JUDGING = _stack(
    click.option("--eval", "eval_data", type=PATH, help="Labelled data: class folders or .npz."),
    click.option(
        "--max-drop", type=float, callback=_finite, help="Largest tolerated drop of top-1, in points (needs --eval)."
    ),
)
SWITCHES = ("-v", "--verbose", "--quiet", "--json")
"""Those of VERBOSITY that take no value."""
VERBOSITY = _stack(
    click.option("-v", "--verbose", is_flag=True, help="Log more, and show tracebacks."),
    click.option("--quiet", is_flag=True, help="No progress."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output instead of tables."),
    click.option("--config", type=PATH, is_eager=True, expose_value=False, callback=_read_config,
                 help="TOML file with defaults for these flags."),
)  # fmt: skip
DATA = _stack(
    click.option("--preprocess", type=click.Choice(tuple(PRESETS)), help="How images become the input tensor."),
    click.option("--mean", help="Per channel, comma separated, after division; overrides the preset."),
    click.option("--std", help="Per channel, comma separated, after division; overrides the preset."),
    click.option("--bgr/--rgb", default=None, help="Channel order of the input tensor."),
    click.option("--layout", type=click.Choice(("NCHW", "NHWC"), case_sensitive=False), help="Layout of the input."),
    THREADS,
)  # fmt: skip
PLANNING = _stack(
    click.option("--size", help="The budget: 6.7MB, 6.4MiB, 900000B or 60% of the float file."),
    click.option("--size-of", type=click.Choice(SIZES), default="file", show_default=True,
                 help="What the budget counts."),
    click.option("--bits", default="4,8", show_default=True, help="Weight widths allowed: 4,8 or 2-8."),
    click.option("--activation-bits", type=click.IntRange(8, 8), default=8, show_default=True,
                 help="Activation width; 8 is the one the exporters write."),
    click.option("--bops", help="Budget of bit operations, MACs x weight bits x activation bits: 75G."),
    click.option("--activation-memory", help="Budget of activations alive at once, per sample: 4MB."),
    click.option("--latency", help="Budget of time per run: 2ms (needs --latency-table)."),
    click.option("--latency-table", type=PATH,
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
    click.option("--input-shape", "input_shapes", multiple=True, metavar="[INPUT:]NxCxHxW",
                 help="Sizes for a model that leaves them open: Nx3x640x640, N for what stays open; may repeat."),
    click.option("--calib", "--calibration-data", "--calibration-data-path", type=PATH,
                 help="Images (a directory), .npy or .npz. Default: the bundled photographs."),
    click.option("--samples", type=int, show_default=f"{DEFAULT_SAMPLES}, and up to {ROWS} to round weights by",
                 help="Calibration samples used."),
    click.option("--metric", type=click.Choice(METRICS), default="auto", show_default=True, help="Layer sensitivity."),
    click.option("--orm-estimator", type=click.Choice(orm.ESTIMATORS), default="debiased", show_default=True),
    click.option("--orm-form", type=click.Choice(orm.FORMS), default="concave", show_default=True,
                 help="linear: Eq. 10 as published."),
    click.option("--orm-function", type=click.Choice(tuple(orm.FUNCTIONS)), default="exp", show_default=True,
                 help="Decreasing function of Eq. 9: e^-x, -log x, -x, -x^3, -e^x."),
    click.option("--orm-granularity", type=click.Choice(GRANULARITIES), default="layer", show_default=True,
                 help="What shares one importance."),
    click.option("--orm-beta", type=float, callback=_finite, default=orm.DEFAULT_BETA, show_default=True,
                 help="Eq. 9's beta."),
    click.option("--effort", type=click.Choice(EFFORTS), default="default", show_default=True,
                 help="quick: round to nearest. default: round for the least error of every layer's output. "
                      "extensive: learn on from there, block by block; minutes, and needs torch."),
    click.option("--fisher", type=click.Choice(FISHER_USES), default="auto", show_default=True,
                 help="Weight rounding errors by what they do to the outputs, but under quick; auto: where torch is "
                      "and a layer has fewer than 8 bits."),
    click.option("--augment", type=click.Choice(AUGMENTATIONS), default="auto", show_default=True,
                 help="How few images become more to round by; auto: flip+crop for images, none for arrays."),
    click.option("--reconstruct-loss", type=click.Choice(LOSSES), default="squared", show_default=True,
                 help="Of extensive. fisher: weight a block's output by what the network's output makes of it."),
    click.option("--reconstruct-drop", type=click.FloatRange(0, 1, max_open=True), default=0.5, show_default=True,
                 help="Of extensive: share of activations left unrounded while learning (QDrop)."),
    click.option("--calibration-method", type=click.Choice(CALIBRATION_METHODS), default="mse", show_default=True,
                 help="How activation ranges become scales."),
    click.option("--activation-grid", type=click.Choice(ACTIVATION_GRIDS), default="asymmetric", show_default=True,
                 help="asymmetric: uint8 with the zero-point that fits. TensorRT's graph always gets symmetric grids."),
    click.option("--bias-correction/--no-bias-correction", default=True, show_default=True),
    click.option("--equalize/--no-equalize", default=False, show_default=True,
                 help="Balance weight ranges across layers first."),
    click.option("--smooth/--no-smooth", default=True, show_default=True,
                 help="Multiply the channels of very uneven activations in front of the layers that read them."),
    click.option("--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True),
)  # fmt: skip


def _training(flag: str, meaning: str, choices: tuple[str, ...] | None = None) -> Decorator:
    """A flag whose default is that of the training setting of its name."""
    default = getattr(TrainSettings, flag.removeprefix("--").replace("-", "_"))
    kind = click.Choice(choices) if choices else type(default)
    return click.option(flag, type=kind, default=default, show_default=True, help=meaning)


TRAINING = _stack(
    _training("--epochs", "Passes over the training data."),
    _training("--batch", "Samples per step, all processes together."),
    _training("--lr", "Learning rate after the warm-up."),
    _training("--momentum", "Of SGD."),
    _training("--weight-decay", "Of SGD, on weights alone."),
    _training("--warmup", "Share of the steps over which the rate rises; a cosine to zero follows."),
    _training("--distill", "Share of the loss that compares with the float network; 1 reads no labels."),
    _training("--augment", "auto: flip+crop for images, none for arrays.", AUGMENTATIONS),
    _training("--hold-out", "Share of the training data that decides which epoch is kept; 0 keeps the last."),
    _training("--precision", "Of the training steps; auto: 16 bits on a GPU.", PRECISIONS),
    _training("--device", "auto: a GPU where torch finds one.", DEVICES),
    _training("--checkpoint-every", "Steps between checkpoints."),
    _training("--seed", "Of the order, the augmentation, and which samples are held out."),
)


def train_settings(flags: dict[str, Any]) -> TrainSettings:
    """The settings that the TRAINING flags stand for."""
    return TrainSettings(**{field.name: flags[field.name] for field in fields(TrainSettings)})


def plan_settings(flags: dict[str, Any]) -> PlanSettings:
    """The settings that PLANNING and DATA flags stand for. Raises BadInput where no budget is given."""
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
        input_shapes=flags["input_shapes"],
        calib=flags["calib"],
        preprocess=preprocess_of(flags),
        samples=DEFAULT_SAMPLES if flags["samples"] is None else flags["samples"],
        rounding_samples=ROWS if flags["samples"] is None else 0,
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
            fisher=flags["fisher"],
            augment=flags["augment"],
            calibration_method=flags["calibration_method"],
            activation_grid=flags["activation_grid"],
            reconstruct_loss=flags["reconstruct_loss"],
            reconstruct_drop=flags["reconstruct_drop"],
            bias_correction=flags["bias_correction"],
            equalize=flags["equalize"],
            smooth=flags["smooth"],
        ),
        seed=flags["seed"],
        threads=flags["threads"],
    )


def deploy_settings(flags: dict[str, Any]) -> DeploySettings:
    """The settings that all flags of the whole job stand for."""
    check_judging(flags)
    return DeploySettings(
        plan=plan_settings(flags),
        out=flags["out"] or default_out(flags["model"]),
        targets=flags["targets"],
        arithmetic=flags["arithmetic"],
        eval_data=flags["eval_data"],
        max_drop=flags["max_drop"],
        dry_run=flags["dry_run"],
    )


def default_out(model: Path) -> Path:
    """MODEL.ompq in the current directory."""
    return Path(f"{model.stem}.ompq")


def check_judging(flags: dict[str, Any]) -> None:
    """Raise BadInput for a gate without the data it judges on."""
    if flags["max_drop"] is not None and flags["eval_data"] is None:
        raise BadInput("--max-drop needs labelled data", where="--max-drop", fix="add --eval DATA")


def preprocess_of(flags: dict[str, Any]) -> Preprocess | None:
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
