"""What the commands of the twins are told: one dataclass each; every field is a flag, its docstring the help."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gpt_common.config import RunConfig
from gpt_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a GPT. Without --preset: `stories` on a GPU, `stories-cpu` on a CPU."""

    shows_configuration: ClassVar[bool] = True
    seldom: ClassVar[tuple[str, ...]] = (
        *("stop_at", "force", "let_sleep", "power"),
        *("rank_timeout", "listen", "ranks", "join"),
        *("parallel", "shard_optimizer", "measure_efficiency"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--preset shakespeare-char-cpu --max-steps 500",
        "--dataset NAME --name FIRST",
        "--resume runs/FIRST --max-steps 4000",
        "--init-from runs/FIRST --dataset OTHER",
    )
    preset: str | None = None
    """Start from this preset."""
    config: Path | None = None
    """Start from this TOML file (over the preset, if both are given)."""
    name: str | None = None
    """The run's name; if not given, preset, dataset or base run make one."""
    out: Path | None = None
    """Folder of the run, instead of runs/NAME."""
    resume: Path | None = None
    """Continue a run: its folder (takes its latest checkpoint), or one of its checkpoints; alone: the newest run."""
    init_from: Path | None = None
    """Fine-tune the weights of this run or checkpoint; the model has its shape, and steps begin at 0."""
    stop_at: int | None = None
    """Save and end after this step of a schedule that still spans max_steps."""
    force: bool = False
    """Start even if the plan says that the run does not fit into memory."""
    let_sleep: bool = False
    """Let a Mac fall asleep during the run; otherwise it is kept awake while its lid is open."""
    power: bool = False
    """Record watts, GPU usage and energy, from powermetrics, macmon, zeus or NVML."""
    rank_timeout: float = 20.0
    """Of several ranks: seconds of silence after which one is given up; 0: never."""
    listen: str | None = None
    """HOST:PORT of this machine: train with other processes, of either twin, that --join this one."""
    ranks: int | None = None
    """With --listen: how many processes train together, this one included; if not given, 2."""
    join: str | None = None
    """HOST:PORT: train with the process that was started there with --listen, and with the same flags."""
    parallel: Literal["flat", "ddp", "fsdp"] = "flat"
    """Of ranks: gradients in one flat sum; PyTorch's DDP or FSDP2, for CUDA (run over gloo, not measured on NCCL)."""
    shard_optimizer: bool = False
    """Of ranks: each keeps the optimiser's state of its share of the parameters alone, and updates those (ZeRO-1)."""
    measure_efficiency: bool = False
    """Of ranks: before training time some steps of rank 0 alone, and log how much of that each is worth."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """The configuration; every field is a flag."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank_timeout < math.inf:
            raise UserError(f"rank_timeout is {self.rank_timeout:g} s: 0 (never) or more")
        if self.listen is not None and self.join is not None:
            raise UserError("one process has --listen and all others --join: this one has both")
        if self.ranks is not None and (self.listen is None or self.ranks < 2):
            raise UserError(f"ranks is {self.ranks}: 2 or more, with --listen (a launcher has a number of its own)")


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
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: it must be a number, and not negative")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: it must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class SampleCommand(SampleSettings):
    """Continue a text with a trained model, printed as it is made. CKPT is a checkpoint or a run (then its best)."""

    examples: ClassVar[tuple[str, ...]] = (
        '--prompt "The frog" --num-samples 3',
        "--chat",
        '--prompt "It was" --choices " cold, sunny"',
        "--json-schema schema.json",
    )
    prompt: str | None = None
    """Text to continue; none: the beginning that belongs to the dataset."""
    num_samples: int = 1
    """How many continuations."""
    seed: int = 1337
    """Key of the random numbers; sample n depends on seed and n alone."""
    chat: bool = False
    """The prompt is a turn of a conversation, and the answer alone is printed; without a prompt, as --interactive."""
    interactive: bool = False
    """Ask at the terminal, line by line: /help there lists what can be done."""
    shots: Path | None = None
    """Solved examples before the prompt: JSON lines with prompt and completion."""
    choices: str | None = None
    """Write nothing, and tell how likely each of these is behind the prompt: A,B,C."""
    json_schema: Path | None = None
    """Hold the continuation to JSON that fits the schema in this file (extra `structured`)."""
    json_whitespace: bool = False
    """Let the JSON have blanks and line ends; otherwise it has none between its parts."""
    regex: str | None = None
    """Hold it to this regular expression, from end to end."""
    grammar: Path | None = None
    """Hold it to the grammar in this file, in Lark's notation."""
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
        named = {"--json-schema": self.json_schema, "--regex": self.regex, "--grammar": self.grammar}
        forms = [flag for flag, value in named.items() if value is not None]
        if len(forms) > 1:
            raise UserError(f"{' and '.join(forms)} are given: a text is held to one form")
        if self.choices is not None and (self.interactive or forms):
            raise UserError("--choices writes nothing: leave --interactive and forms out")
        if self.interactive and self.num_samples > 1:
            raise UserError("--num-samples is for a text that is written at once, not for --interactive")
        if self.json_whitespace and self.json_schema is None:
            raise UserError("--json-whitespace is for --json-schema")
