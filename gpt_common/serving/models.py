"""The models that a server has: what was named on its command line, and all checkpoints of the runs among it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_common.data.conversations.reading import Message
from gpt_common.data.conversations.templates import own_template
from gpt_common.data.conversations.turns import has_turns
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.serving.refusals import Refused, wrong
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest, base_of
from gpt_common.training.pretrained import local_run
from gpt_common.training.source import Source, open_source


@dataclass(eq=False)
class Served:
    """One model; what is large of it is opened when it is asked for."""

    name: str
    """As clients say it."""
    checkpoint: Path
    manifest: Manifest
    base: Served | None = None
    """Of an adapter."""
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)
    """By fingerprint, those of all models of a server: the checkpoints of a run have one, and keep it once."""

    @cached_property
    def source(self) -> Source:
        """Shape and tokenizer; raises UserError where the checkpoint is damaged."""
        found = open_source(self.checkpoint, latest=False)
        own = self.tokenizers.setdefault(found.tokenizer.fingerprint, found.tokenizer)
        return replace(found, tokenizer=own)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.source.tokenizer

    @property
    def block_size(self) -> int:
        """Tokens that a prompt may have."""
        return self.manifest.run_config.model.block_size

    @cached_property
    def longest_prompt(self) -> int:
        """Bytes of text beyond which no prompt fits the block, whatever its tokens: it need not be encoded."""
        tokenizer = self.tokenizer
        return self.block_size * max(len(tokenizer.decode_bytes([token])) for token in tokenizer.known)

    @cached_property
    def ends(self) -> set[int]:
        """Tokens that end an answer; asked for at every token, so found once."""
        return self.tokenizer.ends

    @property
    def chats(self) -> bool:
        """Whether its vocabulary has what divides a conversation."""
        return has_turns(self.tokenizer)

    @property
    def has_other_template(self) -> bool:
        """Whether it chats, and the template beside it is not the one that its turns are written by."""
        with contextlib.suppress(UserError):  # a damaged one is told of when it is asked for
            return self.chats and own_template(self.checkpoint / TOKENIZER_FILE) is not None
        return False

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the answer begins, by ChatML as conversations were prepared.

        What is said is encoded as text, the names of special tokens in it included: nobody ends a turn by naming its
        end.

        Raises:
            Refused: there is no template; a character outside the vocabulary.
        """
        if not self.chats:
            raise Refused(
                400,
                f"{self.name} has no chat template: it was not fine-tuned on conversations, its vocabulary has no "
                f"{TURN}; use /v1/completions",
                param="model",
                code="no_chat_template",
            )
        turn, end = (self.tokenizer.specials[name] for name in (TURN, END))
        ids: list[int] = []
        for i, said in enumerate(messages):
            ids += [turn, *self.encode(f"{said.role}\n{said.content}", f"messages[{i}].content"), end]
            ids += self.encode("\n", f"messages[{i}].content")
        return [*ids, turn, *self.encode("assistant\n", "messages")]

    def encode(self, text: str, param: str, *, written: bool = False) -> list[int]:
        """Token ids of a text; raises Refused where the vocabulary cannot spell it.

        Args:
            written: the names of special tokens in it are these tokens.
        """
        try:
            return self.tokenizer.encode_written(text) if written else self.tokenizer.encode(text)
        except UserError as error:
            raise wrong(param, f"`{param}`: {error}") from None

    def details(self) -> dict[str, Any]:
        """What `/v1/models` says beyond OpenAI's own fields."""
        model = self.manifest.run_config.model
        said: dict[str, Any] = {
            "step": self.manifest.step,
            "val_loss": self.manifest.val_loss,
            "block_size": model.block_size,
            "adapter": self.base is not None,
        }
        with contextlib.suppress(UserError):  # a damaged one is listed all the same, and refused when it is asked for
            said |= {"chat": self.chats, "prompt": self.source.prompt}
        return said


@dataclass
class Library:
    """All models of a server, the one that is meant if none is named first."""

    models: list[Served]
    by_name: dict[str, Served] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {model.name: model for model in self.models}

    def find(self, name: str | None) -> Served:
        """The model of a name; raises Refused."""
        if name is None:
            return self.models[0]
        if name not in self.by_name:
            shown = ", ".join(list(self.by_name)[:8]) + (", ..." if len(self.by_name) > 8 else "")
            raise Refused(
                404,
                f"there is no model {name[:100]!r} here; there is {shown}",
                param="model",
                code="model_not_found",
            )
        return self.by_name[name]


def open_library(paths: Sequence[Path], *, latest: bool) -> Library:
    """The models behind the paths of a command line. A run gives its best checkpoint by its name, and each of its
    checkpoints by RUN/step-N.

    Raises:
        UserError: one of them is no checkpoint or run, or a damaged one.
    """
    models: list[Served] = []
    names: set[str] = set()
    tokenizers: dict[str, Tokenizer] = {}
    for given in paths:
        path = local_run(given)
        chosen = find_checkpoint(path, prefer="latest" if latest else "best")
        is_run = chosen.resolve() != path.resolve()
        run = _run_name(chosen)
        name = _free(run if is_run else _place_name(chosen), names)
        first = _served(name, chosen, tokenizers)
        _ = first.source  # what was named must be sound; of its neighbours that is asked when they are
        models.append(first)
        for checkpoint in sorted(chosen.parent.glob("step-*")) if is_run else ():
            other = f"{name}/{checkpoint.name}"
            with contextlib.suppress(UserError):
                models.append(_served(_free(other, names), checkpoint, tokenizers))
    return Library(models)


def _served(name: str, checkpoint: Path, tokenizers: dict[str, Tokenizer]) -> Served:
    manifest = read_manifest(checkpoint)
    base = base_of(checkpoint, manifest)
    beside = None if base is None else _served(f"{name}:base", base, tokenizers)
    return Served(name, checkpoint, manifest, beside, tokenizers)


def _run_name(checkpoint: Path) -> str:
    place = checkpoint.resolve()
    return place.parent.parent.name if place.parent.name == "checkpoints" else place.name


def _place_name(checkpoint: Path) -> str:
    place = checkpoint.resolve()
    return f"{_run_name(checkpoint)}/{place.name}" if place.parent.name == "checkpoints" else place.name


def _free(name: str, names: set[str]) -> str:
    """A name that no other model has."""
    found, number = name, 2
    while found in names:
        found, number = f"{name}-{number}", number + 1
    names.add(found)
    return found
