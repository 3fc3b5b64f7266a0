"""`python -m torch_gpt.sample`: continue a text with a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpt_common.cli import answer_early
from gpt_common.commands import SampleSettings
from gpt_common.errors import run_main
from gpt_common.machine.blas import wait_passively
from gpt_common.prompting.command import answer, parse_sampling
from gpt_common.sampling import Continuation, Logits, equally_long, window
from gpt_common.structured import Constraint
from gpt_common.training.source import open_source

if __name__ == "__main__":
    answer_early(lambda argv: parse_sampling(argv, prog="python -m torch_gpt.sample"))
    wait_passively()  # before PyTorch is imported

import torch
from torch import Tensor

from gpt_common.config import TrainConfig
from torch_gpt.attention import KVCache
from torch_gpt.checkpoint import build_model
from torch_gpt.device import compute_dtype, select_device
from torch_gpt.model import GPT


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    settings: SampleSettings,
    draws: Iterator[float],
    known: int | None = None,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """New token ids, one at a time, with keys and values of the past cached.

    Args:
        prompt: token ids; only the last of them that fit the block are seen.
        draws: uniform numbers in [0, 1), one per token.
        known: entries of the tokenizer, where the model's vocabulary is padded beyond it: what lies there has no text.
        constraint: the form that the new text keeps to; it ends where the form does.
    """
    device = model.device
    sequence = Continuation(list(prompt), settings, draws, constraint)
    caches = model.new_caches()
    fresh = window(sequence.context, model.config.block_size)
    while not sequence.is_full:
        if caches[0].length + len(fresh) > model.config.block_size:
            caches, fresh = model.new_caches(), window(sequence.context, model.config.block_size)
        logits_BTV = model(torch.tensor([fresh], device=device), caches=caches)
        token = sequence.advance(logits_BTV[0, -1, :known].float().cpu().numpy())
        fresh = [token]
        yield token


class BatchKVCache(KVCache):
    """Of several sequences, each as long as it is: a new token goes behind its own. `length` is that of the longest."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.rows: list[int] = []  # how long the sequence of each row is

    def append(self, k_BHTK: Tensor, v_BHTV: Tensor) -> tuple[Tensor, Tensor]:
        """Store one more token of each sequence; returns keys and values up to the longest one's end."""
        if not self.lengths:
            self.rows = [length + 1 for length in self.rows]
            return super().append(k_BHTK, v_BHTV)
        assert self.keys is not None
        assert self.values is not None
        ends_B111 = torch.tensor(self.rows, device=k_BHTK.device)[:, None, None, None]
        self.keys.scatter_(2, ends_B111.expand(k_BHTK.shape), k_BHTK)
        self.values.scatter_(2, ends_B111.expand(v_BHTV.shape), v_BHTV)
        self.measure([length + 1 for length in self.rows])
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def join(self, caches: Sequence[KVCache], rows: Sequence[int]) -> None:
        """Take in what other caches hold, as rows behind those that are here; `rows` says how long each is."""
        held = (self, *caches)
        self.keys = torch.cat([cache.keys for cache in held if cache.keys is not None])
        self.values = torch.cat([cache.values for cache in held if cache.values is not None])
        self.measure([*self.rows, *rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all sequences but those of these rows."""
        self.measure([self.rows[row] for row in rows])
        if not rows or self.keys is None or self.values is None:
            self.keys, self.values = None, None
            return
        rows_B = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[rows_B], self.values[rows_B]

    def measure(self, rows: list[int]) -> None:
        """From here on the rows are so long."""
        self.rows, self.length = rows, max(rows, default=0)
        self.lengths = rows if len(set(rows)) > 1 else []  # equally long, they are any batch


class ContinuousBatch:
    """Sequences that are continued together, a token each at every step; they come and go between steps.

    Args:
        known: entries of the tokenizer, as for `generate`.
    """

    def __init__(self, model: GPT, known: int | None = None) -> None:
        self.model = model
        self.known = known
        self.rows: list[int] = []  # the number of the sequence that each row of the caches holds
        self.caches = [BatchKVCache(model.config.block_size) for _ in model.blocks]

    @torch.inference_mode()
    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        """By the number of each sequence the logits of its next token, (V) float32.

        Args:
            contexts: all tokens of each sequence. One that was there has a token more; one that is missing has left.
        """
        lengths, block_size = self.caches[0].rows, self.model.config.block_size
        kept = [row for row, number in enumerate(self.rows) if number in contexts and lengths[row] < block_size]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[row] for row in kept]
            for cache in self.caches:
                cache.keep(kept)
        found: dict[int, Logits] = {}
        begin = {number: window(context, block_size) for number, context in contexts.items() if number not in self.rows}
        if self.rows:
            found |= self._logits(self.rows, [[contexts[number][-1]] for number in self.rows], self.caches)
        joining, new = [], list[int]()
        for numbers in equally_long(begin):
            joining.append(self.model.new_caches())
            found |= self._logits(numbers, [begin[number] for number in numbers], joining[-1])
            new += numbers
        if new:
            self.rows = [*self.rows, *new]
            for layer, cache in enumerate(self.caches):
                cache.join([caches[layer] for caches in joining], [len(begin[number]) for number in new])
        return found

    @torch.inference_mode()
    def all_logits(self, tokens: Sequence[int]) -> Logits:
        """Of one text that fits the block the logits behind every token, (T, V) float32."""
        logits_BTV = self.model(torch.tensor([list(tokens)], device=self.model.device))
        return logits_BTV[0, :, : self.known].float().cpu().numpy()

    def _logits(self, numbers: Sequence[int], fresh: list[list[int]], caches: Sequence[KVCache]) -> dict[int, Logits]:
        logits_BTV = self.model(torch.tensor(fresh, device=self.model.device), caches=caches)
        logits_BV = logits_BTV[:, -1, : self.known].float().cpu().numpy()
        return dict(zip(numbers, logits_BV, strict=True))


def main(argv: Sequence[str]) -> None:
    """The command."""
    path, command = parse_sampling(argv, prog="python -m torch_gpt.sample")
    source = open_source(path, latest=command.latest)
    device = select_device(command.device)
    dtype = compute_dtype(TrainConfig(dtype=command.dtype), device)
    model = build_model(source.checkpoint, source.model, dtype).to(device)
    answer(command, source, ContinuousBatch(model, source.tokenizer.vocab_size))


if __name__ == "__main__":
    run_main(main)
