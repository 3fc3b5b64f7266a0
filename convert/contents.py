"""What a checkpoint holds, whatever its format: the form in which formats hand it to one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.formats.names import ANGLE_BUFFERS, MASK_BUFFERS, inverted, translate, without_prefixes
from convert.storage.grids import together
from convert.storage.pickles import shown
from convert.storage.tensors import COPY_AGAIN, Rounding, Tensor, cast, same
from gpt_common.adapting.quantisation import Grids
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.conversations.written import Template
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.training.manifest import all_finite

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
MOMENTS = ("exp_avg", "exp_avg_sq")
FoundTokenizer = tuple[Tokenizer | None, tuple[str, ...]]
"""A tokenizer, if there is one, and what there is to say about it."""
SIZES = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
OTHER_TARGET = "choose another --to, or keep the run as it is"
LARGEST_SIZE = 1 << 24
"""No model is larger in any direction; what a file says beyond it is refused before anything is computed from it."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checkpoint, not yet read: names are ours, values the file's."""

    path: Path
    format: str = ""
    """What the file is, for people, and whose tensors it holds: both as its format declares them."""
    family: str = ""
    config: RunConfig | None = None
    """None where the source does not say enough (a bare state dict)."""
    tensors: dict[str, Tensor]
    """Weights by canonical name, in the file's layout turned into ours: matrices are (out, in)."""
    words: dict[str, Tensor] = field(default_factory=dict)
    """Of its quantised matrices words, scales and biases as they are in the file; `tensors` has what they stand for."""
    grids: Grids = field(default_factory=dict)
    """Those matrices."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """exp_avg.<name> and exp_avg_sq.<name>, momentum.<name>; empty if there is no optimiser state."""
    step: int = 0
    """Optimiser updates done."""
    tokens: int | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    dataset: dict[str, Any] | None = None
    base: Path | None = None
    """Of an adapter: the checkpoint that it stands beside. `tensors` are its own, and no whole model's."""
    prompt: str | None = None
    """What samples start from if none is given."""
    find_tokenizer: Callable[[], FoundTokenizer] = lambda: (None, ("no tokenizer",))
    """Reads the tokenizer, which takes longer than all headers."""
    find_template: Callable[[], Template | None] = lambda: None
    """Reads the template of conversations, if there is one that is not ours."""
    key_map: Mapping[str, str] = field(default_factory=dict)
    """Our names and the format's; empty where they are ours."""
    names: dict[str, str] = field(default_factory=dict)
    """What the file itself calls each tensor, prefixes and all."""
    published: Mapping[str, str] | None = None
    """Name and commit on the hub, if it came from there."""
    described_in: str = ""
    """Where the file says which model it is, for messages."""
    unknown: dict[str, Tensor] = field(default_factory=dict)
    """Tensors whose names mean nothing here."""
    notes: tuple[str, ...] = ()
    """What was left out or assumed."""
    verify: Callable[[], None] = lambda: None
    """Checks whatever has not been read; raises UserError. Called before a conversion is committed."""

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, once `checked` has found that there is one."""
        assert self.config is not None
        return self.config.model

    @property
    def stored(self) -> dict[str, Tensor]:
        """What a file of it holds that keeps its words."""
        return together(self.tensors, self.words, self.grids)

    def own_name(self, name: str) -> str:
        """What the file calls a tensor, or would call it."""
        return self.names.get(name) or translate(name, self.key_map) or name


def with_dtype(contents: Contents, dtype: str | None) -> tuple[Contents, Rounding]:
    """The same with weights cast to `dtype` (None keeps theirs), and what that changes, once they have been read.

    Raises:
        UserError: a weight is float64 and no dtype was asked for.
    """
    rounding = Rounding()
    tensors = dict(contents.tensors)
    for name, tensor in tensors.items():
        if dtype is not None:
            # A bias is moved in steps of 1e-3 and decides between experts: half precision would lose them.
            kept = "F32" if name.endswith("routing_bias") else dtype
            tensors[name] = cast(contents.own_name(name), tensor, kept, rounding)
        elif tensor.dtype == "F64":
            raise UserError(
                f"{contents.path}: tensor {contents.own_name(name)} is float64, which no format here holds: "
                "add --dtype float32 to round it"
            )
    words = dict(contents.words)
    for name, tensor in words.items():
        if dtype is not None and tensor.dtype != "U32":
            words[name] = cast(contents.own_name(name), tensor, dtype, rounding)
    moments = {name: cast(name, tensor, "F32", Rounding()) for name, tensor in contents.moments.items()}
    return dataclasses.replace(contents, tensors=tensors, words=words, moments=moments), rounding


def finite(contents: Contents) -> Contents:
    """The same, in which reading a tensor that holds NaN or infinity raises a UserError with the tensor's name."""

    def read_as_finite(what: str, tensor: Tensor) -> Tensor:
        def blocks() -> Iterator[bytes]:
            for block in tensor.blocks():
                if not all_finite(tensor.dtype, block):
                    raise UserError(
                        f"{contents.path}: {what} holds NaN or infinity: the run had diverged when it was saved; "
                        "take an earlier checkpoint"
                    )
                yield block

        return dataclasses.replace(tensor, blocks=blocks)

    own = contents.own_name
    tensors = {name: read_as_finite(f"tensor {own(name)}", tensor) for name, tensor in contents.tensors.items()}
    words = {name: read_as_finite(f"tensor {own(name)}", tensor) for name, tensor in contents.words.items()}
    moments = {}
    for key, tensor in contents.moments.items():
        moment, _, name = key.partition(".")
        moments[key] = read_as_finite(f"{moment} of tensor {own(name)}", tensor)
    return dataclasses.replace(contents, tensors=tensors, words=words, moments=moments)


