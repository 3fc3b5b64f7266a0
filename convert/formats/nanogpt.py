"""nanoGPT's `ckpt.pt`: model, AdamW state, model_args, iteration, best loss and config in one file of torch.save."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.contents import (
    MOMENTS,
    Contents,
    FoundTokenizer,
    by_name,
    check_sizes,
    drop_tied_head,
    refuse_activation,
    refuse_all_but_gpt2,
    refuse_fields,
)
from convert.formats.format import Format
from convert.formats.names import GPT2, translated
from convert.formats.tokenizer_files import read_meta
from convert.options import ReadOptions, WriteOptions
from convert.soundness import problems
from convert.storage.pickles import StoredTensor, shown, write_pickle
from convert.storage.tensors import COPY_AGAIN, Tensor, from_array
from convert.storage.torch_file import TorchFile, is_torch_file, plan, write_torch_file
from gpt_common.config import ModelConfig, RunConfig, from_dict, to_dict
from gpt_common.data.tokenizers import END_OF_TEXT, CharTokenizer, Gpt2Tokenizer, Tokenizer
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes

FILE, META = "ckpt.pt", "meta.pkl"
GPT2_VOCABULARY = 50257
NO_LOSS = 1e9
"""Best loss that nanoGPT starts from."""
WITHOUT_OPTIMIZER = "add --no-optimizer to take the weights alone"
SWITCHES = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True}
"""Settings of AdamW that change its update, at the only value that is known here."""
MODEL_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")

CONFIG = {
    "learning_rate": ("optim", "learning_rate"),
    "min_lr": ("optim", "min_lr"),
    "warmup_iters": ("optim", "warmup_steps"),
    "lr_decay_iters": ("optim", "decay_steps"),
    "weight_decay": ("optim", "weight_decay"),
    "beta1": ("optim", "beta1"),
    "beta2": ("optim", "beta2"),
    "grad_clip": ("optim", "grad_clip"),
    "max_iters": ("train", "max_steps"),
    "batch_size": ("train", "batch_size"),
    "gradient_accumulation_steps": ("train", "grad_accum_steps"),
    "eval_interval": ("train", "eval_interval"),
    "eval_iters": ("train", "eval_batches"),
    "log_interval": ("train", "log_interval"),
    "dataset": ("data", "dataset"),
}
"""nanoGPT's settings and ours."""


def recognise(path: Path) -> bool:
    """A torch file with `model` and `model_args`, or a folder with one called ckpt.pt."""
    path = path / FILE if path.is_dir() else path
    if not path.is_file() or not is_torch_file(path):
        return False
    value = TorchFile(path).value
    return isinstance(value, dict) and {"model", "model_args"} <= value.keys()


def read(path: Path, options: ReadOptions) -> Contents:
    """Weights, AdamW state and settings; a character vocabulary from a meta.pkl beside the file.

    Raises:
        UserError: what the file says of itself makes no sense.
    """
    path = path / FILE if path.is_dir() else path
    file = TorchFile(path)
    value: dict[str, Any] = file.value
    contents = by_name(path, file.tensors(_dictionary(path, value, "model"), "model"), GPT2)
    drop_tied_head(contents)
    groups = _read_groups(path, value.get("optimizer")) if options.optimizer and value.get("optimizer") else []
    config = _read_config(path, value, contents.tensors, groups)
    step = value.get("iter_num", 0)
    if type(step) is not int or step < 0:
        raise UserError(f"{path}: iter_num is {shown(step)}, nanoGPT writes the number of iterations: {COPY_AGAIN}")
    loss = value.get("best_val_loss", NO_LOSS)
    loss = file.scalar(loss, "best_val_loss") if isinstance(loss, StoredTensor) else loss
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        raise UserError(f"{path}: best_val_loss is {shown(loss)}, nanoGPT writes a number: {COPY_AGAIN}")
    contents = dataclasses.replace(
        contents,
        config=config,
        step=step,
        best_val_loss=float(loss) if loss < NO_LOSS else None,
        find_tokenizer=lambda: _find_tokenizer(path.parent, config),
        described_in="model_args",
        verify=file.verify,
    )
    # Which moments belong to which weight is told by their position alone: only sound weights can say.
    if not groups or problems(contents):
        return contents
    moments, done = _read_moments(file, value["optimizer"], groups, contents)
    if moments and done != step:
        skipped = f"AdamW made {done:,} of the {step:,} updates: loss scaling skips those that overflow in float16"
        contents = dataclasses.replace(contents, notes=(*contents.notes, f"{skipped}; its moments are taken"))
    return dataclasses.replace(contents, moments=moments)


