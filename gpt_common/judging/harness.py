"""A model as EleutherAI's lm-eval takes one up: the one class of it that is known here.

What it asks for is the log probability of a continuation behind a context, of a whole text, or a text that ends with a
stop string. How a context and its continuation are cut into tokens is lm-eval's own rule (`TemplateLM._encode_pair`),
so figures are those of its `hf` model on the same weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from gpt_common.commands import SampleSettings
from gpt_common.data.tokenizers import TextStream, Tokenizer, prefix_token
from gpt_common.errors import UserError
from gpt_common.judging.scoring import Part, Scorer, parts_of, passed, score
from gpt_common.keyed import draws
from gpt_common.progress import Progress
from gpt_common.sampling import Continuation, continue_together
from gpt_common.words import duration

AT_ONCE = 16
"""Texts that are written together."""
MOST_NEW_TOKENS = 256
"""Of a text where a task says nothing; lm-eval's own default."""
TRIED = 4096
"""Tokens by which the time of all is told beforehand."""
SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}

Request = tuple[tuple[str, str], list[int], list[int]]


class Harness(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model and its tokenizer.

    Args:
        seed: of the random numbers, for tasks that sample.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, seed: int = 0) -> None:
        super().__init__()
        self.scorer, self.tokens, self.seed = scorer, tokenizer, seed

    @property
    def eot_token_id(self) -> int:
        """What ends a text, and stands before one: nothing else is seen before its first token."""
        return prefix_token(self.tokens)

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.scorer.block_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
        """Ids of a text; none is added in front.

        Raises:
            UserError: a character that the vocabulary does not have.
        """
        try:
            return self.tokens.encode(string)
        except UserError as error:
            raise UserError(f"a task has a text that the model's vocabulary cannot say: {error}") from None

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        seen, predicted = super()._encode_pair(context, continuation)
        return seen or [self.prefix_token_id], predicted  # a context of blanks is moved into the continuation

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log probability of each continuation, nats, and whether it is what the model would say."""
        if any(continuation == "" for _, continuation in (request.args for request in requests)):
            raise UserError("a task asks how likely it is that nothing follows: one of its choices is empty")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Request], **named: Any) -> list[tuple[float, bool]]:  # noqa: ARG002
        parts: list[Part] = []
        for number, (_, seen, predicted) in enumerate(requests):
            parts += parts_of(predicted, seen, self.scorer.block_size, self.scorer.block_size, number)
        nats, agreed = self._scored(parts, len(requests))
        return list(zip((-each for each in nats), agreed, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """Log probability of each text, nats: in windows side by side, which is how lm-eval counts it."""
        parts: list[Part] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            parts += parts_of(ids, [self.prefix_token_id], self.scorer.block_size, self.scorer.block_size, number)
        return [-each for each in self._scored(parts, len(requests))[0]]

    def _scored(self, parts: list[Part], count: int) -> tuple[list[float], list[bool]]:
        """Of every owner the nats of all its parts, and whether all was likeliest."""
        total = passed(parts)
        self._tell(parts, total)
        nats, agreed = [0.0] * count, [True] * count
        with Progress() as progress:
            for each in score(self.scorer, parts, progress.counting("scoring", total)):
                owner = each.part.owner
                nats[owner] += float(each.nats.sum())
                agreed[owner] &= each.likeliest is not None and bool(each.likeliest.all())
        return nats, agreed

    def _tell(self, parts: list[Part], total: int) -> None:
        """How many tokens there are, `total`, and how long they will take, by a few that are tried."""
        some, size = list[Part](), 0
        for part in parts[:: max(1, len(parts) // 64)]:
            if size < TRIED:
                some.append(part)
                size += len(part)
        if total < 4 * size:
            return
        for _ in score(self.scorer, some[:1]):  # compiles and warms up
            pass
        begin = time.perf_counter()
        for _ in score(self.scorer, some):
            pass
        seconds = (time.perf_counter() - begin) * total / passed(some)
        print(f"{len(parts):,} requests, {total:,} tokens: about {duration(seconds)}", file=sys.stderr, flush=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """A text behind each context, up to one of its stop strings or the end of the text."""
        sequences, stops = list[Continuation](), list[list[str]]()
        for number, request in enumerate(requests):
            context, asked = request.args
            settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, MOST_NEW_TOKENS))
            stops.append(handle_stop_sequences(settings.pop("until", None), eos=None))
            most = int(settings.pop("max_gen_toks"))
            if unknown := set(settings) - SAMPLING:
                raise UserError(f"a task wants to generate with {', '.join(sorted(unknown))}, which is not known here")
            sample = SampleSettings(
                max_new_tokens=most,
                temperature=float(settings.get("temperature") or 0.0),
                top_k=int(settings.get("top_k") or 0),
                top_p=float(settings.get("top_p") or 1.0),
            )
            # As lm-eval does: what is written has room beside what is seen of the context.
            room = max(1, self.scorer.block_size - most)
            ids = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
            sequences.append(Continuation(ids, sample, draws(self.seed, number)))
        return self._written(sequences, stops)

    def _written(self, sequences: list[Continuation], stops: list[list[str]]) -> list[str]:
        streams = [TextStream(self.tokens) for _ in sequences]
        said, ended = [""] * len(sequences), 0

        def is_last(number: int, token: int) -> bool:
            if token in self.tokens.ends:
                return True
            said[number] += streams[number].push(token)
            return any(stop in said[number] for stop in stops[number] if stop)

        with Progress() as progress:
            for _, token in continue_together(self.scorer.batch, sequences, AT_ONCE, is_last):
                if token is None:
                    ended += 1
                    progress("writing", ended, len(sequences))
        return [
            postprocess_generated_text(text + stream.finish(), stop, None)
            for text, stream, stop in zip(said, streams, stops, strict=True)
        ]
