"""Opening a run: data, folder, checkpoint and configuration are checked against each other before anything computes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt_common.adapting.placement import check_ranks
from gpt_common.adapting.quantisation import Grids
from gpt_common.commands import TrainCommand
from gpt_common.config import RunConfig, differences, load_preset
from gpt_common.data import Dataset, check_block, open_dataset
from gpt_common.data.batches import Rows, Source, Split
from gpt_common.data.corpora.following import follow
from gpt_common.data.dataset import check_name
from gpt_common.data.tokenizers.growth import Growth, growth_between
from gpt_common.errors import UserError
from gpt_common.machine.hardware import Hardware, detect, memory_for
from gpt_common.network.memory import Twin, planned_device
from gpt_common.network.parameters import parameter_shapes, trained_shapes
from gpt_common.network.room import check_room
from gpt_common.network.together import Together
from gpt_common.sampling import encode_prompt
from gpt_common.training.checkpoint import check_moments, described, find_checkpoint, read_manifest
from gpt_common.training.due import gave_up
from gpt_common.training.fitting import trainable_grids
from gpt_common.training.folder import RUNS, RunFolder, refuse_used, take_up
from gpt_common.training.following import Following, check_preparation, seen_before
from gpt_common.training.manifest import OPTIMIZER_FILE, Manifest, base_of
from gpt_common.words import say

# What a resumed run may change of its model: nothing that changes a shape.
FREE_ON_RESUME = {"model.dropout", "model.dropout_rng", "adapter.adapter_dropout"}
# Nor the text that it learns, nor the optimiser, whose state would mean nothing to another, nor a time that has begun.
FIXED_ON_RESUME = {"data.dataset", "data.follow", "optim.optimizer", "optim.ema_decay", "train.max_minutes"}
# Nor, of a stream, what decides where a step stands in it.
FIXED_IN_A_STREAM = {"train.seed", "train.batch_size", "train.grad_accum_steps"}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a run starts from. Of a new one nothing is on disk yet."""

    config: RunConfig
    """With the vocabulary settled."""
    dataset: Dataset
    train: Source
    """Where training batches come from."""
    val: Split
    """Where validation batches come from."""
    following: Following
    """Waits for what training batches come from."""
    prompts: dict[str, list[int]]
    """Token ids by prompt."""
    hardware: Hardware
    """This machine; asked once, since macOS answers by four commands."""
    planned_for: Twin
    together: Together
    """For the memory plan, like the twin."""
    hold: RunFolder
    """The run's folder: no other run writes into it, once it is claimed."""
    resume_from: Path | None
    """Checkpoint to continue."""
    init_from: Path | None
    """Checkpoint whose weights to start with."""
    base: Path | None
    """Checkpoint that the run's adapter stands beside, if it has one."""
    grids: Grids
    """Its quantised matrices."""
    growth: Growth | None
    """What its vocabulary lacks."""
    first_step: int
    """Steps done already."""
    stop_at: int
    """Step after which to save and end."""
    best_step: int | None
    best_val_loss: float | None
    preset: str | None
    """Name of the one that its settings began with."""
    messages: list[str]
    """What the person should know of how the run was taken up."""

    @property
    def folder(self) -> Path:
        """The run's folder; a new one has its name when it is claimed."""
        return self.hold.path


