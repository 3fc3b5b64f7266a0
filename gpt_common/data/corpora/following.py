"""A preparation that is followed: its tokens as one stream, while it runs and when it is done.

The tokens of a hub's data set are the same in the shards of a preparation (work.py) as in the dataset that it ends in,
and both have the SHA-256 of each shard, which is compared when one is read. So a stream is what is prepared, wherever
it lies by now: no file is kept open, and when the dataset has taken the place of the shards, it is read.

The first tokens of the first shard are for validation, in whole documents; all that come behind them are trained on,
those too that the finished dataset keeps for its own validation.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np

from gpt_common.data.corpora.cutting import DEFAULT_SHARE, cut_at_end_of_text
from gpt_common.data.corpora.ids import parts_of
from gpt_common.data.corpora.work import (
    COMMAND,
    PLANNED,
    Finished,
    is_held,
    read_plan,
    read_record,
    shard_path,
    work_folder,
)
from gpt_common.data.dataset import BUILT_INS, Dataset, check_name, read_meta
from gpt_common.data.tokenizers import Tokenizer, default_prompt, load_tokenizer
from gpt_common.data.tokenizers.tokenizer import sha256_of
from gpt_common.data.writer import SPLITS, TokenIds, dtype_of_ids, entropy
from gpt_common.errors import UserError
from gpt_common.files import open_file

POLL_SECONDS = 1.0
"""Between two looks for what is waited for."""
GRACE_SECONDS = 20.0
"""In which a preparation that was started at the same time should have begun."""

Plan = dict[str, Any]


class Shard(NamedTuple):
    """What is known of a shard that is finished."""

    tokens: int
    sha256: str


class Ended(NamedTuple):
    """A preparation that has become a dataset."""

    plan: Plan
    shards: list[Shard]
    parts: tuple[int, int]
    """Tokens of its two splits, which are the stream one after the other."""


class Preparation:
    """The tokens of one plan, in their order.

    Args:
        plan: what is prepared.

    Raises:
        UserError: from all methods: it is not what it was, or it cannot be read.
    """

    def __init__(self, name: str, data_dir: Path, plan: Plan) -> None:
        self.name, self.data_dir, self.plan = name, data_dir, plan
        self.folder, self.work = data_dir / name, work_folder(name, data_dir)
        self.shards: list[Shard] = []
        self.ended = False
        """Whether all its shards are known."""
        self.validation: TokenIds = np.empty(0, np.uint16)
        """Of the first shard, what is never trained on,"""
        self.beginning: TokenIds = self.validation
        """and what is."""
        self.tokenizer: Tokenizer
        self._tokens = 0
        self._parts: tuple[int, int] | None = None
        """Of the dataset, once it is read."""
        self._last: tuple[int, TokenIds] = -1, self.beginning

    def __len__(self) -> int:
        """Tokens for training that are finished."""
        return self._tokens - len(self.validation)

    @property
    def grows(self) -> bool:
        """Whether a process prepares it at this moment."""
        return is_held(self.work)

    @property
    def remedy(self) -> str:
        """The command that goes on with the preparation."""
        flags = {
            "hub": self.plan["repository"],
            "name": self.name,
            "config": self.plan["config"],
            "split": None if self.plan["split"] == "train" else self.plan["split"],
            "column": None if self.plan["column"] == "text" else self.plan["column"],
            "revision": self.plan["commit"],
            "max-tokens": self.plan["max_tokens"],
            "tokenizer": self.folder if self._parts else self.work,
            "data-dir": None if self.data_dir == Path("data") else self.data_dir,
        }
        words = [word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value))]
        return f"python -m gpt_common.data prepare {shlex.join(words)}"

    def begin(self) -> None:
        """Read the tokenizer and the first shard, which is there."""
        self.tokenizer = self._its_tokenizer()
        first = self._shard(0)
        start = int(len(first) * DEFAULT_SHARE)
        cut = cut_at_end_of_text([first[start:]], start, len(first), self.tokenizer.end_of_text, opens=False)
        self.validation, self.beginning = first[:cut], first[cut:]

    def look(self) -> None:
        """Take up the shards that were finished since."""
        if self.ended:
            return
        more: list[Finished] = []
        while (record := read_record(self.work, len(self.shards) + len(more))) is not None:
            more.append(record)
        # Asked after they were read: what others prepare in its place does not become its own.
        if read_plan(self.work) == self.plan:
            self._take_up([Shard(record.tokens, record.sha256) for record in more])
            self.ended = bool(more) and more[-1].last
            if not more:
                self._take_over()
        elif not self._take_over():
            raise UserError(self._otherwise())

    def read(self, start: int, stop: int) -> TokenIds:
        """Tokens `start` to `stop` of those for training."""
        start, stop = start + len(self.validation), stop + len(self.validation)
        lengths = [shard.tokens for shard in self.shards]
        return np.concatenate(
            [self._shard(number)[first:last] for number, first, last in parts_of(lengths, start, stop)]
        )

    def _its_tokenizer(self) -> Tokenizer:
        folder = self.folder if self._parts else self.work
        try:
            tokenizer = load_tokenizer(folder / "tokenizer.json")
        except UserError:
            if self._parts or not self._take_over():
                raise
            return self._its_tokenizer()
        if tokenizer.fingerprint != self.plan["tokenizer"]:
            raise self._fault(f"{folder}/tokenizer.json is not the tokenizer that makes these tokens")
        return tokenizer

    def _shard(self, number: int) -> TokenIds:
        if self._last[0] != number:
            self._last = number, self._read(number)
        return self._last[1]

    def _read(self, number: int) -> TokenIds:
        """The tokens of a shard, every one of them checked."""
        dtype, path = dtype_of_ids(self.tokenizer.vocab_size), shard_path(self.work, number)
        try:
            data = b"".join(self._pieces(number, dtype.itemsize)) if self._parts else _bytes(path, 0, -1)
        except FileNotFoundError as error:
            if not self._parts and self._take_over():
                return self._read(number)
            raise self._fault(f"{error.filename} is gone") from None
        except OSError as error:
            raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != self.shards[number].sha256:
            where = f"shard {number} in {self.folder}" if self._parts else path
            raise self._fault(f"{where} is not what was prepared (its SHA-256 differs)")
        ids = np.frombuffer(data, dtype)
        if len(ids) != self.shards[number].tokens or (len(ids) and ids.max() >= self.tokenizer.vocab_size):
            raise self._fault(f"shard {number} of '{self.name}' holds ids that its tokenizer does not have")
        return ids

    def _pieces(self, number: int, item: int) -> list[bytes]:
        """Of the dataset: a shard lies in one split, or in both."""
        assert self._parts is not None
        start = sum(shard.tokens for shard in self.shards[:number])
        return [
            _bytes(self.folder / f"{SPLITS[split]}.bin", item * first, item * (last - first))
            for split, first, last in parts_of(self._parts, start, start + self.shards[number].tokens)
        ]

    def _take_up(self, more: list[Shard]) -> None:
        self.shards += more
        self._tokens += sum(shard.tokens for shard in more)

    def _take_over(self) -> bool:
        """Read the dataset from now on, if the preparation has become one."""
        found = _ended_or_damaged(self.folder)
        if found is None or found.plan != self.plan:
            return False
        known = len(self.shards)
        if found.shards[:known] != self.shards:
            raise UserError(
                f"{self.folder} has other tokens than the preparation had that was followed: prepare it as it was"
            )
        self._take_up(found.shards[known:])
        self.ended, self._parts = True, found.parts
        return True

    def _fault(self, what: str) -> UserError:
        if not self._parts and read_plan(self.work) != self.plan:
            return UserError(self._otherwise())
        return UserError(f"{what}: prepare it again: `{self.remedy}{' --overwrite' if self._parts else ''}`")

    def _otherwise(self) -> str:
        found = _ended_or_damaged(self.folder)
        now = read_plan(self.work) or (found.plan if found else None)
        if now is None:
            return f"{self.work} is gone, and was not finished: prepare '{self.name}' again, as it was"
        return f"'{self.name}' is prepared otherwise by now ({difference(self.plan, now)}): prepare it as it was"


def follow(name: str, data_dir: Path, say: Callable[[str], None]) -> Dataset:
    """A dataset that is being prepared, or was prepared, from a hub; waits for its first shard.

    Args:
        say: takes a line, if there is something to wait for.

    Raises:
        UserError: it is made of something else, nobody prepares it, or it is damaged.
    """
    if check_name(name) in BUILT_INS:
        raise UserError(_not_followed(name))
    work, patience, said = work_folder(name, data_dir), monotonic() + GRACE_SECONDS, False
    while (found := _begun(name, data_dir)) is None:
        if is_held(work):
            patience = monotonic() + GRACE_SECONDS
        elif monotonic() > patience:
            raise UserError(_nobody(name, data_dir))
        if not said:
            say(f"waiting for the first shard of '{name}'")
            said = True
        sleep(POLL_SECONDS)
    found.begin()
    plan = found.plan
    return Dataset(
        name=name,
        train=found.beginning,
        val=found.validation,
        tokenizer=found.tokenizer,
        fingerprint=sha256_of({**plan, "first shard": found.shards[0].sha256}),
        unigram_entropy=entropy(np.bincount(found.beginning, minlength=found.tokenizer.vocab_size)),
        floor=None,
        floor_error=None,
        prompt=default_prompt(found.tokenizer),
        stream=found,
        preparation={key: value for key, value in plan.items() if key != "files"},  # which follow from the others
    )


def difference(before: Plan, now: Plan) -> str | None:
    """In what two plans differ, in a few words; None if in nothing."""
    for key in before:
        if before[key] != now.get(key):
            return f"{key.replace('_', ' ')} {str(now.get(key))[:80]}, and was {str(before.get(key))[:80]}"
    return None


def ended_in(folder: Path) -> Ended | None:
    """What a dataset says of the preparation that has become it; None if it was made of something else.

    Raises:
        UserError: its sidecar is damaged.
    """
    if not folder.is_dir():
        return None
    meta = read_meta(folder)
    try:
        if meta["recipe"].get("command") != COMMAND:
            return None
        plan = {key: meta["recipe"][key] for key in PLANNED} | {"tokenizer": meta["tokenizer"]["fingerprint"]}
        shards = [Shard(int(each["tokens"]), str(each["sha256"])) for each in meta["sources"]]
        return Ended(plan, shards, (int(meta["splits"]["train"]["tokens"]), int(meta["splits"]["val"]["tokens"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/meta.json lacks or garbles {error}: prepare it again with --overwrite") from None


def _ended_or_damaged(folder: Path) -> Ended | None:
    """The same where a damaged dataset is to give way to what is being prepared."""
    with suppress(UserError):
        return ended_in(folder)
    return None


def _begun(name: str, data_dir: Path) -> Preparation | None:
    """The preparation, if its first shard is finished."""
    plan = read_plan(work_folder(name, data_dir))
    if plan is None:
        ended = ended_in(data_dir / name)
        if ended is None and (data_dir / name).exists():
            raise UserError(_not_followed(name))
        if ended is None:
            return None
        plan = ended.plan
    if plan.keys() != set(PLANNED):
        raise UserError(f"{work_folder(name, data_dir)} is of another version: prepare '{name}' with --overwrite")
    found = Preparation(name, data_dir, plan)
    found.look()
    return found if found.shards else None


def _not_followed(name: str) -> str:
    return f"'{name}' is not prepared with --hub, so there is nothing to wait for: leave out --follow"


def _nobody(name: str, data_dir: Path) -> str:
    plan = read_plan(work_folder(name, data_dir))
    if plan is not None:
        return f"nobody prepares '{name}' any more: go on with `{Preparation(name, data_dir, plan).remedy}`"
    there = "" if data_dir == Path("data") else f" --data-dir {shlex.quote(str(data_dir))}"
    return (
        f"nobody prepares '{name}': start `python -m gpt_common.data prepare --hub OWNER/NAME --name {name}{there}`, "
        "and this while it runs"
    )


def _bytes(path: Path, start: int, size: int) -> bytes:
    with open_file(path) as file:
        file.seek(start)
        return file.read(size)
