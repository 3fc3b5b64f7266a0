"""Ranks that watch each other while they train: who is lost ends the run, and is named once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpt_common.errors import Stopped, ToldElsewhere, UserError, WorkFailed
from gpt_common.training.ranks.agreement import Agreement
from gpt_common.training.ranks.pulse import Pulse


@contextmanager
def watched(ranks: Agreement, timeout: float, host: str) -> Iterator[None]:
    """Within the block a rank that ends, is stopped or falls silent ends the run, and is named.

    Args:
        timeout: seconds of silence; 0: nobody watches.
        host: where rank 0 is reached.

    Raises:
        UserError: rank 0 is not reached, or ranks were told other timeouts.
        WorkFailed: another rank is lost, and an engine has failed for it.
    """
    ranks.check_alike(lambda: {"--rank-timeout": timeout})
    if not timeout:
        yield
        return
    ranks.pulse = pulse = Pulse(ranks.rank, ranks.world, timeout, by_hand=ranks.wire is not None)
    where = ranks.of_first(pulse.listen(host) if ranks.first else "")
    if ranks.wire is not None:
        where = " ".join([host, *where.split()[1:]])  # where this rank has reached it
    said = ""
    try:
        pulse.begin(where)
    except OSError as error:
        done = "is not reached by all others" if ranks.first else "does not reach rank 0"
        said = f"{done} at {where.split()[0]}: {error.strerror or error} (--rank-timeout 0 does without)"
    in_order = says_why = False
    try:
        # Who is not reached knows the least of it.
        for rank, text in reversed(list(enumerate(ranks.gather(said)))):
            if text:
                raise ranks.told(f"rank {rank} {text}")
        yield
        in_order = True
    except Stopped:
        in_order = True
        raise
    except (UserError, WorkFailed):
        says_why = True
        raise
    except RuntimeError as error:  # of an engine whose sum has failed, perhaps
        if (found := pulse.found()) is None:
            raise
        raise (WorkFailed(found) if pulse.speaks else ToldElsewhere(WorkFailed.exit_code)) from error
    finally:
        pulse.close(in_order=in_order, says_why=says_why)
