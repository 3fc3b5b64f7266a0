"""The configuration of a run: frozen dataclasses, presets, TOML files.

Precedence: defaults < preset < TOML file < command line (`gpt_common.cli`). Field names are unique over all
four tables, so every field is a flag of its own and a TOML file may not put one in the wrong table.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gpt_common.errors import UserError, nearest

PRESETS_FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the network: the GPT-2 family."""

    vocab_size: int = 0
    """Rows of the token embedding; 0 takes the vocabulary of the dataset's tokenizer."""
    block_size: int = 256
    """Longest context, in tokens."""
    n_layer: int = 4
    """Number of transformer blocks."""
    n_head: int = 4
    """Attention heads per block; divides n_embd."""
    n_embd: int = 128
    """Width of the residual stream."""
    bias: bool = False
    """Biases in linear layers and layer norms (GPT-2 has them, nanoGPT's small configurations do not)."""
    feed_forward: Literal["gelu", "gelu_tanh"] = "gelu"
    """Kind of feed-forward layer: exact (erf) GELU as in nanoGPT, or its tanh form as in GPT-2's weights."""
    tied_head: bool = True
    """The output layer shares the token embedding's weight."""
    head_bias: bool = False
    """Bias in an untied output layer."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norms."""
    dropout: float = 0.0
    """Share of activations dropped in training: embeddings, attention weights, both outputs of a block."""
    dropout_rng: Literal["native", "shared"] = "native"
    """Dropout masks: the framework's own, or threefry bits that are equal in both twins."""

    def __post_init__(self) -> None:
        for name in ("block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.vocab_size < 0:
            raise UserError(f"vocab_size is {self.vocab_size}: it must be at least 1, or 0 to follow the tokenizer")
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            closest = min(divisors, key=lambda h: abs(h - self.n_head))
            raise UserError(f"n_head {self.n_head} does not divide n_embd {self.n_embd}: try n_head {closest}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if not self.norm_eps > 0:
            raise UserError(f"norm_eps is {self.norm_eps}: it must be above 0")
        if self.tied_head and self.head_bias:
            raise UserError("head_bias needs an untied head: add --no-tied-head, or leave out --head-bias")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end of a cosine or warmup-stable-decay schedule."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine as in nanoGPT, warmup-stable-decay, or constant after warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_steps: int = 0
    """Step at which a cosine schedule reaches min_lr; 0 means max_steps."""
    decay_fraction: float = 0.2
    """Share of the steps at the end in which a wsd schedule decays linearly to min_lr."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.99
    """Decay rate of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("min_lr", "warmup_steps", "decay_steps", "weight_decay", "grad_clip"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"decay_fraction is {self.decay_fraction}: it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which corpus, and where prepared corpora lie."""

    dataset: str = "stories"
    """Built-in `stories`, or the name of a corpus that `python -m gpt_common.data prepare` made."""
    data_dir: str = "data"
    """Folder of prepared corpora."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: steps, precision, what is logged, evaluated, saved and sampled, and when."""

    max_steps: int = 1000
    """Steps of the whole schedule."""
    batch_size: int = 12
    """Sequences per micro-step."""
    grad_accum_steps: int = 1
    """Micro-steps whose mean gradient makes one step."""
    seed: int = 1337
    """Key of initial weights, batch order, dropout and samples."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; master weights are float32. auto: bfloat16 on MLX GPU and CUDA, float32 on MPS and CPU."""
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto"
    """Where to compute; auto takes the fastest present. gpu: whatever GPU the framework has."""
    compile: bool = False
    """Compile the step. MLX on a GPU always does."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    log_interval: int = 10
    """Steps between two log lines."""
    eval_interval: int = 250
    """Steps between two evaluations; 0 evaluates at the end only."""
    eval_batches: int = 20
    """Batches of batch_size sequences in an evaluation, the same ones every time."""
    checkpoint_interval: int = 250
    """Steps between two checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk; the best one always does."""
    prompts: tuple[str, ...] = ()
    """Texts that are continued before, during and after training; none given: the dataset's own prompt."""
    sample_interval: int = 0
    """Steps between two samplings of the prompts; 0 samples before and after training only."""
    sample_tokens: int = 200
    """Tokens per sampled continuation."""
    sample_temperature: float = 0.8
    """Temperature of the sampled continuations."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Optional trackers to log to, besides metrics.jsonl."""
    health_gates: bool = True
    """Check before step 1 that learning is possible."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "grad_accum_steps", "log_interval", "eval_batches", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("seed", "eval_interval", "checkpoint_interval", "sample_interval", "sample_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        if not self.sample_temperature >= 0:
            raise UserError(f"sample_temperature is {self.sample_temperature}: it must not be negative")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def with_vocabulary(self, size: int) -> RunConfig:
        """This configuration with `vocab_size` settled by a tokenizer of `size` entries.

        Raises:
            UserError: the configuration names a smaller vocabulary than the tokenizer has.
        """
        if self.model.vocab_size == 0:
            return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=size))
        if self.model.vocab_size < size:
            raise UserError(f"vocab_size {self.model.vocab_size} is smaller than the tokenizer's {size}: set it to 0")
        return self


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_preset(name: str) -> RunConfig:
    """The preset called `name`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    path = PRESETS_FOLDER / f"{name}.toml"
    if name not in preset_names():
        raise UserError(f"no preset '{name}': {nearest(name, preset_names())}")
    return load_toml(path)


def load_toml(path: Path, base: RunConfig | None = None) -> RunConfig:
    """The configuration in a TOML file, over `base` (the defaults if None).

    Raises:
        UserError: unreadable file, unknown table or key, wrong type, impossible combination.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read configuration {path}: {error}") from None
    return from_dict(tables, base=base, where=str(path))


def from_dict(tables: dict[str, Any], *, base: RunConfig | None = None, where: str = "configuration") -> RunConfig:
    """A configuration from nested dictionaries as `to_dict` makes them, over `base`.

    Raises:
        UserError: unknown table or key, wrong type, impossible combination; says where.
    """
    config = base or RunConfig()
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)}
    homes = {f.name: name for name, section in sections.items() for f in dataclasses.fields(section)}
    for table, values in tables.items():
        if table not in sections:
            raise UserError(f"{where}: unknown table [{table}]: {nearest(table, sections)}")
        if not isinstance(values, dict):
            raise UserError(f"{where}: [{table}] must be a table")
        types = get_type_hints(type(sections[table]))
        for key, value in values.items():
            if key not in types:
                home = f"it belongs in [{homes[key]}]" if key in homes else nearest(key, types)
                raise UserError(f"{where}: unknown key '{key}' in [{table}]: {home}")
            values = {**values, key: _typed(value, types[key], f"{where}: {key} in [{table}]")}
        try:
            sections[table] = dataclasses.replace(sections[table], **values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return RunConfig(**sections)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as the field type `kind`, or a UserError that starts with `where`."""
    # Of values from other people's files the whole repr may be endless.
    shown = reprlib.repr(value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            word = value if isinstance(value, str) else ""
            raise UserError(f"{where}: {shown} is not a choice: {nearest(word, get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {shown}")
        return tuple(_typed(item, get_args(kind)[0], where) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{where}: expected {kind.__name__}, found {shown}")
    return value


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Nested dictionaries of plain values, for JSON and TOML; `from_dict` reverses it."""
    return {
        section.name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(getattr(config, section.name)).items()
        }
        for section in dataclasses.fields(config)
    }


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML; `load_toml` reads it back to an equal one."""
    lines = []
    for table, values in to_dict(config).items():
        lines.append(f"[{table}]")
        # For strings, numbers, booleans and lists of them JSON's notation is TOML's, but for one character.
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
            for key, value in values.items()
        ]
        lines.append("")
    return "\n".join(lines)


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations differ: `{"model.n_layer": (old, new)}`."""
    before, after = to_dict(old), to_dict(new)
    return {
        f"{table}.{key}": (value, after[table][key])
        for table, values in before.items()
        for key, value in values.items()
        if value != after[table][key]
    }