def by_name(path: Path, raw: Mapping[str, Tensor], key_map: Mapping[str, str]) -> Contents:
    """The tensors of a file under our names: prefixes stripped, mask buffers left out, layouts untouched.

    Raises:
        UserError: two names mean the same tensor.
    """
    contents = Contents(path=path, tensors={}, key_map=key_map, names={}, unknown={})
    to_ours, names = inverted(key_map), contents.names
    masks = angles = 0
    for name, tensor in raw.items():
        bare = without_prefixes(name)
        if MASK_BUFFERS.fullmatch(bare) and tensor.shape[:2] in ((), (1, 1)):
            masks += 1
            continue
        if ANGLE_BUFFERS.fullmatch(bare):
            angles += 1
            continue
        # GPT2Model and LlamaModel are saved without the name that the model with a head gives them.
        full = (f"{base}{bare}" for base in ("", "transformer.", "model."))
        ours = next((found for candidate in full if (found := translate(candidate, to_ours)) is not None), None)
        if ours is None:
            contents.unknown[name] = tensor
        elif ours in contents.tensors:
            raise UserError(f"{path}: tensors {names[ours]} and {name} mean the same parameter: remove one of them")
        else:
            contents.tensors[ours], names[ours] = tensor, name
    notes: tuple[str, ...] = (f"{masks} causal mask buffers left out: they are not weights",) if masks else ()
    notes += (f"{angles} rotary buffers left out: they follow from the configuration",) if angles else ()
    return dataclasses.replace(contents, notes=notes)


def drop_tied_head(contents: Contents) -> None:
    """Remove an output layer that is a copy of the token embedding.

    Raises:
        UserError: it is no copy.
    """
    head, embedding = contents.tensors.pop("head.weight", None), contents.tensors.get("token_embedding.weight")
    if head is not None and embedding is not None and not same(head, embedding):
        own = contents.own_name
        raise UserError(
            f"{contents.path}: {own('head.weight')} differs from {own('token_embedding.weight')}, "
            "but they are one tensor in this model: save it again, or set tie_word_embeddings to false in config.json"
        )


def check_sizes(where: str, fields: Mapping[str, Any]) -> None:
    """Refuse sizes beyond all models before anything is computed from them.

    Raises:
        UserError: names the field.
    """
    for key, value in fields.items():
        if isinstance(value, int) and abs(value) >= LARGEST_SIZE:
            raise UserError(f"{where}: {key} is {shown(value)}, which no model has: {COPY_AGAIN}")


def shape_of_model(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `ModelConfig` that shapes settle; those whose tensors are missing are left out."""
    fields: dict[str, Any] = {}
    if "token_embedding.weight" in tensors and len(tensors["token_embedding.weight"].shape) == 2:
        fields["vocab_size"], fields["n_embd"] = tensors["token_embedding.weight"].shape
    if "position_embedding.weight" in tensors and len(tensors["position_embedding.weight"].shape) == 2:
        fields["block_size"] = tensors["position_embedding.weight"].shape[0]
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if layers:
        fields["n_layer"] = len(layers)
    if not any(name.endswith(".router.weight") for name in tensors):  # routed experts have no biases in any model
        fields["bias"] = any(".feed_forward." in name and name.endswith(".bias") for name in tensors)
    fields["tied_head"] = "head.weight" not in tensors
    fields["head_bias"] = "head.bias" in tensors
    return fields


def refuse_fields(model: ModelConfig, holder: str, fields: Mapping[str, object], advice: str = OTHER_TARGET) -> None:
    """Refuse a target that cannot hold a model.

    Args:
        holder: the target, for people.
        fields: what the target computes, by field of the configuration; a tuple where there is a choice.
        advice: what to do instead.

    Raises:
        UserError: names the first field that the target does not have.
    """
    for name, values in fields.items():
        values = values if isinstance(values, tuple) else (values,)
        found = getattr(model, name)
        if found not in values:
            known = " or ".join(map(str, values))
            raise UserError(f"the model's {name} is {found}, and {holder} has only {known}: {advice}")


def gpt2_fields(model: ModelConfig) -> dict[str, object]:
    """What makes a model one of GPT-2's family, as `refuse_fields` takes it."""
    return {
        "attention": "multi_head",
        "norm": "layernorm",
        "final_norm": True,
        "positions": "learned",
        "qk_norm": False,
        "attention_bias": (True, False) if model.bias else False,
        "head_size": (0, model.n_embd // model.n_head) if model.n_embd % model.n_head == 0 else 0,
        "feed_forward": ("gelu", "gelu_tanh"),
        "feed_forward_width": (0, 4 * model.n_embd),
    }


def refuse_all_but_gpt2(model: ModelConfig, holder: str) -> None:
    """Refuse to write another family as GPT-2.

    Raises:
        UserError: names the first field that is not GPT-2's.
    """
    refuse_fields(model, holder, gpt2_fields(model))


def refuse_activation(model: ModelConfig, computed: str, target: str, allowed: bool) -> None:
    """Refuse a target that computes another GELU than the model was trained with, unless that was asked for.

    Raises:
        UserError: says how to go on.
    """
    if model.feed_forward != computed and not allowed:
        raise UserError(
            f"the model was trained with {model.feed_forward} and {target} computes {computed}: its logits would "
            "differ by about 1e-3. Choose another --to, or accept that with --other-gelu"
        )
