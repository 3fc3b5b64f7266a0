"""The configuration of a run: frozen dataclasses, presets, TOML files.

Precedence: defaults < preset < TOML file < command line (`gpt_common.cli`). Field names are unique over all
five tables, so every field is a flag of its own and a TOML file may not put one in the wrong table.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.errors import UserError, nearest
from gpt_common.files import read_bytes

Device = Literal["cpu", "gpu", "mps", "cuda"]
"""Where a twin computes: MLX calls its GPU "gpu", whoever made it."""
DType = Literal["float32", "bfloat16"]
"""In which it computes."""
PRESETS_FOLDER = Path(__file__).parent / "presets"
FINE_TUNING = "fine_tuning"
"""What a preset says of itself above its tables, where it is for a run that begins with --init-from."""
LARGEST_CONFIGURATION = 1 << 16
"""Bytes of a TOML file."""
MOST_LAYERS, LARGEST_NUMBER = 10_000, (1 << 63) - 1
"""In a file: TOML knows no larger numbers, and every layer costs time before it is refused for another reason."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the network. Families are data: GPT-2, Llama, DeepSeek and CustomLLM are choices of these fields."""

    vocab_size: int = 0
    """Rows of the token embedding; 0 takes the vocabulary of the dataset's tokenizer."""
    block_size: int = 256
    """Longest context, in tokens."""
    n_layer: int = 4
    """Number of transformer blocks."""
    n_head: int = 4
    """Attention heads per block; divides n_embd unless head_size is given."""
    n_embd: int = 128
    """Width of the residual stream."""
    bias: bool = False
    """Biases in linear layers and layer norms (GPT-2 has them, nanoGPT's small configurations do not)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of normalisation: GPT-2's, or Llama's without a mean."""
    norm_eps: float = 1e-5
    """Added to the variance, or to the mean square, in norms."""
    final_norm: bool = True
    """Normalise before the output layer (CustomLLM does not)."""
    positions: Literal["learned", "rope", "both"] = "learned"
    """How a token knows where it is: an embedding per position, rotated queries and keys, or both."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_layout: Literal["halves", "interleaved"] = "halves"
    """Which two numbers rotate together: i and i + half (Llama), or 2i and 2i + 1 (DeepSeek)."""
    attention: Literal["multi_head", "grouped_query", "latent", "latent_per_head"] = "multi_head"
    """Kind of attention: one projection for q, k, v; fewer key heads; DeepSeek's latents; CustomLLM's latents."""
    attention_bias: bool = False
    """Biases in attention's projections even where `bias` is off."""
    n_kv_head: int = 0
    """Key and value heads of grouped_query attention, divides n_head; 0 is n_head."""
    head_size: int = 0
    """Width of a head of multi_head or grouped_query attention; 0 is n_embd / n_head."""
    qk_norm: bool = False
    """RMS norm of every query and key head before they rotate (multi_head and grouped_query)."""
    kv_latent: int = 0
    """Latent attention: width of the latent that keys and values are made of, and that the cache keeps."""
    q_latent: int = 0
    """Latent attention: width of the latent that queries are made of; 0 makes them from the input (DeepSeek only)."""
    nope_size: int = 0
    """Latent attention: width of the part of a query or key head that does not rotate."""
    rope_size: int = 0
    """Latent attention: width of the part that rotates; its key is shared by all heads (DeepSeek)."""
    value_size: int = 0
    """Latent attention: width of a value head."""
    feed_forward: Literal["gelu", "gelu_tanh", "relu2", "swiglu", "moe"] = "gelu"
    """Kind of feed-forward layer: exact GELU (nanoGPT), its tanh form (GPT-2), ReLU squared, SwiGLU, or experts."""
    feed_forward_width: int = 0
    """Inner width; 0 is 4 n_embd, and for swiglu 8/3 n_embd rounded up to a multiple of 64."""
    n_dense_layer: int = 0
    """moe: how many blocks from the first have a dense SwiGLU instead of experts."""
    n_expert: int = 0
    """moe: routed experts per block."""
    n_shared_expert: int = 0
    """moe: experts that every token passes."""
    experts_per_token: int = 0
    """moe: routed experts that a token is sent to."""
    expert_width: int = 0
    """moe: inner width of one expert, a SwiGLU."""
    n_expert_group: int = 1
    """moe: groups of neighbouring experts; a token's experts come from the best groups."""
    groups_per_token: int = 1
    """moe: how many groups a token may choose from."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """moe: how router logits become gates."""
    router_normalise: bool = True
    """moe: make the gates of the chosen experts sum to one."""
    router_scale: float = 1.0
    """moe: factor on the gates."""
    balancing: Literal["none", "bias", "loss"] = "none"
    """moe: keep experts busy by a bias on the choice (no gradient), by an auxiliary loss, or not at all."""
    balancing_rate: float = 1e-3
    """moe: step of the bias per update, or weight of the auxiliary loss."""
    tied_head: bool = True
    """The output layer shares the token embedding's weight."""
    head_bias: bool = False
    """Bias in an untied output layer."""
    dropout: float = 0.0
    """Share of activations dropped in training: embeddings, attention weights, both outputs of a block."""
    dropout_rng: Literal["native", "shared"] = "native"
    """Dropout masks: the framework's own, or threefry bits that are equal in both twins."""

    def __post_init__(self) -> None:
        for name in ("block_size", "n_layer", "n_head", "n_embd", "n_expert_group", "groups_per_token"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in _SIZES:
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        if self.vocab_size < 0:
            raise UserError(f"vocab_size is {self.vocab_size}: it must be at least 1, or 0 to follow the tokenizer")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        for name in ("norm_eps", "rope_theta", "router_scale", "balancing_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.tied_head and self.head_bias:
            raise UserError("head_bias needs an untied head: add --no-tied-head, or leave out --head-bias")
        self._check_attention()
        self._check_experts()

    def _check_attention(self) -> None:
        if self.has_latents:
            needed = ("kv_latent", "nope_size", "rope_size", "value_size")
            for name in needed if self.attention == "latent" else (*needed, "q_latent"):
                if not getattr(self, name):
                    raise UserError(f"attention {self.attention} needs {name}: add --{name.replace('_', '-')}")
            if self.positions == "learned":
                raise UserError(f"attention {self.attention} rotates: set positions to rope or both")
            if self.qk_norm or self.head_size:
                name = "qk_norm" if self.qk_norm else "head_size"
                raise UserError(f"{name} belongs to multi_head and grouped_query attention, not to {self.attention}")
        elif not self.head_size and self.n_embd % self.n_head:
            smaller = [h for h in range(1, math.isqrt(min(self.n_embd, 1 << 40)) + 1) if self.n_embd % h == 0]
            closest = min(smaller + [self.n_embd // h for h in smaller], key=lambda h: (abs(h - self.n_head), h))
            raise UserError(f"n_head {self.n_head} does not divide n_embd {self.n_embd}: try n_head {closest}")
        if self.positions != "learned" and self.rotary_size % 2:
            name = "rope_size" if self.has_latents else "head_size"
            raise UserError(f"rotary positions need an even {name}, and {self.rotary_size} is odd")
        if self.n_kv_head and self.attention != "grouped_query":
            raise UserError("n_kv_head belongs to attention grouped_query: set that, or leave n_kv_head out")
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise UserError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}")

    def _check_experts(self) -> None:
        if self.feed_forward != "moe":
            for name in ("n_expert", "n_shared_expert", "experts_per_token", "expert_width", "n_dense_layer"):
                if getattr(self, name):
                    raise UserError(f"{name} belongs to feed_forward moe: set that, or leave {name} out")
            if self.balancing != "none":
                raise UserError("balancing belongs to feed_forward moe: set that, or leave balancing out")
            return
        for name in ("n_expert", "experts_per_token", "expert_width"):
            if not getattr(self, name):
                raise UserError(f"feed_forward moe needs {name}: add --{name.replace('_', '-')}")
        if self.n_dense_layer > self.n_layer:
            raise UserError(f"n_dense_layer {self.n_dense_layer} is more than n_layer {self.n_layer}")
        if self.n_expert % self.n_expert_group:
            raise UserError(f"n_expert_group {self.n_expert_group} does not divide n_expert {self.n_expert}")
        if self.groups_per_token > self.n_expert_group:
            raise UserError(
                f"groups_per_token {self.groups_per_token} is more than n_expert_group {self.n_expert_group}"
            )
        if self.n_expert_group > 1 and self.n_expert // self.n_expert_group < 2:
            raise UserError(
                f"n_expert_group {self.n_expert_group} makes groups of one expert, and a group's score is the sum of "
                "its two best: take fewer groups"
            )
        reachable = self.n_expert // self.n_expert_group * self.groups_per_token
        if self.experts_per_token > reachable:
            raise UserError(
                f"experts_per_token {self.experts_per_token} is more than the {reachable} that can be chosen"
            )

    @property
    def has_latents(self) -> bool:
        """Whether keys and values are made from a latent."""
        return self.attention in ("latent", "latent_per_head")

    @property
    def has_attention_biases(self) -> bool:
        """Whether the projections of attention have biases."""
        return self.bias or self.attention_bias

    @property
    def key_size(self) -> int:
        """Width of one query or key head."""
        if self.has_latents:
            return self.nope_size + self.rope_size
        return self.head_size or self.n_embd // self.n_head

    @property
    def value_width(self) -> int:
        """Width of one value head."""
        return self.value_size if self.has_latents else self.key_size

    @property
    def rotary_size(self) -> int:
        """Width of the part of a head that rotates, where positions are rotary."""
        return self.rope_size if self.has_latents else self.key_size

    @property
    def inner_width(self) -> int:
        """Inner width of a dense feed-forward layer."""
        if self.feed_forward_width:
            return self.feed_forward_width
        gated = self.feed_forward in ("swiglu", "moe")
        return -(-8 * self.n_embd // 3 // 64) * 64 if gated else 4 * self.n_embd

    def has_experts(self, layer: int) -> bool:
        """Whether block number `layer` routes tokens to experts."""
        return self.feed_forward == "moe" and layer >= self.n_dense_layer


_SIZES = (
    "n_kv_head", "head_size", "kv_latent", "q_latent", "nope_size", "rope_size", "value_size", "feed_forward_width",
    "n_dense_layer", "n_expert", "n_shared_expert", "experts_per_token", "expert_width",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end of the schedule (cosine or warmup-stable-decay)."""
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
    muon_momentum: float = 0.95
    """Muon's Nesterov momentum."""
    ema_decay: float = 0.0
    """Decay rate per step of a running mean of the weights, which is then evaluated, sampled and saved; 0: none."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("min_lr", "warmup_steps", "decay_steps", "weight_decay", "grad_clip"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        for name in ("beta1", "beta2", "muon_momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"decay_fraction is {self.decay_fraction}: it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which corpus, and where prepared corpora lie."""

    dataset: str = "stories"
    """Name of a prepared corpus; `stories` is built in, and `python -m gpt_common.data prepare` makes others."""
    data_dir: str = "data"
    """Folder of prepared corpora."""
    follow: bool = False
    """Train on what `prepare --hub` has finished while it still runs, in the order of its documents."""
    packing: bool = True
    """Of conversations, put as many examples into a row as fit; otherwise one, and the rest of the row is nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: steps, precision, what is logged, evaluated, saved and sampled, and when."""

    max_steps: int = 1000
    """Steps of the whole schedule."""
    max_minutes: float = 0.0
    """Train for so many minutes; max_steps follows from the time of the first steps and evaluations; 0: no limit."""
    patience: int = 0
    """End after N evaluations without a better loss; 0: never."""
    batch_size: int = 12
    """Sequences per micro-step."""
    grad_accum_steps: int = 1
    """Micro-steps whose mean gradient makes one step."""
    short_context: int = 0
    """Length of the windows in the first steps, of which a batch then has more, for as many tokens; 0: block_size."""
    short_context_steps: int = 0
    """How many steps have short windows."""
    seed: int = 1337
    """Key of everything random (initial weights, batch order, dropout, samples)."""
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
    eval_full: bool = False
    """Evaluate the whole validation split at the end even where it has more tokens than were trained on."""
    checkpoint_interval: int = 250
    """Steps between two checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk; the best one always does."""
    prompts: tuple[str, ...] = ()
    """Texts to continue before, during and after training; none given: the dataset's own prompt."""
    sample_interval: int = 0
    """Steps between two samplings of the prompts; 0 samples before and after training only."""
    sample_tokens: int = 200
    """Tokens per sampled continuation."""
    sample_temperature: float = 0.8
    """Temperature of the sampled continuations."""
    average_every: int = 0
    """Experimental, of several ranks: each takes steps of its own, and every N steps all are averaged; 0: one step."""
    outer_rate: float = 1.0
    """How much of what an average has moved is taken over; 1 with outer_momentum 0: the average itself."""
    outer_momentum: float = 0.0
    """Nesterov momentum of what averages move (DiLoCo: 0.9, with outer_rate 0.7)."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Optional trackers to log to, besides metrics.jsonl."""
    report: bool = True
    """Write report.html, the page of the run, when it ends."""
    health_gates: Literal["quick", "full", "off"] = "quick"
    """Check before step 1 that learning is possible: in some seconds, thoroughly, or not."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "grad_accum_steps", "log_interval", "eval_batches", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        if not 0 <= self.max_minutes < math.inf:
            raise UserError(f"max_minutes is {self.max_minutes}: it must be a number from 0")
        if self.patience and not self.eval_interval:
            raise UserError("patience counts evaluations, and eval_interval 0 has one, at the end: set eval_interval")
        if not self.sample_temperature >= 0:
            raise UserError(f"sample_temperature is {self.sample_temperature}: it must not be negative")
        if not 0 < self.outer_rate < math.inf or not 0 <= self.outer_momentum < 1:
            raise UserError(
                f"outer_rate is {self.outer_rate}, outer_momentum {self.outer_momentum}: above 0, and from 0 to below 1"
            )
        if not self.average_every and (self.outer_rate != 1 or self.outer_momentum):
            raise UserError(
                "outer_rate and outer_momentum are of averages: add --average-every, or --outer-rate 1 "
                "--outer-momentum 0"
            )
        if self.short_context_steps and not self.short_context:
            raise UserError("short_context_steps needs their length: add --short-context")


_COUNTS = (
    "seed", "patience", "eval_interval", "checkpoint_interval", "sample_interval", "sample_tokens", "short_context",
    "average_every",
    "short_context_steps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        return self.model.dropout > 0 or self.adapter.adapter_dropout > 0

    def __post_init__(self) -> None:
        if self.train.short_context and self.model.block_size % self.train.short_context:
            short, whole = self.train.short_context, self.model.block_size
            raise UserError(f"short_context {short} does not divide block_size {whole}: take one that does")

    def windows(self, step: int) -> tuple[int, int]:
        """How many sequences a micro-step of step number `step` (from 0) has, and of how many tokens each is.

        Early on a token is guessed from the few before it: short windows teach that for less attention, and a batch of
        more of them has the more different text. docs/results.md has what it gains.
        """
        train, whole = self.train, self.model.block_size
        if step >= train.short_context_steps:
            return train.batch_size, whole
        return train.batch_size * (whole // train.short_context), train.short_context

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
    return load_toml(_preset_file(name))


def is_for_fine_tuning(preset: str) -> bool:
    """Whether the learning rate of a preset is for weights that have learnt already: its file says `fine_tuning`."""
    return tomllib.loads(_preset_file(preset).read_text(encoding="utf-8")).get(FINE_TUNING) is True


def _preset_file(name: str) -> Path:
    if name not in preset_names():
        raise UserError(f"no preset '{name}': {nearest(name, preset_names())}")
    return PRESETS_FOLDER / f"{name}.toml"


def load_toml(path: Path, base: RunConfig | None = None) -> RunConfig:
    """The configuration in a TOML file, over `base` (the defaults if None).

    Raises:
        UserError: unreadable file, unknown table or key, wrong type, impossible combination.
    """
    try:
        tables = tomllib.loads(read_bytes(path, LARGEST_CONFIGURATION).decode("utf-8"))
    except RecursionError:
        raise UserError(f"cannot read configuration {path}: it is nested too deeply") from None
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}") from None
    except ValueError as error:  # a number of 5000 digits is one too
        raise UserError(f"cannot read configuration {path}: {error}") from None
    if tables.get(FINE_TUNING) is True:  # of a preset, for `is_for_fine_tuning`
        del tables[FINE_TUNING]
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
            if key == "health_gates" and isinstance(value, bool):  # before there were two kinds
                value = "quick" if value else "off"
            values = {**values, key: _typed(value, types[key], f"{where}: {key} in [{table}]")}
        if values.get("n_layer", 0) > MOST_LAYERS:
            raise UserError(f"{where}: n_layer in [{table}]: {values['n_layer']} layers are more than any model has")
        try:
            sections[table] = dataclasses.replace(sections[table], **values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    try:
        return RunConfig(**sections)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as the field type `kind`, or a UserError that starts with `where`."""
    # Of values from other people's files the whole repr may be endless, and of a number thousands of digits long there
    # is none.
    try:
        shown = reprlib.repr(value)
    except ValueError:
        raise UserError(f"{where}: a number with thousands of digits") from None
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            word = value if isinstance(value, str) else ""
            raise UserError(f"{where}: {shown} is not a choice: {nearest(word, get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {shown}")
        return tuple(_typed(item, get_args(kind)[0], where) for item in value)
    if kind is float and type(value) is int and abs(value) <= LARGEST_NUMBER:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{where}: expected {kind.__name__}, found {shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {value} is not a finite number")
    if type(value) is int and abs(value) > LARGEST_NUMBER:
        raise UserError(f"{where}: {shown} is too large a number")
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
