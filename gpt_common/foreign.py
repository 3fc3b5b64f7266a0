"""Flags by the names that other trainers have for them, as data: what nanoGPT, mlx-lm and transformers call what we do.

A name that is not here and is no flag is a mistake, and only a slip of the pen gets a suggestion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpt_common.errors import UserError

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""How others write the value of a switch: `--compile=False`."""


@dataclass(frozen=True)
class Same:
    """A flag of another name."""

    flag: str
    """Ours, without dashes."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Their values that are called otherwise here."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Their values that there are not, and what to do."""


@dataclass(frozen=True)
class Switch:
    """A switch, which here is a choice of another flag."""

    on: Sequence[str] = ()
    """Words that stand for it."""
    off: Sequence[str] = ()
    """Words that stand for its opposite."""


Entry = Same | Switch | str
"""What a foreign name means; text: there is no flag for it, and this is what to do."""

STEPS = "training is counted in steps: --max-steps N; one pass over a text of T tokens is "
STEPS += "T / (batch_size x grad_accum_steps x block_size) steps"
ONE_DROPOUT = "one --dropout is used for embeddings, attention and blocks"
SCHEDULES = {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"}
NO_SCHEDULE = {"linear": "--schedule is cosine, wsd or constant; wsd with --decay-fraction 1 falls linearly"}
BFLOAT16 = Switch(on=("--dtype", "bfloat16"), off=("--dtype", "float32"))
NO_FLOAT16 = "float16 is not offered, since it needs loss scaling: take --dtype bfloat16"
PREPARED = "a text is prepared first (python -m gpt_common.data prepare), and then named with --dataset NAME"
LOSS_CURVE = "metrics.jsonl is always written; --trackers tensorboard, wandb or trackio for more"

TRAINING: Mapping[str, Entry] = {
    # nanoGPT
    "max-iters": Same("max-steps"),
    "lr-decay-iters": Same("decay-steps"),
    "warmup-iters": Same("warmup-steps"),
    "eval-iters": Same("eval-batches"),
    "gradient-accumulation-steps": Same("grad-accum-steps"),
    "out-dir": Same("out"),
    "decay-lr": Switch(off=("--schedule", "constant")),
    "always-save-checkpoint": "--checkpoint-interval saves, --keep-checkpoints keeps the newest, and the best stays",
    "eval-only": "there is no training without steps: --eval-interval evaluates, and the console shows the loss",
    "wandb-log": Switch(on=("--trackers", "wandb")),
    "wandb-project": "the project's name is fixed: --trackers wandb, and --name for the run",
    "wandb-run-name": Same("name"),
    "early-stopping-patience": Same("patience"),
    "no-health-gates": Switch(on=("--health-gates", "off")),
    "backend": "one process trains: there is no backend of communication; --device chooses where",
    # mlx-lm
    "iters": Same("max-steps"),
    "lr": Same("learning-rate"),
    "steps-per-report": Same("log-interval"),
    "steps-per-eval": Same("eval-interval"),
    "val-batches": Same("eval-batches"),
    "save-every": Same("checkpoint-interval"),
    "grad-accumulation-steps": Same("grad-accum-steps"),
    "grad-checkpoint": Same("gradient-checkpointing"),
    "max-seq-length": Same("block-size"),
    "model": Same("init-from"),
    "data": PREPARED,
    "train": Switch(),
    "fine-tune-type": Same("adapter", refused={"full": "without --adapter the whole model is trained"}),
    "report-to": Same("trackers", refused={"all": LOSS_CURVE, "none": LOSS_CURVE}),
    # transformers
    "num-train-epochs": STEPS,
    "per-device-train-batch-size": Same("batch-size"),
    "per-device-eval-batch-size": "evaluation takes --batch-size as well; --eval-batches says how many",
    "output-dir": Same("out"),
    "logging-steps": Same("log-interval"),
    "eval-steps": Same("eval-interval"),
    "save-steps": Same("checkpoint-interval"),
    "save-total-limit": Same("keep-checkpoints"),
    "warmup-ratio": "warm-up is counted in steps: --warmup-steps N",
    "lr-scheduler-type": Same("schedule", SCHEDULES, NO_SCHEDULE),
    "optim": Same("optimizer", {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"}),
    "adam-beta1": Same("beta1"),
    "adam-beta2": Same("beta2"),
    "adam-epsilon": Same("adam-eps"),
    "max-grad-norm": Same("grad-clip"),
    "run-name": Same("name"),
    "resume-from-checkpoint": Same("resume"),
    "model-name-or-path": Same("init-from"),
    "dataset-name": Same("dataset"),
    "train-file": PREPARED,
    "torch-compile": Same("compile"),
    "bf16": BFLOAT16,
    "fp16": NO_FLOAT16,
    "use-cpu": Switch(on=("--device", "cpu")),
    "no-cuda": Switch(on=("--device", "cpu")),
    "lora-r": Same("adapter-rank"),
    "lora-rank": Same("adapter-rank"),
    "lora-alpha": Same("adapter-alpha"),
    "lora-dropout": Same("adapter-dropout"),
    "lora-target-modules": Same("adapter-targets"),
    # a model's config.json
    "hidden-size": Same("n-embd"),
    "num-hidden-layers": Same("n-layer"),
    "num-attention-heads": Same("n-head"),
    "num-key-value-heads": Same("n-kv-head"),
    "intermediate-size": Same("feed-forward-width"),
    "max-position-embeddings": Same("block-size"),
    "head-dim": Same("head-size"),
    "rms-norm-eps": Same("norm-eps"),
    "layer-norm-epsilon": Same("norm-eps"),
    "tie-word-embeddings": Same("tied-head"),
    "n-positions": Same("block-size"),
    "n-ctx": Same("block-size"),
    "n-inner": Same("feed-forward-width"),
    "resid-pdrop": ONE_DROPOUT,
    "embd-pdrop": ONE_DROPOUT,
    "attn-pdrop": ONE_DROPOUT,
    "attention-dropout": ONE_DROPOUT,
    "hidden-dropout": ONE_DROPOUT,
    # said everywhere
    "epochs": STEPS,
    "num-epochs": STEPS,
    "max-epochs": STEPS,
    "steps": Same("max-steps"),
    "num-steps": Same("max-steps"),
    "num-iters": Same("max-steps"),
    "max-iterations": Same("max-steps"),
    "warmup": Same("warmup-steps"),
    "min-learning-rate": Same("min-lr"),
    "wd": Same("weight-decay"),
    "clip": Same("grad-clip"),
    "bs": Same("batch-size"),
    "train-batch-size": Same("batch-size"),
    "context-length": Same("block-size"),
    "context-size": Same("block-size"),
    "seq-len": Same("block-size"),
    "max-seq-len": Same("block-size"),
    "d-model": Same("n-embd"),
    "width": Same("n-embd"),
    "embed-dim": Same("n-embd"),
    "hidden-dim": Same("n-embd"),
    "depth": Same("n-layer"),
    "n-layers": Same("n-layer"),
    "num-layers": Same("n-layer"),
    "n-heads": Same("n-head"),
    "num-heads": Same("n-head"),
    "fp32": Switch(on=("--dtype", "float32")),
    "half": NO_FLOAT16,
}  # fmt: skip
"""Names that stand for flags of training."""

CHECKPOINT_FIRST = "the run or checkpoint is the first argument: sample runs/NAME --prompt TEXT"
SAMPLING: Mapping[str, Entry] = {
    # nanoGPT
    "start": Same("prompt"),
    "out-dir": CHECKPOINT_FIRST,
    "init-from": CHECKPOINT_FIRST,
    "compile": "generation is not compiled: leave it out",
    # mlx-lm
    "model": CHECKPOINT_FIRST,
    "max-tokens": Same("max-new-tokens"),
    "temp": Same("temperature"),
    "min-p": "there is no min-p: --top-p or --top-k cuts off unlikely tokens",
    # transformers
    "model-name-or-path": CHECKPOINT_FIRST,
    "do-sample": Switch(off=("--temperature", "0")),
    "num-return-sequences": Same("num-samples"),
    "max-length": "--max-new-tokens counts the new tokens alone, without the prompt",
    "length": Same("max-new-tokens"),
    "n": Same("num-samples"),
    "repetition-penalty": "there is no penalty for repetition: a higher --temperature repeats less",
    "num-beams": "there is no beam search: --temperature 0 takes the likeliest token each time",
}
"""Names that stand for flags of sampling."""

PREPARING: Mapping[str, Entry] = {
    "vocab-size": Same("bpe-vocab-size"),
    "input": Same("text"),
    "input-file": Same("text"),
    "input-files": Same("text"),
    "file": Same("text"),
    "files": Same("text"),
    "test-size": Same("val-fraction"),
    "val-ratio": Same("val-fraction"),
    "val-size": Same("val-fraction"),
    "val-split": Same("val-fraction"),
    "num-proc": Same("workers"),
    "num-workers": Same("workers"),
    "force": Same("overwrite"),
    "dataset": Same("name"),
}
"""Names that stand for flags of `gpt_common.data prepare`."""

TABLES: Mapping[str, Mapping[str, Entry]] = {
    "max-steps": TRAINING,
    "max-new-tokens": SAMPLING,
    "bpe-vocab-size": PREPARING,
}
"""By a flag that the commands have for which a table holds."""

FOREIGN_VALUES = {
    ("init-from", "scratch"): "without --init-from training starts from scratch: leave it out",
    ("init-from", "resume"): "--resume RUN continues a run",
    ("dtype", "float16"): NO_FLOAT16,
}
"""Values of our own flags that mean something elsewhere."""


def translated(argv: Sequence[str], flags: Sequence[str], switches: Sequence[str]) -> tuple[list[str], list[str]]:
    """`argv` in our words, and what was read otherwise than it was typed: `--iters as --max-steps`.

    Args:
        flags: the flags of the command, without dashes.
        switches: those that take no value.

    Raises:
        UserError: a foreign name or value that nothing here is the same as; the message says what to do.
    """
    table: dict[str, Entry] = {}
    for anchor, entries in TABLES.items():
        table |= entries if anchor in flags else {}
    words: list[str] = []
    notes: list[str] = []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        typed, equals, value = word.partition("=")
        name = typed.removeprefix("--").replace("_", "-")
        # `--backend` where there is `--backends` is a slip of the pen, and no other trainer's flag.
        known = {name, f"{name}s"} & {*flags}
        entry = table.get(name) if typed.startswith("--") and not known else None
        following = value if equals else queue[0] if queue else ""
        if isinstance(entry, str):
            raise UserError(f"{typed}: {entry}")
        if table and (name, following) in FOREIGN_VALUES:
            raise UserError(f"{typed} {following}: {FOREIGN_VALUES[name, following]}")
        if isinstance(entry, Switch):
            meant, queue = _boolean(equals, value, queue)
            mine = list(entry.on if meant else entry.off)
        elif isinstance(entry, Same) and entry.flag in flags:
            if following in entry.refused:
                raise UserError(f"{typed} {following}: {entry.refused[following]}")
            if following in entry.values:
                queue = queue if equals else queue[1:]
                mine = [f"--{entry.flag}", entry.values[following]]
            elif entry.flag in switches:
                meant, queue = _boolean(equals, value, queue)
                mine = [f"--{entry.flag}" if meant else f"--no-{entry.flag}"]
            else:
                mine = [f"--{entry.flag}", *([value] if equals else [])]
        elif typed.startswith("--") and name in switches and (equals or _is_boolean(queue)):
            meant, queue = _boolean(equals, value, queue)
            mine = [typed if meant else f"--no-{name}"]
        else:
            words.append(word)
            continue
        words += mine
        notes.append(f"{typed} as {' '.join(mine)}" if mine else f"{word}, which is so anyway")
    return words, notes


def _is_boolean(queue: Sequence[str]) -> bool:
    return bool(queue) and queue[0].lower() in ("true", "false")


def _boolean(equals: str, value: str, queue: list[str]) -> tuple[bool, list[str]]:
    """The value of a switch, and the words behind it."""
    if not equals:
        if not _is_boolean(queue):
            return True, queue
        value, queue = queue[0], queue[1:]
    if value.lower() not in BOOLEANS:
        raise UserError(f"'{value}' is neither true nor false")
    return BOOLEANS[value.lower()], queue
