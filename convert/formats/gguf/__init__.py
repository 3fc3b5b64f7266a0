"""GGUF, the one file that llama.cpp, Ollama and LM Studio load: weights, settings and tokenizer.

What it computes with is decided by the architecture it names (architectures.py), what a text becomes by its vocabulary
(vocabulary.py). Matrices keep their dtype or are packed into blocks; norms, biases, positions and routers stay float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.contents import Contents, by_name, refuse_activation
from convert.formats.format import Format
from convert.formats.gguf import vocabulary
from convert.formats.gguf.architectures import (
    GPT2,
    LLAMA,
    Architecture,
    architecture_for,
    architecture_in,
    in_halves,
    side_by_side,
)
from convert.formats.gguf.latents import joined
from convert.formats.gguf.modelfile import NAME as MODELFILE
from convert.formats.gguf.modelfile import modelfile
from convert.formats.names import translated
from convert.options import ReadOptions, WriteOptions
from convert.storage.gguf_file import count_of, is_packed, mean_row, read_gguf, write_gguf
from convert.storage.gguf_header import KINDS, Kind, Value, is_gguf
from convert.storage.stacks import below, first_rows, reordered
from convert.storage.tensors import WEIGHT_DTYPES, Rounding, Tensor, cast, zeros
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.errors import UserError
from gpt_common.files import write_atomically
from gpt_common.network.parameters import parameter_shapes, tensor_shapes

FILE, SUFFIX = "model.gguf", ".gguf"
ROWS = ("token_embedding.weight", "head.weight")
"""Tensors with a row for every token."""
NO_BIASES = "mlx_torch_gpt.bias"
"""false: the biases of a GPT-2 are zeros, because the model had none."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""`general.file_type`: what most of the numbers are."""
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What `--dtype` offers besides floats: ggml's blocks of 32 numbers, of 8 to 4 bits each and a scale."""


def recognise(path: Path) -> bool:
    """A file that begins as one, or the folder that `write` makes, which has no config.json as others' folders have."""
    file = _file(path)
    return file.is_file() and is_gguf(file) and not (path / "config.json").is_file()


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration, tokenizer and template of conversations.

    Raises:
        UserError: the file is damaged, or of an architecture or with a setting that our model does not have.
    """
    file = _file(path)
    header, raw = read_gguf(file)
    settings = header.settings
    architecture = architecture_in(file, settings)
    # exp_probs_b is the one buffer of ours whose name has a kind behind it there.
    renamed = {name.replace("exp_probs_b.bias", "exp_probs_b"): tensor for name, tensor in joined(raw).items()}
    contents = by_name(file, renamed, architecture.names)
    tensors = contents.tensors
    model = architecture.describe(file, settings, tensors)
    notes = list(contents.notes)
    if packed := {kind: n for kind, n in count_of(header.tensors).items() if is_packed(KINDS[kind])}:
        said = " and ".join(f"{n:,} numbers in {kind.lower()}" for kind, n in packed.items())
        notes.append(f"{said}: read as float32")
    if architecture is LLAMA:
        _turn(model, tensors, in_halves(model.key_size))
    if architecture is GPT2 and settings.get(NO_BIASES) is False:
        model = _without_biases(file, model, tensors)
    own = settings.get(vocabulary.OWN_ROWS)
    if type(own) is int and 0 < own < model.vocab_size:
        notes.append(f"row {own} left out: it was added for the end of the text")
        for name in ROWS:
            if name in tensors and tensors[name].shape[:1] == (model.vocab_size,):
                tensors[name] = first_rows(tensors[name], own)
        model = dataclasses.replace(model, vocab_size=own)
    return dataclasses.replace(
        contents,
        config=RunConfig(model=model),
        find_tokenizer=lambda: vocabulary.read(file, settings),
        find_template=lambda: vocabulary.template_in(settings),
        described_in="its header",
        notes=tuple(notes),
    )


def _turn(model: ModelConfig, tensors: dict[str, Tensor], order: list[int]) -> None:
    """Put the rows of queries and keys, head by head, into another order."""
    for name in [name for name in tensors if name.split(".")[-2:-1] in (["q_proj"], ["k_proj"])]:
        if tensors[name].shape[0] % model.key_size == 0:  # others are refused for their shape
            tensors[name] = reordered(tensors[name], order)


def _without_biases(file: Path, model: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    for name in [name for name in tensors if name.endswith(".bias")]:
        if any(block.count(0) != len(block) for block in tensors[name].blocks()):
            raise UserError(f"{file}: {NO_BIASES} is false, and {name} is not zero: copy or download it again")
        del tensors[name]
    return dataclasses.replace(model, bias=False)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A file that llama.cpp loads; if `path` has no suffix of one, a folder with it and a Modelfile.

    Raises:
        UserError: llama.cpp cannot be this model, or has no such tokenizer.
    """
    model = contents.model
    architecture = architecture_for(model)
    settings = architecture.settings(model)
    if architecture is GPT2:
        refuse_activation(model, "gelu_tanh", "llama.cpp", options.other_gelu)
    tokens, added = vocabulary.settings_of(options.tokenizer, model.vocab_size, options.template)
    tensors = dict(contents.tensors)
    in_32_bits = {key: _rounded(value) for key, value in settings.items() if isinstance(value, float)}
    notes = [f"{key} {settings[key]} is {there} there" for key, there in in_32_bits.items() if there != settings[key]]
    if architecture is GPT2 and not model.bias:
        settings[NO_BIASES] = False
        for name, shape in parameter_shapes(dataclasses.replace(model, bias=True)).items():
            tensors.setdefault(name, zeros(shape, "F32"))
        notes.append("the model has no biases: zeros were written in their place, which changes nothing")
    if architecture is LLAMA:
        _turn(model, tensors, side_by_side(model.key_size))
    rounding = Rounding()
    kept, refused = _kept(model, architecture, tensors, options, rounding)
    if added:
        settings[f"{architecture.name}.vocab_size"] = model.vocab_size + 1
        for name in [name for name in ROWS if name in kept]:
            tensor, kind = kept[name]
            kept[name] = (_with_mean(tensor), kind)
        notes.append(
            "the tokenizer has no token that ends a text, and llama.cpp would take token 11 for it: one was added, "
            "whose row is the mean of all, so that it is never the likeliest"
        )
    if refused:
        notes.append(f"{refused} tensors in float16: their rows are no multiple of 32, as {options.dtype} needs")
    kind = max(KINDS.values(), key=lambda each: sum(t.size for t, k in kept.values() if k is each))
    file = path if path.suffix == SUFFIX else path / FILE
    if file != path:
        path.mkdir()
    general: dict[str, Value] = {
        "general.type": "model",
        "general.name": path.name.partition(".tmp-")[0].removesuffix(SUFFIX),
    }
    general |= {"general.file_type": FILE_TYPES[kind.name]} | (
        {"general.quantization_version": 2} if is_packed(kind) else {}
    )
    named = {_named(name, architecture.names): each for name, each in kept.items()}
    write_gguf(file, settings | general | tokens, named, options.progress)
    if options.dtype in WEIGHT_DTYPES.values():
        notes.append(f"cast to {options.dtype}: {rounding}")
    if file != path:
        (path / MODELFILE).write_text(_modelfile(MODELFILE, contents, FILE, options), encoding="utf-8")
    return tuple(notes)