def open_run(command: TrainCommand, *, twin: str = "torch_gpt", owner: bool = True, ranks: int = 1) -> Opening:
    """Check a parsed command line against data, checkpoints and this machine's memory; hold a run that is resumed.

    Args:
        twin: "mlx_gpt" or "torch_gpt", for the memory plan.
        owner: whether this process writes into the folder; otherwise another one does, and this one says nothing.
        ranks: how many processes train together.

    Raises:
        UserError: anything about data, folder, checkpoint or configuration that the person must change.
    """
    resume_from = find_checkpoint(command.resume, prefer="latest") if command.resume else None
    init_from = find_checkpoint(command.init_from, prefer="best") if command.init_from else None
    data, now = command.run.data, partial(say, flush=True) if owner else _say_nothing
    dataset = (follow if data.follow else open_dataset)(data.dataset, Path(data.data_dir), now)
    source = resume_from or init_from
    manifest, growth = described(source) if source else None, None
    if source and manifest:
        # Before the vocabulary is compared: another tokenizer is the reason, another number of entries a symptom.
        growth = growth_between(manifest.tokenizer or {}, dataset.tokenizer) if init_from else None
        if growth is None:
            _check_tokenizer(source, manifest, dataset, Path(data.data_dir))
    asked = command.run
    if growth is not None:
        if asked.adapter.adapts and "token_embedding" not in asked.adapter.adapter_whole:
            raise UserError(f"{', '.join(growth.names)}: new to the model, and frozen: --adapter-whole token_embedding")
        wider = dataclasses.replace(asked.model, vocab_size=max(asked.model.vocab_size, growth.entries))
        asked = dataclasses.replace(asked, model=wider)
    config = asked.with_vocabulary(dataset.tokenizer.vocab_size)
    check_block(dataset, config.model.block_size)
    base = _base(config, source, manifest, resumed=resume_from is not None)
    grids = trainable_grids(config, source, growth)
    train, val = dataset.splits(config.model.block_size, packing=config.data.packing)
    if isinstance(train, Rows) and config.train.short_context_steps:
        raise UserError(f"short_context is for running text, and '{data.dataset}' has examples: leave it out")
    prompts = _encoded_prompts(config, dataset)
    hardware = detect()
    planned_for: Twin = "mlx" if twin == "mlx_gpt" else "torch"
    together = Together(ranks=ranks, engine=command.parallel, shards_optimizer=command.shard_optimizer)
    if not command.force:
        # Whether the framework that was installed can use the GPU is not known yet: it must fit either way.
        device, _ = planned_device(planned_for, config.train, hardware.kind)
        for place in dict.fromkeys((device, "cpu")):
            check_room(config, planned_for, memory_for(hardware, place), place, grids, together)

    first_step, best_step, best_val_loss, messages = 0, None, None, [growth.said] if growth else []
    if init_from and manifest:
        messages += seen_before(manifest.run_config.data, config.data)
    if resume_from is not None and manifest is not None:
        messages = _changes_on_resume(resume_from, manifest, config, dataset)
        if manifest.step or OPTIMIZER_FILE in manifest.tensors:
            check_moments(resume_from, manifest, config)
        first_step, best_step, best_val_loss = manifest.step, manifest.best_step, manifest.best_val_loss
        if gave_up(config.train, manifest.step, manifest.best_step):
            raise UserError(
                f"the run ended at step {manifest.step}, with no better loss since step {manifest.best_step}: raise "
                "--patience to go on"
            )
    stop_at = command.stop_at or config.train.max_steps
    if not first_step < stop_at <= config.train.max_steps:
        raise UserError(_nothing_to_do(first_step, command.stop_at, config.train.max_steps))
    following = Following(data.dataset, train, config.train)
    if not following.wait(first_step, now, steps=2) and following.error is not None:  # the gates ask two
        raise following.error
    if not owner:
        hold = RunFolder(_run_folder(resume_from) if resume_from else Path(), new=False, claimed=True)
    elif command.resume and resume_from and manifest:
        hold = _taken_up(command.resume, resume_from, manifest)
    else:
        hold = _new_folder(command, config)
    return Opening(
        config=config,
        dataset=dataset,
        train=train,
        val=val,
        following=following,
        prompts=prompts,
        hold=hold,
        hardware=hardware,
        planned_for=planned_for,
        together=together,
        resume_from=resume_from,
        init_from=init_from,
        base=base,
        grids=grids,
        growth=growth,
        first_step=first_step,
        stop_at=stop_at,
        best_step=best_step,
        best_val_loss=best_val_loss,
        preset=command.preset,
        messages=messages,
    )


def _say_nothing(text: str) -> None:
    """Another process says it."""


def _base(config: RunConfig, source: Path | None, manifest: Manifest | None, *, resumed: bool) -> Path | None:
    """The checkpoint that the run's adapter stands beside: the one to start from, or that one's own base.

    Raises:
        UserError: there is none, or the adapter in it is another than this run's.
    """
    theirs = None if source is None or manifest is None else base_of(source, manifest)
    if not config.adapter.adapts:
        if theirs is not None:
            raise UserError(f"{source} is an adapter: fuse it first (python -m convert fuse {source}), or --adapter")
        return None
    if source is None or manifest is None:
        raise UserError("an adapter stands beside a trained model: add --init-from RUN")
    if config.optim.ema_decay:
        raise UserError("ema_decay is a mean of a whole model's weights: leave it out beside an adapter")
    trained = trained_shapes(config.model, config.adapter)  # whatever is wrong with its names is said now
    before = manifest.run_config
    if theirs is None:
        check_ranks(parameter_shapes(config.model), config.adapter)
    elif not resumed and trained != trained_shapes(before.model, before.adapter):
        raise UserError(f"{source} is another adapter: leave out --adapter-..., or start from its base, {theirs}")
    return theirs or source


