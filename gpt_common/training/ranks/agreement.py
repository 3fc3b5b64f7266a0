"""What the processes that train one model agree on: who does which micro-step, when all stop, whether they are alike.

Nothing here imports a framework: a twin's distributed.py carries texts and sums from process to process. What hangs on
a clock, on a signal or on one machine's disk is never decided by a rank for itself: it would leave the loop, and the
others would wait for it in the next sum.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from time import sleep
from typing import Any, TypeVar

import numpy.typing as npt

from gpt_common.errors import ToldElsewhere, UserError, WorkFailed
from gpt_common.training.health.gates import GateFailed
from gpt_common.training.ranks.nearness import check_near, distances
from gpt_common.training.ranks.pulse import Pulse
from gpt_common.training.ranks.wire import Wire

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""What stops a run."""
TIME_OVER = len(SIGNALS)
"""The wish to end because the time that was asked for is over; before it, one wish for each signal."""
LACKING = TIME_OVER + 1
"""The wish to wait for what the next step is to be made of."""
WISHES = LACKING + 1

TELLING = 2.0
"""Seconds that rank 0 has to say what is wrong: a launcher ends it when another rank ends."""

Array = npt.NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Agreement:
    """One process among those that train a model. Alone it asks nobody, and what it wishes is agreed on.

    Args:
        rank: its number, from 0; rank 0 alone writes and prints.
        world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.wished = [0.0] * (WISHES + world)
        """What this rank wishes; behind that, in its own place, the seconds it has waited in the sum before."""
        self.agreed = self.wished if world == 1 else [0.0] * (WISHES + world)
        """The sum of all ranks' wishes, the last one."""
        self.seconds = 0.0
        """Waited for other ranks in sums."""
        self.waits = [0.0] * world
        """What each rank has waited in sums, as far as it was told, since `slowest` was asked."""
        self._told_until = 0.0
        self.pulse: Pulse | None = None
        self.wire: Wire | None = None
        """To ranks that were started by hand, perhaps of another twin; None: a launcher has started them."""
        self.exact = True
        """Whether all compute to the same bits: they do, unless twins or devices differ."""
        self._laid_out = False
        self.shards_optimizer = False
        """Each rank holds the optimiser's state of a share of the parameters."""
        self.deals_weights = False
        """Each rank holds a part of every parameter: all ask the model the same number of times, or none does."""
        self.apart = False
        """Whether each takes steps of its own between two averages."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that owns folder, log, samples and checkpoints."""
        return self.rank == 0

    def gather(self, text: str) -> list[str]:
        """What every rank has to say, by rank; all must call it, and wait until all have."""
        return [text]

    def of_first(self, text: str) -> str:
        """What rank 0 has to say."""
        return self.gather(text)[0]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            self.gather("")

    # ---- work that is dealt --------------------------------------------------------------------------------------

    def dealt(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """Those that this rank does, with their numbers: r, r + W, r + 2 W ..."""
        return list(enumerate(items))[self.rank :: self.world]

    def counted(self, batches: Sequence[Item]) -> Sequence[Item]:
        """Those whose mean makes the step of this rank: all, unless it takes steps of its own."""
        return [batch for _, batch in self.dealt(batches)] if self.apart else batches

    def added(self, mine: Array) -> Array:
        """(N,) float32 of this rank -> their sum over all."""
        return mine

    def check_dealt(self, micro_steps: int) -> None:
        """Raise UserError if the micro-steps of a step cannot be dealt evenly."""
        if micro_steps % self.world:
            raise UserError(
                f"grad_accum_steps is {micro_steps}, and {self.world} ranks share them: make it a multiple of "
                f"{self.world} (a step has batch_size x grad_accum_steps sequences, whatever the ranks)"
            )

    def losses(self, batches: Sequence[Item], losses: Callable[[Sequence[Item]], list[float]]) -> list[float]:
        """The loss of each batch, asked of the rank that it is dealt to; the same numbers, on all of them."""
        mine = [batch for _, batch in self.dealt(batches)]
        if self.deals_weights:
            mine += batches[: -(-len(batches) // self.world) - len(mine)]
        found = losses(mine)
        if self.world == 1:
            return found
        theirs = [json.loads(text) for text in self.gather(json.dumps(found))]
        return [theirs[number % self.world][number // self.world] for number in range(len(batches))]

    # ---- when to stop --------------------------------------------------------------------------------------------

    def wish(self, what: int) -> None:
        """Let the others know, with the next sum, of a signal's number or of TIME_OVER."""
        self.wished[SIGNALS.index(signal.Signals(what)) if what in SIGNALS else TIME_OVER] = 1.0

    @property
    def stopped_by(self) -> int | None:
        """The signal for which all ranks stop."""
        return next((int(number) for number, count in zip(SIGNALS, self.agreed, strict=False) if count), None)

    @property
    def time_over(self) -> bool:
        """Whether all ranks end because the time is over."""
        return self.agreed[TIME_OVER] > 0

    # ---- who is late ---------------------------------------------------------------------------------------------

    def count_from_here(self) -> None:
        """What was waited until now is told to nobody."""
        self._told_until, self.waits = self.seconds, [0.0] * self.world

    def after_step(self) -> None:
        """Take in what each rank has waited in the sum before the last, and tell with the next what this one has in the
        last: no further sum is made for it."""
        if self.world > 1:
            self.waits = [sum(pair) for pair in zip(self.waits, self.agreed[WISHES:], strict=False)]
            self.wished[WISHES + self.rank] = self.seconds - self._told_until
            self._told_until = self.seconds

    def slowest(self) -> tuple[int, float] | tuple[None, None]:
        """The rank that has waited least since this was last asked, and the seconds that some other waited longer."""
        waits, self.waits = self.waits, [0.0] * self.world
        return (waits.index(min(waits)), max(waits) - min(waits)) if any(waits) else (None, None)

    # ---- the end -------------------------------------------------------------------------------------------------

    def lack(self, *, wanted: bool) -> None:
        """Let the others know, with the next sum, whether something is wanted for the step after it."""
        self.wished[LACKING] = float(wanted)

    @property
    def lacking(self) -> bool:
        """Whether some rank lacks it."""
        return self.agreed[LACKING] > 0

    def all_there(self, there: bool, error: UserError | None) -> tuple[bool, UserError | None]:
        """Whether every rank has what it waits for, and what is wrong for the first for which something is.

        What was wished meanwhile is agreed on too: a signal to a rank ends the waiting of all.
        """
        if self.world == 1:
            return there, error
        said = [json.loads(text) for text in self.gather(json.dumps([there, str(error or ""), self.wished[:WISHES]]))]
        self.agreed[:WISHES] = [sum(wishes) for wishes in zip(*(wished for _, _, wished in said), strict=True)]
        wrong = next(
            (text if rank == 0 else f"rank {rank}: {text}" for rank, (_, text, _) in enumerate(said) if text), ""
        )
        return all(known for known, _, _ in said), UserError(wrong) if wrong else None

    def part(self) -> None:
        """The last sum is done: from here on each rank listens to itself alone."""
        stopped = self.stopped_by
        self.agreed = self.wished
        if stopped is not None:
            self.wish(stopped)

    # ---- whether they are alike ----------------------------------------------------------------------------------

    def together(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do it, then the others; where it fails for one, it fails for all.

        Raises:
            UserError: on rank 0, what was wrong there or with the first of the others.
            ToldElsewhere: on the others.
        """
        if self.world == 1:
            return work()
        said, found = "", []
        for turn in (self.first, not self.first):
            if turn:
                try:
                    found.append(work())
                except UserError as error:
                    said = str(error)
            wrong = {rank: text for rank, text in enumerate(self.gather(said)) if text}
            if wrong:
                rank, text = next(iter(wrong.items()))
                raise self.told(text if rank == 0 else f"rank {rank}: {text}")
        return found[0]

    def check_alike(self, about: Callable[[], Mapping[str, Any]]) -> None:
        """Raise UserError (ToldElsewhere on other ranks) if a rank was started from something else than rank 0."""
        if self.world == 1:
            return
        first, *others = (json.loads(text) for text in self.gather(json.dumps(about())))
        for rank, other in enumerate(others, start=1):
            for name in [name for name in first | other if first.get(name) != other.get(name)][:1]:
                how = "start all ranks by one command" if self.wire is None else "give all ranks the same flags"
                raise self.told(
                    f"rank {rank} was started with {name} {other.get(name)!r}, rank 0 with {first.get(name)!r}: {how}, "
                    "from the same commit and data"
                )

    def check_layout(self, tensors: Mapping[str, Any]) -> None:
        """Before the first sum by hand: raise UserError if another rank adds up other tensors, or in another order."""
        if self.wire is None or self._laid_out:
            return
        self._laid_out = True
        mine = json.dumps([f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()])
        first, *others = (json.loads(text) for text in self.gather(mine))
        for rank, other in enumerate(others, start=1):
            for one, its in zip_longest(first, other, fillvalue="nothing"):
                if one != its:
                    raise self.told(
                        f"rank {rank} has {its} where rank 0 has {one} in the sum: their gradients would be mixed up"
                    )

    def check_weights(
        self,
        checksums: Callable[[], Mapping[str, int]],
        step: int,
        weights: Callable[[], Mapping[str, Array]] | None = None,
        near: float = 0.0,
    ) -> None:
        """Raise GateFailed if a rank's weights are not those of rank 0 after `step` steps.

        To the bit; of ranks that do not compute to the same bits, what is trained may be `near`, if `weights` gives it.
        """
        if self.world == 1:
            return
        if not self.exact and weights is not None:
            mine, all_checksums = weights(), checksums
            assert self.wire is not None
            with self.waiting():
                mine_from_first = distances(mine, self.wire.of_first)
            check_near(self.gather(json.dumps(mine_from_first)), step, near)
            checksums = lambda: {name: crc for name, crc in all_checksums().items() if name not in mine}  # noqa: E731
        first, *others = (json.loads(text) for text in self.gather(json.dumps(dict(checksums()))))
        for rank, other in enumerate(others, start=1):
            apart = [name for name in first | other if first.get(name) != other.get(name)]
            if apart:
                raise GateFailed(
                    "ranks",
                    f"after {step} steps rank {rank} has other weights than rank 0 ({len(apart)} of {len(first)} "
                    f"tensors, first {apart[0]})",
                    "Its sum, its update or its memory is wrong: what was saved before is right",
                )

    def told(self, text: str) -> Exception:
        """What to raise where all ranks know what is wrong, and one of them is to say it."""
        if self.first or self.wire is not None:  # each has a terminal of its own
            return UserError(text)
        sleep(TELLING)
        return ToldElsewhere(UserError.exit_code)

    # ---- when one is lost ----------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for the other ranks."""
        if self.pulse is None:
            yield
            return
        self.pulse.waits()
        try:
            yield
        finally:
            self.pulse.goes_on()

    def tell_when_lost(self, more: Callable[[], str]) -> None:
        """What is said besides, where the thread that trains cannot: by one rank, the first that is left."""
        if self.pulse is not None:
            self.pulse.more = more

    def failed_here(self, error: WorkFailed) -> Exception:
        """What to raise on another rank than the first where work has failed: nothing that the first says as well."""
        if self.wire is None:
            sleep(TELLING)
            if self.pulse is not None and self.pulse.first_has_said:
                return ToldElsewhere(error.exit_code)
        return WorkFailed(f"rank {self.rank}: {error}")