def _rounded(number: float) -> float:
    """The shortest number that is the same in float32, which settings are."""
    return float(str(np.float32(number)))


def _named(name: str, names: Mapping[str, str]) -> str:
    foreign = translated(name, names)
    return f"{foreign}.bias" if foreign.endswith("exp_probs_b") else foreign


def _kept(
    model: ModelConfig,
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    options: WriteOptions,
    rounding: Rounding,
) -> tuple[dict[str, tuple[Tensor, Kind]], int]:
    """Every tensor in the order of the model as it will be stored, and how many could not be as `--dtype` asks."""
    floats = {people: ours for ours, people in WEIGHT_DTYPES.items()}
    wanted = options.dtype and floats.get(options.dtype, options.dtype.upper())
    kept: dict[str, tuple[Tensor, Kind]] = {}
    refused = 0
    shapes = tensor_shapes(dataclasses.replace(model, bias=True) if architecture is GPT2 else model)
    for name in shapes:
        tensor = tensors[name]
        whole = len(tensor.shape) == 1 or name.startswith("position_embedding") or ".router." in name
        form = "F32" if whole else wanted or tensor.dtype
        if tensor.shape[-1] % KINDS[form].elements:
            form, refused = "F16", refused + 1
        kind = KINDS[form]
        kept[name] = (cast(name, tensor, "F32" if is_packed(kind) else form, rounding), kind)
    return kept, refused


def _with_mean(tensor: Tensor) -> Tensor:
    """With one more row, the mean of all others; its product with anything is the mean of theirs."""
    return below([tensor, cast("the added row", mean_row(tensor), tensor.dtype, Rounding())])


def _modelfile(name: str, contents: Contents, file: str, options: WriteOptions) -> str:
    tokenizer, template = options.tokenizer, options.template
    ends = [] if tokenizer is None else vocabulary.names_of_ends(tokenizer, template)
    return modelfile(name, file, contents.model.block_size, tokenizer, ends, template)


def write_beside(contents: Contents, file: Path, options: WriteOptions) -> tuple[str, ...]:
    """The Modelfile of a file that is alone; one that is there and not this file's own is left as it is.

    Raises:
        OSError: it cannot be written.
    """
    for place in (file.with_name(MODELFILE), file.with_name(f"{file.stem}.{MODELFILE}")):
        ours = options.overwrite and place.is_file() and f"FROM ./{file.name}\n" in place.read_text(errors="replace")
        if ours or not place.exists():
            write_atomically(place, _modelfile(place.name, contents, file.name, options))
            return (f"for Ollama: {place}",)
    return (f"no Modelfile written: {place} is there already",)


FORMAT = Format(
    name="GGUF file",
    order=15,
    recognise=recognise,
    family="the architecture that the file names",
    read=read,
    write=write,
    target="gguf",
    commands=(),
    files=frozenset({FILE, MODELFILE}),
    single_file=SUFFIX,
    blocks=BLOCKS,
    beside=write_beside,
)