def _encoded_prompts(config: RunConfig, dataset: Dataset) -> dict[str, list[int]]:
    """Token ids by prompt. The dataset's own, which nobody asked for, is cut to a block too short for it."""
    tokenizer, block_size = dataset.tokenizer, config.model.block_size
    if not config.train.prompts:
        ids = tokenizer.encode_written(dataset.prompt)[:block_size]
        return {tokenizer.decode(ids): ids}
    return {prompt: encode_prompt(prompt, tokenizer, block_size) for prompt in config.train.prompts}


def _changes_on_resume(checkpoint: Path, manifest: Manifest, config: RunConfig, dataset: Dataset) -> list[str]:
    """What differs from the checkpoint's configuration; raises UserError for what may not."""
    messages = []
    for name, (old, new) in differences(manifest.run_config, config).items():
        fixed = name in FIXED_ON_RESUME | (FIXED_IN_A_STREAM if config.data.follow else set())
        fixed |= name.startswith(("model.", "adapter.")) and name not in FREE_ON_RESUME
        if fixed:
            raise UserError(
                f"cannot resume with another {name.replace('.', ' ')}: {old!r} in {checkpoint}, now {new!r}.\n"
                "Leave the flag out, or start a new run (with --init-from to keep the weights)"
            )
        messages.append(f"changed on resume: {name} {old!r} -> {new!r}")
    check_preparation(checkpoint, manifest.dataset or {}, dataset)
    if manifest.dataset and manifest.dataset["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"cannot resume: dataset '{dataset.name}' is not the one that {checkpoint} was trained on "
            f"(fingerprint {dataset.fingerprint[:12]}, then {manifest.dataset['fingerprint'][:12]})"
        )
    return messages


def _check_tokenizer(checkpoint: Path, manifest: Manifest, dataset: Dataset, data_dir: Path) -> None:
    theirs, ours = manifest.tokenizer, dataset.tokenizer
    if theirs and theirs["fingerprint"] != ours.fingerprint:
        folder = "" if data_dir == Path("data") else f" --data-dir {data_dir}"
        raise UserError(
            f"dataset '{dataset.name}' was made with another tokenizer ({ours.kind}, {ours.vocab_size} entries) than "
            f"{checkpoint} ({theirs['kind']}, {theirs['vocab_size']} entries). Prepare the text with that one:\n"
            f"python -m gpt_common.data prepare --text FILE --name {dataset.name}-for-{_run_name(checkpoint)} "
            f"--tokenizer {checkpoint}{folder}"
        )


def _nothing_to_do(first_step: int, stop_at: int | None, max_steps: int) -> str:
    if stop_at and stop_at > max_steps:
        return f"--stop-at {stop_at} lies beyond max_steps {max_steps}"
    if first_step >= max_steps:
        return f"the run is finished: step {first_step} of {max_steps}; raise --max-steps to go on"
    return f"the run is at step {first_step} already: --stop-at must be above that"


def _taken_up(asked_for: Path, checkpoint: Path, manifest: Manifest) -> RunFolder:
    """Hold the run's folder, in which `checkpoint` is still what was read before it was held.

    Raises:
        UserError: another process trains it, or took it further in between.
    """
    hold = take_up(_run_folder(checkpoint))
    try:
        if find_checkpoint(asked_for, prefer="latest") != checkpoint or read_manifest(checkpoint) != manifest:
            raise UserError(f"{hold.path} was taken further by another process just now: repeat the command")
        return hold
    except BaseException:
        hold.release()
        raise


def _run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to."""
    if checkpoint.parent.name != "checkpoints":
        raise UserError(f"{checkpoint} lies outside a run folder: start a new run with --init-from {checkpoint}")
    return checkpoint.parent.parent


def _new_folder(command: TrainCommand, config: RunConfig) -> RunFolder:
    """The folder of a new run: as asked, or the first free one named after what makes the run."""
    asked_for = command.out if command.name is None else RUNS / check_name(command.name)
    if asked_for is not None:
        refuse_used(asked_for)
        return RunFolder(asked_for, new=True)
    if command.init_from is not None:
        name = f"{_run_name(command.init_from)}-{config.data.dataset}"
    elif command.config is not None:
        name = command.config.stem
    else:
        name = command.preset or "run"
        # Own text under a preset's settings: the text is what one will look for.
        if command.preset and config.data.dataset != load_preset(command.preset).data.dataset:
            name = config.data.dataset
    return RunFolder(RUNS / name, new=True, or_next=True)


def _run_name(source: Path) -> str:
    """The name of the run that a path means: its own, or that of the run in which a checkpoint lies."""
    folder = source.resolve()
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name
