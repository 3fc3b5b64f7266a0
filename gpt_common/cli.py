"""Command lines: dataclasses in, dataclasses out; every mistake is one line that names the nearest valid choice."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from gpt_common.config import RunConfig, from_dict, load_preset, load_toml, preset_names
from gpt_common.errors import UserError, nearest

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a GPT. Without --preset: `stories` on a GPU, `stories-cpu` on a CPU."""

    preset: str | None = None
    """Start from this preset."""
    config: Path | None = None
    """Start from this TOML file (over the preset, if both are given)."""
    out: Path | None = None
    """Folder of the run; runs/NAME if not given."""
    resume: Path | None = None
    """Continue a run: its folder (takes its latest checkpoint), or one of its checkpoints."""
    init_from: Path | None = None
    """Fine-tune: take weights, and the shape of the model, from this run or checkpoint; start at step 0."""
    stop_at: int | None = None
    """Save and end after this step of a schedule that still spans max_steps."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """The configuration; every field is a flag."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How tokens are chosen."""

    max_new_tokens: int = 500
    """Tokens to generate per sample."""
    temperature: float = 0.8
    """1 samples from the model as it is, lower is safer, 0 always takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens only; 0 means all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together reach this probability."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}: it must not be negative")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: it must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class SampleCommand(SampleSettings):
    """Continue a text with a trained model, printed as it is made. CKPT is a checkpoint or a run (then its best)."""

    prompt: str | None = None
    """Text to continue; none: the beginning that belongs to the dataset."""
    num_samples: int = 1
    """How many continuations."""
    seed: int = 1337
    """Key of the random numbers; sample n depends on seed and n alone."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto: bfloat16 on MLX GPU and CUDA, float32 on MPS and CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise UserError(f"num_samples is {self.num_samples}: it must be at least 1")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """`argv` as an instance of a dataclass (or a union of dataclasses: subcommands); fields are flags, with - or _.

    Args:
        kind: the dataclass; its docstring is the description, its fields' docstrings the help.
        default: values of the flags that are not given.

    Raises:
        UserError: unknown flag, wrong type, value that is no choice; one line.
        SystemExit: 0 after `--help`.
    """
    import tyro

    with _one_line_errors(kind):
        flat = tyro.conf.OmitArgPrefixes[Annotated[kind, tyro.conf.arg(name="")]]  # type: ignore[valid-type]
        extra: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(flat, args=list(argv), prog=prog, console_outputs=True, compact_help=False, **extra)  # type: ignore[no-any-return]


def answer_help(kind: type[Any], prog: str) -> None:
    """Print the help and end if the command line asks for it; called before a framework is imported (< 0.5 s)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        parse(kind, ["--help"], prog=prog)


def parse_training(argv: Sequence[str], *, prog: str, has_gpu: bool) -> tuple[TrainCommand, str | None]:
    """The training command line, with defaults < preset < TOML file < flags.

    With `--resume` the base is the configuration of the checkpoint, and a preset or TOML file is refused.

    Args:
        has_gpu: decides between the presets `stories` and `stories-cpu` if nothing else was asked for.

    Returns:
        The command, and which preset was taken and why if the command line does not say.
    """
    start, why = _starting_point(argv), None
    if start.resume is not None:
        if start.preset or start.config or start.init_from or start.out:
            raise UserError(
                "--resume takes configuration and folder from the run: leave out --preset, --config, --init-from, --out"
            )
        from gpt_common.training.checkpoint import find_checkpoint, read_state

        base = from_dict(read_state(find_checkpoint(start.resume, prefer="latest"))["config"])
    else:
        if not start.preset and not start.config:
            start = dataclasses.replace(start, preset="stories" if has_gpu else "stories-cpu")
            why = f"preset {start.preset}, because there is {'a' if has_gpu else 'no'} GPU (--preset chooses another)"
        base = load_preset(start.preset) if start.preset else RunConfig()
        if start.config is not None:
            base = load_toml(start.config, base)
        if start.init_from is not None:
            base = _with_model_of(start.init_from, base)
    return parse(TrainCommand, argv, prog=prog, default=dataclasses.replace(start, run=base)), why


def parse_sampling(argv: Sequence[str], *, prog: str) -> tuple[Path, SampleCommand]:
    """The sampling command line: the checkpoint or run folder, then flags."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        raise UserError(f"which run or checkpoint? {prog} runs/NAME --prompt TEXT")
    return Path(words[0]), parse(SampleCommand, words[1:], prog=f"{prog} CKPT")


def _starting_point(argv: Sequence[str]) -> TrainCommand:
    """The flags that decide what the other flags' defaults are."""
    found: dict[str, str] = {}
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and key in ("preset", "config", "resume", "init_from", "out"):
            if not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                raise UserError(f"{name} needs a value" + (f": {', '.join(preset_names())}" if key == "preset" else ""))
            found[key] = value if equals else argv[i + 1]
    paths = {key: Path(value) for key, value in found.items() if key != "preset"}
    return TrainCommand(preset=found.get("preset"), **paths)  # type: ignore[arg-type]


def _with_model_of(source: Path, base: RunConfig) -> RunConfig:
    """`base` with the model of a checkpoint, except for what does not change its shape."""
    from gpt_common.training.checkpoint import find_checkpoint, read_state

    model = from_dict(read_state(find_checkpoint(source, prefer="best"))["config"]).model
    block_size = min(base.model.block_size, model.block_size)
    model = dataclasses.replace(
        model, dropout=base.model.dropout, dropout_rng=base.model.dropout_rng, block_size=block_size
    )
    return dataclasses.replace(base, model=model)


def flag_names(kind: type[Any]) -> list[str]:
    """Every `--flag` of a dataclass, nested dataclasses flattened."""
    names = []
    for field in dataclasses.fields(kind):
        if field.default_factory is RunConfig:
            for section in dataclasses.fields(RunConfig):
                names += flag_names(section.default_factory)  # type: ignore[arg-type]
        else:
            names.append("--" + field.name.replace("_", "-"))
    return names


@contextlib.contextmanager
def _one_line_errors(kind: type[Any]) -> Iterator[None]:
    """Turn tyro's boxed error messages into a UserError."""

    def reject(event: Any) -> None:
        name = type(event).__name__
        flag = "" if getattr(event, "argument", None) is None else str(event.argument.lowered.name_or_flags[-1])
        if name == "UnrecognizedArgs":
            word = event.tokens[0]
            known = flag_names(kind) if dataclasses.is_dataclass(kind) else []
            hint = (
                nearest(word.partition("=")[0].replace("_", "-"), known)
                if known and word.startswith("-")
                else "see --help"
            )
            raise UserError(f"unknown argument '{word}': {hint if len(hint) < 200 else 'see --help'}")
        if name == "InvalidChoice":
            raise UserError(f"{flag} '{event.value}' is not a choice: {nearest(event.value, event.choices)}")
        if name == "BadValue":
            raise UserError(f"{flag} needs a value; see --help")
        if name == "InstantiationFailure":
            raise UserError(" ".join(f"{flag} {event.message}".split()))
        if name in ("MissingArgs", "MissingSubcommand"):
            raise UserError("something is missing on the command line: see --help")

    try:
        # Private in tyro 1.0 (the version range in pyproject.toml is narrow for this reason). Without it
        # tyro prints its own box, with the same exit code.
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return
    with on_parse_error(reject):
        yield
