"""The thread that computes: waiting answers come in as others end, and all of one model's are written together.

Everything of a framework happens in this one thread; an event loop hears of it through `post`.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from gpt_common.errors import UserError
from gpt_common.sampling import Batch, Continuation, Logits
from gpt_common.serving.models import Served
from gpt_common.serving.refusals import Refused
from gpt_common.serving.writing import Piece, Said, Writer, likely, told
from gpt_common.training.source import Source
from gpt_common.words import printable


@dataclass(frozen=True)
class Ended:
    """An answer is finished."""

    reason: str
    """`stop`: by itself, at a stop string or with its form; `length`: it has as many tokens as it may."""
    tokens: int
    """That were made."""


Event = Piece | Ended | Refused
"""What is heard of an answer: more of it, that it is finished, or that it failed."""


@dataclass(eq=False)
class Answer:
    """An answer that waits or is being written."""

    model: Served
    sequence: Continuation
    writer: Writer
    tokens: int
    """At most; 0: only its prompt is told."""
    deadline: float
    """By `time.monotonic`."""
    hear: Callable[[Event], None]
    """Is called in the event loop."""
    logprobs: int | None = None
    echo: bool = False
    """Tell the prompt first."""
    begins: int = 0
    """Characters before its first token, of an echoed prompt."""
    gone: bool = False
    """Nobody waits for it any more."""
    number: int = field(default_factory=count().__next__)


Post = Callable[[Sequence[tuple[Answer, Event]]], None]


class Engine:
    """Writes answers.

    Args:
        open_model: makes what computes of a model.
        post: hands over what is to be heard; is called by the engine's thread.
        batch_size: answers of one model that are written together.
        queue: answers that may wait.
        loaded: models in memory at once.
    """

    def __init__(
        self, open_model: Callable[[Source], Batch], post: Post, *, batch_size: int, queue: int, loaded: int
    ) -> None:
        self._open_model, self._post = open_model, post
        self._batch_size, self._queue, self._loaded = batch_size, queue, loaded
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._writing: dict[Served, list[Answer]] = {}
        self._batches: OrderedDict[Served, Batch] = OrderedDict()  # the one that was used last, last
        self._events: list[tuple[Answer, Event]] = []
        self._stopping = self._abandoned = False
        self._thread: threading.Thread | None = None

    # ---- called by others --------------------------------------------------------------------------------------------

    def start(self, first: Served) -> None:
        """Load a model, and begin; raises what loading it raises."""
        failures: list[BaseException] = []
        loaded = threading.Event()

        def run() -> None:
            try:
                self._batches[first] = self._open_model(first.source)
            except BaseException as error:
                failures.append(error)
                return
            finally:
                loaded.set()
            self._work()

        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._thread.start()
        loaded.wait()
        if failures:
            raise failures[0]

    def submit(self, answers: Sequence[Answer]) -> None:
        """Let answers wait for their turn; raises Refused: 429 where too many do, 400 where they never could."""
        if len(answers) > self._queue:
            raise Refused(
                400,
                f"this asks for {len(answers)} answers, and no more than {self._queue} may wait: fewer prompts, or a "
                "smaller `n`",
            )
        with self._changed:
            if len(self._waiting) + len(answers) > self._queue:
                self._waiting = deque(answer for answer in self._waiting if not answer.gone)
            if len(self._waiting) + len(answers) > self._queue:
                raise Refused(
                    429,
                    f"{len(self._waiting)} answers are waiting, and no more than {self._queue} may: try again later",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            self._waiting.extend(answers)
            self._changed.notify()

    def stop(self, *, at_once: bool = False) -> None:
        """End, after what waits and what is being written is finished; `at_once`: after the step that is going on.

        A process that ends while its thread computes would be aborted by the framework.
        """
        with self._changed:
            self._stopping, self._abandoned = True, at_once
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being written, and how many wait."""
        # A copy, taken in one go: its thread goes on meanwhile.
        return sum(map(len, list(self._writing.values()))), len(self._waiting)

    # ---- its thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._next_round():
            for model in list(self._writing):
                try:
                    self._step(model)
                except Exception as error:
                    self._failed(model, error)
                if not self._writing[model]:
                    del self._writing[model]
                    if model in self._batches:
                        self._batches[model].next_logits({})  # lets go of what it keeps of them
            self._hand_over()

    def _next_round(self) -> bool:
        """Wait for something to do, and let in who has a place; False where there will be nothing more."""
        with self._changed:
            while not (self._waiting or self._writing or self._stopping):
                self._changed.wait()
            if self._abandoned or (self._stopping and not self._waiting and not self._writing):
                return False
            entering = self._entering()
        for answer in entering:
            try:
                self._enter(answer)
            except Exception as error:
                self._say_failure(answer.model, error)
                self._events.append((answer, _broken()))
        self._hand_over()
        return True

    def _entering(self) -> list[Answer]:
        """Who waits no longer, in order; the others go on waiting."""
        now, entering, waiting = time.monotonic(), list[Answer](), deque[Answer]()
        places = {model: self._batch_size - len(answers) for model, answers in self._writing.items()}
        busy = set(self._writing)
        for answer in self._waiting:
            if answer.gone:
                continue
            if now > answer.deadline:
                self._events.append((answer, _late("it waited for its turn")))
                continue
            has_room = answer.model in busy or len(busy) < self._loaded
            if has_room and places.setdefault(answer.model, self._batch_size) > 0:
                places[answer.model] -= 1
                busy.add(answer.model)
                entering.append(answer)
            else:
                waiting.append(answer)
        self._waiting = waiting
        return entering

    def _enter(self, answer: Answer) -> None:
        batch = self._batch(answer.model)
        if answer.echo:
            prompt = _prompt(answer, batch)
            answer.begins = len(prompt.text)
            self._events.append((answer, prompt))
        if answer.tokens:
            self._writing.setdefault(answer.model, []).append(answer)
        else:
            self._events.append((answer, Ended("length", 0)))

    def _batch(self, model: Served) -> Batch:
        if model not in self._batches:
            idle = [other for other in self._batches if other not in self._writing]
            for other in idle[: len(self._batches) - self._loaded + 1]:
                del self._batches[other]
            self._batches[model] = self._open_model(model.source)
        self._batches.move_to_end(model)
        return self._batches[model]

    def _step(self, model: Served) -> None:
        now, going = time.monotonic(), list[Answer]()
        for answer in self._writing[model]:
            if answer.gone:
                continue
            if now > answer.deadline:
                self._events.append((answer, _late("it was being written")))
                continue
            going.append(answer)
        self._writing[model] = going
        logits = self._batch(model).next_logits({answer.number: answer.sequence.context for answer in going})
        self._writing[model] = [answer for answer in going if self._write(answer, logits[answer.number])]

    def _write(self, answer: Answer, logits_V: Logits) -> bool:
        """One token more; whether others follow."""
        sequence, writer, tokenizer = answer.sequence, answer.writer, answer.model.tokenizer
        token = sequence.advance(logits_V)
        if token in answer.model.ends:
            self._end(answer, writer.finish(), "stop")
            return False
        said = None
        if answer.logprobs is not None:
            said = Said(*told(tokenizer, token, logits_V, answer.logprobs), answer.begins + writer.length)
        piece = writer.push(token, said)
        if writer.stopped:
            self._end(answer, piece, "stop")
            return False
        form = sequence.constraint
        if form is not None and form.stuck is not None:
            self._events.append((answer, Refused(400, form.stuck, param="response_format", code="form_stuck")))
            return False
        closed = form is not None and form.closed
        if closed or sequence.made >= answer.tokens:
            rest = writer.finish()
            whole = Piece(piece.text + rest.text, piece.tokens + rest.tokens, piece.ids + rest.ids)
            self._end(answer, whole, "stop" if closed or writer.stopped else "length")
            return False
        if piece.text or piece.ids:
            self._events.append((answer, piece))
        return True

    def _end(self, answer: Answer, piece: Piece, reason: str) -> None:
        self._events += [(answer, piece), (answer, Ended(reason, answer.sequence.made))]

    def _failed(self, model: Served, error: Exception) -> None:
        """Something broke in the middle of a model's step: its answers end, and it is loaded anew."""
        self._say_failure(model, error)
        self._events += [(answer, _broken()) for answer in self._writing[model]]
        self._writing[model] = []
        self._batches.pop(model, None)

    def _say_failure(self, model: Served, error: Exception) -> None:
        if isinstance(error, UserError):
            print(printable(f"{model.name}: {error}"), file=sys.stderr)
        else:
            traceback.print_exception(error)

    def _hand_over(self) -> None:
        events, self._events = self._events, []
        if events:
            self._post(events)


def _prompt(answer: Answer, batch: Batch) -> Piece:
    """The prompt as it is echoed: its text, and how likely the model found each token behind those before it."""
    ids, tokenizer = answer.sequence.context, answer.model.tokenizer
    piece = Piece(tokenizer.decode(ids), [], list(ids))
    if answer.logprobs is not None:
        writer = Writer(tokenizer, ())
        logits_TV = batch.all_logits(ids)
        for at, token in enumerate(ids):
            begin = writer.length
            writer.push(token, None)
            if at == 0:
                piece.tokens.append(Said(likely(tokenizer, token, None), (), begin))
            else:
                piece.tokens.append(Said(*told(tokenizer, token, logits_TV[at - 1], answer.logprobs), begin))
    return piece


def _late(what: str) -> Refused:
    return Refused(504, f"the answer took longer than this server's time limit: {what}", code="time_limit")


def _broken() -> Refused:
    return Refused(500, "the model failed; the server's console says why", code="failed")
