"""For notebooks: a trained model in one line, and its text in another. `train` is torch_gpt/train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from gpt_common.commands import SampleSettings
from gpt_common.config import TrainConfig
from gpt_common.keyed import draws
from gpt_common.sampling import encode_prompt, until_end
from gpt_common.structured import Form, compile_form
from gpt_common.training.source import open_source
from torch_gpt import sample
from torch_gpt.checkpoint import build_model
from torch_gpt.device import compute_dtype, select_device
from torch_gpt.model import GPT


def load(
    path: str | Path,
    *,
    latest: bool = False,
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> GPT:
    """The model of a checkpoint or a run (then its best), with its `config` and its `tokenizer`.

    Args:
        latest: of a run folder, take the latest checkpoint and not the best.

    Raises:
        UserError: no checkpoint there, or a damaged one; the device is not present.
    """
    source = open_source(Path(path), latest=latest)
    place = select_device(device)
    model = build_model(source.checkpoint, source.model, compute_dtype(TrainConfig(dtype=dtype), place)).to(place)
    model.tokenizer = source.tokenizer
    return model


@overload
def generate(model: GPT, prompt: str, *, seed: int = ..., form: Form | None = ..., **settings: Any) -> str: ...
@overload
def generate(model: GPT, prompt: Sequence[int], *, seed: int = ..., **settings: Any) -> list[int]: ...
def generate(
    model: GPT, prompt: str | Sequence[int], *, seed: int = 1337, form: Form | None = None, **settings: Any
) -> str | list[int]:
    """The prompt and how the model goes on: text for a text, token ids for token ids.

    Args:
        seed: key of the random numbers.
        form: what the new text is held to, as `Form("regex", "yes|no")`; of a text for a text.
        settings: max_new_tokens, temperature, top_k, top_p, as `python -m torch_gpt.sample` has them.

    Raises:
        UserError: a text that the model's vocabulary cannot spell, or that its block cannot hold; a form that cannot
            be kept to.
    """
    if not isinstance(prompt, str):
        return [*prompt, *sample.generate(model, prompt, SampleSettings(**settings), draws(seed, 0))]
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer: give token ids, or take a model that `load` returned")
    ids = encode_prompt(prompt, model.tokenizer, model.config.block_size)
    known = model.tokenizer.vocab_size
    constraint = None if form is None else compile_form(form, model.tokenizer).begin()
    new = sample.generate(model, ids, SampleSettings(**settings), draws(seed, 0), known, constraint)
    return model.tokenizer.decode([*ids, *until_end(new, model.tokenizer)])
