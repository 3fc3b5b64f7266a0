"""What is left of a run when it ends: its report, and its curve in the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gpt_common.config import RunConfig
from gpt_common.data import Dataset
from gpt_common.data.batches import NumpyBatch, Rows, Split
from gpt_common.errors import UserError
from gpt_common.machine.power_samples import Energy
from gpt_common.training.log.timing import StepTimer
from gpt_common.training.report.curves import loss_line
from gpt_common.training.report.page import write_report
from gpt_common.training.report.past import read_run
from gpt_common.training.whole_text import WholeText, whole_text
from gpt_common.words import duration, in_joules, in_memory, share, watts


def closing_rows(
    step: int,
    config: RunConfig,
    *,
    ended: str | None,
    evaluated_step: int | None,
    whole: WholeText | str | None,
    estimated_on: int,
    best: tuple[int | None, float | None],
    floor: float | None,
    timer: StepTimer,
    peak_memory: int,
    energy: Energy | None,
    expert_shares: Sequence[Sequence[float]],
    ranks: Callable[[float, float], str] | None = None,
) -> list[tuple[str, str]]:
    """What the summary says of a run, a name and a value each.

    Args:
        step: steps done.
        ended: why the run ended before its schedule, if it did so by itself.
        evaluated_step: of the last evaluation.
        whole: loss on the whole validation split, or why it was not evaluated; None in the middle of a run.
        estimated_on: tokens of it that an evaluation predicts.
        best: step and loss of the best evaluation, nats per token; None where there was none.
        floor: best possible validation loss, where it is known.
        peak_memory: bytes; 0 where it is not known.
        energy: what this session used; None without a source.
        expert_shares: by router and expert, as multiples of the fair share.
        ranks: of processes that trained together: says what they did, given tokens per second and seconds of a step.
    """
    rows = [("steps", f"{step} of {config.train.max_steps}" + (f": {ended}" if ended else ""))]
    best_step, best_loss = best
    if best_loss is not None:
        at = f"at step {best_step}"
        if best_step == 0 and step:
            at = "before step 1: " + ("training never improved on it" if evaluated_step else "not evaluated since")
        on = f" (on {estimated_on:,} tokens)" if whole else ""
        rows.append(("best validation loss", f"{best_loss:.4f} nats/token {at}{on}"))
        if floor is not None:
            side = "above" if best_loss >= floor else "below"
            rows.append(("floor of this corpus", f"{floor:.4f} ({abs(best_loss - floor):.4f} {side} the floor)"))
    if isinstance(whole, WholeText):
        figures = f"{whole.loss:.4f} nats/token, {whole.bits_per_byte:.4f} bits/byte"
        rows.append(("whole split, at the end", f"{figures} (on {whole.tokens:,} tokens)"))
    elif whole:
        rows.append(("whole split", whole))
    if timer.total_steps:
        tokens = config.train.batch_size * config.train.grad_accum_steps * config.model.block_size
        per_step = timer.total_seconds / timer.total_steps
        rows.append(("speed", f"{tokens / per_step:,.0f} tokens/s, {1000 * per_step:.1f} ms/step"))
        if ranks is not None:
            rows.append(("ranks", ranks(tokens / per_step, per_step)))
    if peak_memory:
        rows.append(("peak memory", in_memory(peak_memory)))
    if energy:
        busy = "" if energy.gpu_usage is None else f", GPU busy {share(energy.gpu_usage)}"
        mean = f"{watts(energy.joules / energy.seconds)} W on average in {duration(energy.seconds)}{busy}"
        rows.append(("energy", f"{in_joules(energy.joules)}: {mean}, by {energy.source}"))
    if expert_shares:
        shares = [share for router in expert_shares for share in router]
        rows.append(("load of an expert", f"{min(shares):.2f} to {max(shares):.2f} times its fair share, at the end"))
    if timer.skipped:
        rows.append(("left out of averages", f"{timer.skipped} slow steps (machine asleep or throttled)"))
    return rows


def alarms_in_words(alarms: Sequence[str]) -> str:
    """`2 alarms, below`; nothing if none rang."""
    return f"{len(alarms)} alarm{'s' * (len(alarms) > 1)}, below" if alarms else ""


def whole_split(
    step: int,
    config: RunConfig,
    dataset: Dataset,
    split: Split,
    losses: Callable[[Iterable[NumpyBatch]], list[float]],
    note: Callable[[str], None],
    enough: Callable[[], bool],
) -> WholeText | str:
    """The loss on the whole validation split, or why it was not evaluated.

    A split with more tokens than were trained on would take longer than a third of the training, and is left out
    unless `eval_full` asks for it.

    Args:
        step: steps done.
        split: the validation split of `dataset`, as batches come from it.
        losses: of each batch, nats per token.
        note: says that it begins.
        enough: asked between batches whether to stop.
    """
    train = config.train
    trained = step * train.batch_size * train.grad_accum_steps * config.model.block_size
    count = len(split) * config.model.block_size if isinstance(split, Rows) else len(split)
    if count > trained and not train.eval_full:
        return "not evaluated, more than was trained on (--eval-full does)"
    note(f"evaluating the whole validation split, {len(dataset.val):,} tokens")
    sizes = {"block_size": config.model.block_size, "batch_size": train.batch_size}
    found = whole_text(split, dataset.tokenizer, losses, **sizes, enough=enough)
    return "not evaluated: interrupted" if found is None else found


def report_at_end(folder: Path, encoding: str) -> tuple[list[tuple[str, str]], str | None]:
    """Write report.html; whatever goes wrong with it must not cost the run, which is done and saved.

    Args:
        encoding: of where the summary is printed.

    Returns:
        Rows for the summary, and a line on what went wrong, if anything.
    """
    rows = []
    try:
        run = read_run(folder, going=False)
        if line := loss_line(run.course, encoding):
            rows.append(("loss", line))
        rows.append(("report", str(write_report(run))))
    except Exception as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return rows, " ".join(f"no report was made: {what}".split())[:300]
    return rows, None
