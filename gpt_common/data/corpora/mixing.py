"""A corpus made of prepared corpora of one tokenizer, each with its share of the tokens.

What is taken is whole: documents, or windows of a corpus that has none; but for one of each, where a corpus is so small
that its share could not be met otherwise. No token is taken twice, so the corpus that is smallest for its share decides
how much there is. Everything follows from the seed.

Documents are taken in runs where there are very many, so that memory does not grow with a corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.catalogue import open_dataset, prepared_names
from gpt_common.data.dataset import BUILT_INS, Dataset, check_new_name
from gpt_common.data.download import Progress
from gpt_common.data.writer import SPLITS, TokenIds, refuse_existing, write_dataset
from gpt_common.errors import UserError, nearest
from gpt_common.keyed import keyed_generator

WINDOW = 1024
"""Tokens of a window, at most; it is shorter in a small corpus."""
MOST_UNITS = 1 << 18
"""Documents, runs of them, or windows that a corpus is taken apart into."""
TOLERANCE = 1e-3
"""How far the tokens of a corpus may be from its share, as a part of this share."""
CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Taken:
    """What of one split of a corpus goes into the mixture."""

    tokens: TokenIds
    starts: npt.NDArray[np.int64]
    """Where each unit that is taken begins, in the order in which they are taken."""
    stops: npt.NDArray[np.int64]
    closes: int | None
    """The end of text that is written behind a unit which lacks it; None for windows."""

    @property
    def total(self) -> int:
        """Tokens of all units, with those that close them."""
        open_ends = 0 if self.closes is None else int((self.tokens[self.stops - 1] != self.closes).sum())
        return int((self.stops - self.starts).sum()) + open_ends

    def unit(self, number: int) -> TokenIds:
        """The ids of a unit."""
        ids = self.tokens[self.starts[number] : self.stops[number]]
        if self.closes is not None and ids[-1] != self.closes:
            return np.append(ids, ids.dtype.type(self.closes))
        return ids


def prepare_mixture(
    shares: Sequence[str],
    name: str,
    data_dir: Path,
    *,
    seed: int = 1,
    max_tokens: int | None = None,
    overwrite: bool = False,
    on_progress: Progress,
) -> Dataset:
    """Mix prepared corpora: training splits to the training split, validation splits to the validation split.

    Args:
        shares: `NAME:SHARE`, positive, 1 taken together.
        seed: decides what is taken where not all is, and in which order.
        max_tokens: of the training split, at most.

    Raises:
        UserError: impossible arguments, unknown names, different tokenizers, corpora of conversations.
    """
    check_new_name(name)
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}: it must be at least 1")
    wanted = parse_shares(shares)
    if name in wanted:
        raise UserError(f"'{name}' is one of the corpora that are mixed: take another --name")
    refuse_existing(data_dir / name, overwrite=overwrite)
    known = {*BUILT_INS, *prepared_names(data_dir)}
    for one in wanted:
        if one not in known:
            raise UserError(f"--mix: no dataset '{one}' in {data_dir} ({nearest(one, known)})")
    parts = [open_dataset(one, data_dir) for one in wanted]
    maker = parts[0].tokenizer
    for part in parts:
        if part.tokenizer.fingerprint != maker.fingerprint:
            raise UserError(
                f"'{parts[0].name}' and '{part.name}' have different tokenizers ({maker.kind} {maker.vocab_size:,}, "
                f"{part.tokenizer.kind} {part.tokenizer.vocab_size:,}): prepare one with --tokenizer {data_dir}/NAME "
                "of the other"
            )
        if part.examples is not None:
            raise UserError(f"'{part.name}' holds conversations: --mix is for corpora of text")
    fractions = list(wanted.values())
    taken: dict[str, list[Taken]] = {
        split: _taken(
            [getattr(part, split) for part in parts],
            fractions,
            [keyed_generator(seed, "mix", split, part.name) for part in parts],
            maker.end_of_text,
            max_tokens if split == "train" else None,
        )
        for split in SPLITS
    }
    total, done = sum(each.total for split in SPLITS for each in taken[split]), 0

    def ids_of(split: str) -> Iterator[TokenIds]:
        nonlocal done
        for ids in _in_turn(taken[split], keyed_generator(seed, "mix", split)):
            done += len(ids)
            on_progress("mixing", min(done, total), total)
            yield ids

    write_dataset(
        data_dir / name,
        maker,
        {split: ids_of(split) for split in SPLITS},
        prompt=parts[0].prompt,
        separator=parts[0].separator if len({part.separator for part in parts}) == 1 else None,
        recipe={
            "command": "python -m gpt_common.data prepare --mix",
            "mix": wanted,
            "seed": seed,
            "max_tokens": max_tokens,
        },
        sources=[
            {
                "dataset": part.name,
                "fingerprint": part.fingerprint,
                "share": fraction,
                "tokens": {split: taken[split][i].total for split in SPLITS},
                "units": {split: len(taken[split][i].starts) for split in SPLITS},
            }
            for i, (part, fraction) in enumerate(zip(parts, fractions, strict=True))
        ],
        overwrite=overwrite,
    )
    return open_dataset(name, data_dir)


def parse_shares(words: Sequence[str]) -> dict[str, float]:
    """Share by name.

    Raises:
        UserError: not NAME:SHARE, a name twice, shares that are not positive or are not 1 taken together.
    """
    shares: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition(":")
        try:
            share = float(number)
        except ValueError:
            share = float("nan")
        if not name or np.isnan(share):
            raise UserError(f"--mix {word}: write NAME:SHARE, as in stories:0.7")
        if not 0 < share < float("inf"):
            raise UserError(f"--mix {word}: a share must be above 0")
        if name in shares:
            raise UserError(f"--mix names '{name}' twice: leave one out")
        shares[name] = share
    if len(shares) < 2:
        raise UserError("--mix needs at least two corpora: NAME:SHARE NAME:SHARE")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"the shares of --mix are {sum(shares.values()):g} taken together: they must be 1")
    return shares


def units_of(tokens: TokenIds, end_of_text: int | None) -> tuple[npt.NDArray[np.int64], bool]:
    """Where each unit of a text ends, (U,), and whether they are documents.

    Documents, their end of text included; where there are more than MOST_UNITS, runs of them of about equal length.
    Without documents: windows.
    """
    grain = -(-len(tokens) // MOST_UNITS)
    ends: list[npt.NDArray[np.int64]] = []
    last = 0
    for start in range(0, len(tokens), CHUNK_TOKENS) if end_of_text is not None else ():
        here = start + 1 + np.flatnonzero(tokens[start : start + CHUNK_TOKENS] == end_of_text).astype(np.int64)
        # The first end in each stretch of `grain` tokens.
        here = here[np.unique(here // grain, return_index=True)[1]]
        if len(here):
            ends.append(here)
            last = int(here[-1])
    # An end of text before the only document, or behind it, divides nothing.
    if sum(map(len, ends)) > 1:
        return np.concatenate([*ends, *([np.array([len(tokens)])] if last < len(tokens) else [])]), True
    window = max(1, min(WINDOW, len(tokens) // 64), grain)
    return np.append(np.arange(window, len(tokens), window), len(tokens)), False


def _taken(
    texts: Sequence[TokenIds],
    shares: Sequence[float],
    generators: Sequence[np.random.Generator],
    end_of_text: int | None,
    most: int | None,
) -> list[Taken]:
    """Of each text its share of as many tokens as there are without taking one twice."""
    total = min(len(text) / share for text, share in zip(texts, shares, strict=True))
    total = total if most is None else min(total, most)
    taken = []
    for text, share, generator in zip(texts, shares, generators, strict=True):
        budget = max(1, min(len(text), round(total * share)))
        ends, whole = units_of(text, end_of_text)
        starts = np.concatenate([[0], ends[:-1]])
        order = _fitting(ends - starts, generator.permutation(len(ends)), budget)
        left = budget - int((ends - starts)[order].sum())
        starts_taken, stops_taken = starts[order], ends[order]
        if left > TOLERANCE / 2 * budget:
            # Only of a small corpus: all that are left are longer, and the beginning of one makes up for it.
            start = int(starts[np.setdiff1d(np.arange(len(ends)), order)[0]])
            stop = start + left - (1 if whole and left > 1 else 0)  # its end of text is one more
            starts_taken, stops_taken = np.append(starts_taken, start), np.append(stops_taken, stop)
        taken.append(Taken(text, starts_taken, stops_taken, end_of_text if whole else None))
    return taken


def _fitting(lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.int64]:
    """Units in `order` as long as they fit, then of the others each that still does."""
    sums = np.cumsum(lengths[order])
    first = int(np.searchsorted(sums, budget, side="right"))
    left = budget - (int(sums[first - 1]) if first else 0)
    chosen = list(order[:first])
    for unit in order[first:] if left else ():
        if lengths[unit] <= left:
            chosen.append(unit)
            left -= int(lengths[unit])
            if not left:
                break
    return np.array(chosen, np.int64)


def _in_turn(parts: Sequence[Taken], generator: np.random.Generator) -> Iterator[TokenIds]:
    """All units in an order drawn for all of them together: every stretch has about the shares of the whole."""
    turns = generator.permutation(np.repeat(np.arange(len(parts)), [len(part.starts) for part in parts]))
    next_unit = [0] * len(parts)
    waiting: list[TokenIds] = []
    size = 0
    for turn in turns:
        ids = parts[turn].unit(next_unit[turn])
        next_unit[turn] += 1
        waiting.append(ids)
        size += len(ids)
        if size >= CHUNK_TOKENS // 16:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def described(sources: Sequence[dict[str, Any]]) -> list[str]:
    """What the summary says of a mixture: of each corpus its tokens and what they are of all."""
    total = sum(source["tokens"]["train"] for source in sources)
    return [
        f"  of {source['dataset']}: {source['tokens']['train']:,} tokens, {source['tokens']['train'] / total:.2%}"
        for source in sources
    ]