def _dictionary(path: Path, value: Mapping[str, Any], key: str) -> dict[Any, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise UserError(f"{path}: {key} is a {type(found).__name__}, nanoGPT writes a dictionary there: {COPY_AGAIN}")
    return found


def _read_config(
    path: Path, value: dict[str, Any], tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> RunConfig:
    arguments = _dictionary(path, value, "model_args")
    unknown = [shown(key) for key in arguments if key not in MODEL_ARGS]
    if unknown:
        raise UserError(f"{path}: unknown model_args key {unknown[0]}: choose a checkpoint of nanoGPT's own model")
    # Before 2023 nanoGPT had no `bias`: every model had biases.
    model = {"bias": "final_norm.bias" in tensors, "dropout": 0.0, **arguments}
    missing = [key for key in MODEL_ARGS if key not in model]
    if missing:
        raise UserError(f"{path}: model_args does not have {missing[0]}: add it and save again")
    tables: dict[str, dict[str, Any]] = {"model": model, "optim": {}, "train": {}, "data": {}}
    defaults = to_dict(RunConfig())
    settings = _dictionary(path, value, "config") if "config" in value else {}
    for key, (table, name) in CONFIG.items():
        if key in settings:
            tables[table][name] = settings[key]
    if settings.get("decay_lr") is False:
        tables["optim"] |= {"schedule": "constant", "warmup_steps": 0}
    if groups:
        tables["optim"] |= dict(zip(("beta1", "beta2"), groups[0]["betas"], strict=True))
        tables["optim"] |= {"adam_eps": groups[0]["eps"], "weight_decay": groups[0]["weight_decay"]}
    for table, fields in tables.items():
        for name, setting in fields.items():
            # Python programs are free with 1 and 1.0; configurations are not.
            if type(defaults[table][name]) is int and type(setting) is float and setting.is_integer():
                fields[name] = int(setting)
    check_sizes(f"{path}: model_args", model)
    try:
        return from_dict(tables, where=str(path))
    except UserError as error:
        raise UserError(f"{str(error)[:300]}: save the checkpoint again with another value") from None


def _unusable(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}: {WITHOUT_OPTIMIZER}")


def _read_groups(path: Path, optimizer: Any) -> list[dict[str, Any]]:
    """AdamW's two parameter groups, after a look at everything in them that our AdamW does not have."""
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not isinstance(optimizer.get("state"), dict):
        raise _unusable(path, "optimizer has no param_groups and state, as AdamW's state_dict() has")
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise _unusable(path, "optimizer has a parameter group without params")
        betas = group.get("betas")
        if not isinstance(betas, tuple | list) or [type(beta) for beta in betas] != [float, float]:
            raise _unusable(path, f"the optimizer's betas are {shown(betas)}, AdamW has two numbers")
        if not all(type(group.get(key)) in (int, float) for key in ("eps", "weight_decay")):
            raise _unusable(path, "optimizer has a group without eps or weight_decay, so it is not AdamW")
        for key, usual in SWITCHES.items():
            if group.get(key, usual) != usual:
                raise _unusable(path, f"optimizer has {key} {shown(group[key])}, which is not supported")
    for key in ("betas", "eps"):
        if any(group[key] != groups[0][key] for group in groups):
            raise _unusable(path, f"the optimizer's groups differ in {key}, and here all share one")
    if any(group["weight_decay"] != 0 for group in groups[1:]):
        raise _unusable(path, "the group of vectors has a weight_decay other than 0, and here vectors never decay")
    return groups


def _groups(model: ModelConfig) -> tuple[list[str], list[str]]:
    """nanoGPT's parameter groups: matrices decay, vectors do not; each in the order of the model."""
    shapes = parameter_shapes(model)
    decayed = [name for name, shape in shapes.items() if len(shape) >= 2]
    return decayed, [name for name in shapes if name not in decayed]


def _read_moments(
    file: TorchFile, optimizer: dict[str, Any], groups: list[dict[str, Any]], contents: Contents
) -> tuple[dict[str, Tensor], int]:
    """Both moments of every parameter and how many updates made them; nothing if the optimiser has not made one.

    In float16 the loss is scaled, and an update whose gradients overflow is skipped, for all parameters alike: so AdamW
    may have made fewer updates than there were iterations, and never more.
    """
    state, expected = optimizer["state"], _groups(contents.model)
    if not state:
        return {}, 0
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(names) for names in expected]:
        wanted = f"{[len(names) for names in expected]} (matrices, then vectors)"
        raise _unusable(file.path, f"the optimizer has parameter groups of {sizes[:9]}, this model's have {wanted}")
    indices = [index for group in groups for index in group["params"]]
    superfluous = sorted(shown(index) for index in state if index not in indices)
    if superfluous:
        raise _unusable(file.path, f"unexpected optimizer state of parameter {superfluous[0]}")
    if len(set(map(str, indices))) < len(indices):
        raise _unusable(file.path, "the optimizer lists a parameter twice")
    moments: dict[str, Tensor] = {}
    counts: dict[float, str] = {}
    for index, name in zip(indices, (name for names in expected for name in names), strict=True):
        own = contents.own_name(name)
        entry = state.get(index) if isinstance(index, int) else None
        if not isinstance(entry, dict) or "step" not in entry:
            raise _unusable(file.path, f"optimizer has no state with a step for tensor {own}")
        done = entry["step"]
        done = file.scalar(done, f"step of {own}") if isinstance(done, StoredTensor) else done
        if type(done) not in (int, float) or not 0 <= done <= contents.step or done != int(done):
            raise _unusable(file.path, f"AdamW made {shown(done)} steps for tensor {own}, iter_num is {contents.step}")
        counts.setdefault(done, own)
        for moment in MOMENTS:
            if not isinstance(entry.get(moment), StoredTensor):
                raise _unusable(file.path, f"optimizer has no {moment} for tensor {own}")
            moments[f"{moment}.{name}"] = file.tensor(entry[moment], f"{moment} of {own}")
    if len(counts) > 1:
        said = " and ".join(f"{int(done):,} steps for tensor {own}" for done, own in sorted(counts.items())[:2])
        raise _unusable(file.path, f"AdamW made {said}: one optimiser updates all of them")
    return moments, int(next(iter(counts)))


def _find_tokenizer(folder: Path, config: RunConfig) -> FoundTokenizer:
    """nanoGPT's own rule: meta.pkl where there is one, else GPT-2's vocabulary."""
    for meta in (folder / META, Path("data") / config.data.dataset / META):
        try:
            if meta.is_file() and (tokenizer := read_meta(meta)).vocab_size == config.model.vocab_size:
                return tokenizer, (f"tokenizer: the characters in {meta}",)
        except UserError as error:
            return None, (f"no tokenizer: {error}",)
    if config.model.vocab_size >= GPT2_VOCABULARY:
        try:
            return Gpt2Tokenizer(), ()
        except UserError as error:
            return None, (f"no tokenizer: {error}",)
    where = f"data/{config.data.dataset}/{META} from nanoGPT's folder"
    return None, (f"no tokenizer: to sample, repeat with --tokenizer {where}",)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A ckpt.pt (and a meta.pkl for characters) that nanoGPT's sample.py and train.py take unchanged.

    Raises:
        UserError: nanoGPT's model cannot be this one.
    """
    config = contents.config
    assert config is not None
    model = config.model
    refuse_all_but_gpt2(model, "nanoGPT")
    refuse_activation(model, "gelu", "nanoGPT", options.other_gelu)
    refuse_fields(model, "nanoGPT", {"tied_head": True, "norm_eps": 1e-5})
    if contents.moments and (config.optim.optimizer != "adamw" or config.optim.ema_decay):
        what = "ema_decay" if config.optim.ema_decay else f"optimizer {config.optim.optimizer}"
        raise UserError(f"nanoGPT has no {what}, only adamw: {WITHOUT_OPTIMIZER}")
    names = {name: translated(name, GPT2) for name in parameter_shapes(model)}
    stored: dict[str, Tensor] = {names[name]: contents.tensors[name] for name in names}
    groups = _groups(model)
    state = {}
    for index, name in enumerate([name for group in groups for name in group] if contents.moments else ()):
        entry = {moment: contents.moments[f"{moment}.{name}"] for moment in MOMENTS}
        entry["step"] = from_array(np.array(contents.step, "<f4"), "F32")
        state[index] = {key: f"{index} {key}" for key in entry}
        stored |= {f"{index} {key}": tensor for key, tensor in entry.items()}
    planned = plan(stored)
    weights = {name: planned[name] for name in names.values()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    value = {
        "model": weights,
        "optimizer": {
            "state": {i: {key: planned[name] for key, name in entry.items()} for i, entry in state.items()},
            "param_groups": _param_groups(config, groups),
        },
        "model_args": {key: getattr(model, key) for key in MODEL_ARGS},
        "iter_num": contents.step,
        "best_val_loss": NO_LOSS if contents.best_val_loss is None else contents.best_val_loss,
        "config": _write_config(config),
    }
    if path.suffix != ".pt":
        path.mkdir()
    write_torch_file(path if path.suffix == ".pt" else path / FILE, value, stored, options.progress)
    return _write_tokenizer(options.tokenizer, path, config)


def _write_tokenizer(tokenizer: Tokenizer | None, path: Path, config: RunConfig) -> tuple[str, ...]:
    """A meta.pkl for characters; returns what sample.py needs to decode as this model was trained."""
    notes: tuple[str, ...] = ()
    if config.optim.schedule == "wsd":
        notes = ("nanoGPT has no wsd schedule: its train.py would continue with a cosine",)
    if isinstance(tokenizer, Gpt2Tokenizer):
        return notes
    if not isinstance(tokenizer, CharTokenizer) or path.suffix == ".pt":
        return (*notes, "no meta.pkl: without one nanoGPT's sample.py takes every model for one of GPT-2's tokens")
    tokens = [*tokenizer.characters, *([END_OF_TEXT] if tokenizer.end_of_text is not None else [])]
    meta = {
        "vocab_size": tokenizer.vocab_size,
        "itos": dict(enumerate(tokens)),
        "stoi": {token: i for i, token in enumerate(tokens)},
    }
    (path / META).write_bytes(write_pickle(meta))
    return (*notes, f"to sample, copy {META} to data/{config.data.dataset}/ in nanoGPT's folder")


def _write_config(config: RunConfig) -> dict[str, Any]:
    tables = to_dict(config)
    settings = {key: tables[table][name] for key, (table, name) in CONFIG.items()}
    settings["lr_decay_iters"] = settings["lr_decay_iters"] or config.train.max_steps
    settings["decay_lr"] = config.optim.schedule != "constant"
    return settings | {key: getattr(config.model, key) for key in MODEL_ARGS if key != "vocab_size"}


def _param_groups(config: RunConfig, groups: tuple[list[str], list[str]]) -> list[dict[str, Any]]:
    """Hyper-parameters as torch.optim.AdamW keeps them, in two groups."""
    optim = config.optim
    common = {"lr": optim.learning_rate, "betas": (optim.beta1, optim.beta2), "eps": optim.adam_eps}
    switches = {**SWITCHES, "capturable": False, "differentiable": False, "foreach": None, "fused": None}
    first = len(groups[0])
    indices = (list(range(first)), list(range(first, first + len(groups[1]))))
    decays = (optim.weight_decay, 0.0)
    return [
        {**common, "weight_decay": decay, **switches, "params": params}
        for decay, params in zip(decays, indices, strict=True)
    ]


FORMAT = Format(
    name="nanoGPT checkpoint",
    order=70,
    recognise=recognise,
    read=read,
    write=write,
    target="nanogpt",
    files=frozenset({FILE, META}),
    single_file=".pt",
    holds_optimizer=True,
)
