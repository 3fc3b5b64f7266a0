"""What surrounds the training loop and is the same in both twins: its data, clock, records and checkpoints.

The twins keep what a reader compares, the model, the step and the loop itself; what is due after a step is due.py,
how a run is opened opening.py.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from gpt_common.commands import SampleSettings, TrainCommand
from gpt_common.config import to_dict
from gpt_common.data.batches import NumpyBatch, estimated_on, training_batch
from gpt_common.data.tokenizers import identity
from gpt_common.errors import Stopped, UserError, WorkFailed, watching_signals
from gpt_common.keyed import draws
from gpt_common.machine.awake import awake
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.hardware import published_peak
from gpt_common.machine.power_meter import PowerMeter
from gpt_common.machine.provenance import versions
from gpt_common.network.flops import flops_per_token_palm, mfu
from gpt_common.sampling import until_end
from gpt_common.training.checkpoint import place_of, write_checkpoint
from gpt_common.training.due import Due, gave_up
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.health.gates import GateFailed, TrainedProbe
from gpt_common.training.health.watch import Health
from gpt_common.training.log.record import StepRecord, fair_shares
from gpt_common.training.log.timing import StepTimer
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest, base_entry
from gpt_common.training.ranks.agreement import TIME_OVER, Agreement
from gpt_common.training.ranks.averaging import Averaging
from gpt_common.training.ranks.opening import (
    new_pace,
    of_first_alone,
    open_log,
    open_together,
    peak_of_all,
    take_folder,
)
from gpt_common.training.ranks.times import RankTimes
from gpt_common.training.report.beginning import long_way, opening_lines
from gpt_common.training.report.ending import alarms_in_words, closing_rows, report_at_end, whole_split
from gpt_common.training.schedule import Pace
from gpt_common.training.whole_text import WholeText
from gpt_common.words import milliseconds, say


class Run:
    """A run from opening to summary. Use it as a context manager around everything that may fail.

    While it lasts the run's folder is its own; a start that fails leaves no folder behind.

    Args:
        command: the parsed command line.
        twin: "mlx_gpt" or "torch_gpt".
        why_preset: a few words on why this preset, if nobody named one.
        ranks: the processes that train together, if there are several; the first has the folder, and speaks.

    Raises:
        UserError: anything about data, folder, checkpoint or configuration that the person must change.
    """

    def __init__(
        self, command: TrainCommand, *, twin: str, why_preset: str | None = None, ranks: Agreement | None = None
    ) -> None:
        self._began = time.monotonic()
        self.ranks = ranks = ranks or Agreement()
        self.twin = twin
        self.why_preset = why_preset
        self.let_sleep, self.asks_power = command.let_sleep, command.power
        self.asks_efficiency = command.measure_efficiency
        self.power = PowerMeter()
        self.parallel = command.parallel
        self.opening = opening = open_together(ranks, command, twin)
        self.config, self.dataset, self.folder = opening.config, opening.dataset, opening.folder
        self.resume_from, self.init_from, self.growth = opening.resume_from, opening.init_from, opening.growth
        self.grids = opening.grids
        self.first_step, self.stop_at = opening.first_step, opening.stop_at
        self.following = opening.following
        self.best_step, self.best_val_loss = opening.best_step, opening.best_val_loss
        self.val_loss: float | None = None
        self.evaluated_step: int | None = None
        self.ended: str | None = None
        """Why the run ends before the end of its schedule, if it does so by itself."""
        self.step = self.saved_step = self.first_step
        self._met_step = self.first_step
        """Of the last checkpoint that the first rank is known to have written."""
        self.expert_loads: Sequence[Sequence[int]] = ()
        self.peak_memory = 0
        self._said_how_long = self._waits = self._apart = False

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power.close()
        self.opening.hold.discard_unused()
        self.opening.hold.release()

    # ---- opening and closing -------------------------------------------------------------------------------------

    def start(
        self,
        device: ComputeDevice,
        probe: StepProbe,
        evaluated: TrainedProbe,
        load: Callable[[Path], TrainedProbe],
    ) -> AbstractContextManager[Run]:
        """Make or take up the folder, open the log, watch for signals; sums up and closes all of it at the end.

        Args:
            probe: of what is trained; the gates ask it.
            evaluated: of what is evaluated: the same, or the mean of its weights.
            load: of a checkpoint, opened as anyone would who uses it.

        Raises:
            Stopped: at the end, if a signal ended the run.
        """
        self.device, self.evaluated = device, evaluated
        hardware = self.opening.hardware
        self.peak = peak_of_all(self.ranks, published_peak(hardware, device.name, device.dtype))
        self.folder, self.power = take_folder(self.ranks, self.opening, device, twin=self.twin, meter=self.asks_power)
        self.ranks.tell_when_lost(self._how_to_go_on)
        self.ranks.apart = self.config.train.average_every > 0
        self.averaging = Averaging(self.config.train, self.ranks, probe, self.resume_from) if self.ranks.apart else None
        self.timer = StepTimer()
        self.pace = new_pace(self.ranks, self.opening, self.folder)
        self.log = open_log(self.ranks, self.opening, self.folder)
        self.probe = probe
        self.times = RankTimes(
            self.ranks, self.first_step, self.log.note, told=self.parallel == "flat" and not self.ranks.apart
        )
        self.health = Health(
            self.config,
            self.dataset,
            (self.opening.train, self.opening.val),
            probe,
            evaluated,
            load,
            dtype=device.dtype,
            first_step=self.first_step,
            fresh=self.resume_from is None and self.init_from is None,
            lowest=self.best_val_loss,
            note=self.log.note,
            warn=self.log.warn,
            ranks=self.ranks,
        )
        self._data_seconds, self._data_steps, self._evaluation_seconds = 0.0, 0, 0.0
        for line in ([self.why_preset] if self.why_preset else []) + opening_lines(
            self.opening, device, timed=self.pace is not None
        ):
            self.log.note(line)
        self._say_news()
        self.power.start(self.log.note)
        return self._opened()

    @property
    def interrupted(self) -> int | None:
        """The signal after which the run ends, if one came, to any of the ranks."""
        return self.ranks.stopped_by

    def _how_to_go_on(self) -> str:
        # Another rank knows that something is saved when it has met the first one after that.
        saved = self.saved_step if self.ranks.first else self._met_step
        if saved == self.first_step and not self.resume_from:
            return f"nothing is saved yet in {self.folder}: start again"
        return f"saved is step {saved}: started as before, --resume {self.folder} goes on"

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        def remember(number: int) -> None:
            self.ranks.wish(number)
            until = "going on to the next average" if self.averaging is not None else "finishing this step"
            self.log.note(f"{signal.Signals(number).name}: {until} and saving ...")

        with watching_signals(remember), self.log, awake(self.log.note, wanted=not self.let_sleep):
            try:
                yield self
            except WorkFailed as error:
                if not self.ranks.first:
                    raise self.ranks.failed_here(error) from error
                self.log.energy(self.step, self.power.energy)
                if self.config.train.report and self.step > self.first_step:
                    report_at_end(self.folder, self.log.encoding)
                raise
            self.ranks.part()
            if self.ranks.first:
                self._finish()
                return
            if self.ranks.wire is not None:
                say(f"the end after step {self.step}: the first rank has the run, in {self.folder}")
            if self.interrupted is not None:
                raise Stopped(self.interrupted)

    # ---- what the loop asks --------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The steps to do, from 0; after a signal no more than the one that was begun."""
        self.ranks.meet()  # the first has sampled, and the others have not: no step waits for that
        self.timer.restart()
        self.times.begin()
        self._start_up = time.monotonic() - self._began
        if self.pace:
            self.pace.begin()
        step = self.first_step
        while step < self.stop_at:
            yield step
            step += 1
            if (self.interrupted is not None or self.ended) and self.saved_step == self.step:
                return
            if self._apart:
                self.ranks.meet()  # the first has sampled and saved, and the others have not
                self._met_step = self.saved_step
            if self._waits and step < self.stop_at and not self._waited(step):
                return

    def batches(self, step: int, *, whole: bool = False) -> list[NumpyBatch]:
        """The batch of every micro-step; a pure function of seed and step.

        Args:
            whole: in windows of the whole length, whatever the step has.
        """
        began = time.perf_counter()
        train, (batch_size, block_size) = self.config.train, self.config.windows(step)
        if whole:
            batch_size, block_size = train.batch_size, self.config.model.block_size
        batches = [
            training_batch(
                self.opening.train,
                block_size=block_size,
                batch_size=batch_size,
                seed=train.seed,
                step=step,
                micro_step=micro_step,
                micro_steps=train.grad_accum_steps,
            )
            for micro_step in range(train.grad_accum_steps)
        ]
        self._data_seconds += time.perf_counter() - began
        self._data_steps += 1
        self.health.on_batches(step, batches)
        if self.ranks.world > 1:
            self.ranks.lack(wanted=step + 1 < self.stop_at and self.following.lacks(step + 1))
        return batches

    def check_start(self) -> None:
        """Gates before the first step: can this model learn at all? Raises GateFailed."""
        first = self.first_step
        # Model and step are asked at the whole length: what short windows at the beginning hold is part of it.
        longer = self.batches(first, whole=True) if first < self.config.train.short_context_steps else ()
        self.health.check_start(self.batches(first), self.batches(first + 1), self.resume_from, longer)
        if self.asks_efficiency and self.ranks.world > 1:
            self._measure_alone()

    def _measure_alone(self) -> None:
        """Time some steps of the first rank alone, which are undone, while the others wait."""
        batches = self.batches(self.first_step)
        seconds = of_first_alone(self.ranks, lambda: self.probe.seconds_alone(batches, self.first_step))
        if seconds is not None:
            self.times.alone = seconds
            self.log.event("alone", self.first_step, seconds_per_step=round(seconds, 6))
            self.log.note(f"one rank alone takes {milliseconds(seconds)} ms for a step")

    def after_step(self, step: int) -> Due:
        """What is due after so many steps. Waits for the device if so, stops the clock, moves the progress bar."""
        self.step = step
        self.ranks.after_step()
        if self.pace and self.pace.over:
            self.ranks.wish(TIME_OVER)
        if self.averaging is not None and self.averaging.due(step, self.stop_at):
            self.averaging.average(step)
        if self.pace and self.ranks.time_over:
            self._end(f"the {self.config.train.max_minutes:g} minutes are over")
            self.log.warn(f"steps became slower than they were timed: the learning rate stays at that of step {step}")
        due = Due(
            step, self.config.train, self.first_step, self.stop_at, lambda: self.ended is not None, self._must_save
        )
        lacks = self.ranks.lacking if self.ranks.world > 1 else self.following.lacks(step)
        self._waits = step < self.stop_at and lacks
        self._say_news()
        if due.anything:
            self.device.synchronise()
        self._apart = due.anything
        for alarm in self.timer.lap(step, waited=self.device.synchronous or due.anything):
            self.log.warn(alarm)
        if self.pace and not self.pace.set:
            self._set_pace(self.pace, step)
        if step == self.first_step + 1 and self.timer.first_seconds is not None:
            self.log.started(step, start_up=self._start_up, first_step_seconds=self.timer.first_seconds)
        self.log.tick(step)
        return due

    def _must_save(self) -> bool:
        # Before it waits too: nobody knows for how long.
        return self.interrupted is not None or self.best_step == self.step or self._waits

    def _waited(self, step: int) -> bool:
        """Wait for the tokens of step number `step` (from 0); everything is saved. False if the run ends here."""
        began = time.monotonic()
        with self.timer.paused():
            there = self.following.wait(
                step,
                self.log.note,
                lambda: self.interrupted is not None,
                show=self.log.waiting,
                agree=self.ranks.all_there if self.ranks.world > 1 else None,
            )
        if self.pace:
            self.pace.leave_out(time.monotonic() - began)
        return there

    def _say_news(self) -> None:
        if line := self.following.news(self.max_steps):
            self.log.note(line)

    def _end(self, why: str) -> None:
        """Let the run end with this step, and say why."""
        if self.ended is None:
            self.ended = why
            self.log.event("end", self.step, why=why)
            self.log.note(f"step {self.step}: {why}: the run ends here")

    def _set_pace(self, pace: Pace, step: int) -> None:
        """The schedule is for as many steps as the time has room for, once enough were timed by rank 0's clock."""
        train, timer = self.config.train, self.timer
        between = self._evaluation_seconds / train.eval_interval if train.eval_interval else 0.0
        ready = pace.ready(timer.total_steps, timer.total_seconds)
        each = timer.total_seconds / timer.total_steps if ready else math.nan
        found = self.ranks.of_first(f"{pace.steps(step, each + between)} {each}" if ready else "")
        if not found:
            return
        pace.set, max_steps, each = True, int(found.split()[0]), float(found.split()[1])
        self.stop_at = max_steps if self.stop_at == train.max_steps else min(self.stop_at, max_steps)
        self.config = replace(self.config, train=replace(train, max_steps=max_steps))
        self.health.alarms.max_steps = max_steps
        self.log.reschedule(step, max_steps, each)
        if max_steps < 2 * self.config.optim.warmup_steps:
            self.log.warn(f"warm-up takes {self.config.optim.warmup_steps} of {max_steps} steps: lower --warmup-steps")

    @property
    def max_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.config.train.max_steps

    # ---- what the loop reports -----------------------------------------------------------------------------------

    def record(
        self,
        step: int,
        *,
        losses: Sequence[float],
        lr: float,
        grad_norm: float,
        expert_loads: Sequence[Sequence[int]] = (),
    ) -> None:
        """Log a step.

        Args:
            losses: of all steps since the last record, nats per token.
            expert_loads: tokens that each expert got since the last record, for every router.

        Raises:
            Diverged: the loss or the gradient is not finite.
            GateFailed: the first update left a parameter where it was.
        """
        memory = self.device.peak_memory()
        dt, _ = self.timer.window()
        self.peak_memory = max(self.peak_memory, memory)
        batch_size, block_size = self.config.windows(step - 1)
        sequences = batch_size * self.config.train.grad_accum_steps / dt
        tokens = sequences * block_size
        self.expert_loads = expert_loads or self.expert_loads
        utilisation = mfu(tokens * flops_per_token_palm(self.config.model, block_size, self.config.adapter), self.peak)
        self.log.step(
            StepRecord(
                step=step,
                loss=losses[-1],
                lr=lr,
                grad_norm=grad_norm,
                dt=dt,
                dt_data=self._data_seconds / max(1, self._data_steps),
                sps=sequences,
                tps=tokens,
                mfu=utilisation,
                memory=memory,
                expert_load=fair_shares(expert_loads),
                **self.power.reading()._asdict(),
                **self.times.of_step(step, tokens, dt),
            )
        )
        self._data_seconds, self._data_steps = 0.0, 0
        if not self._said_how_long and (line := long_way(self.stop_at - step, dt)):
            self.log.note(line)
        self._said_how_long |= not math.isnan(dt)
        with self.timer.paused():
            self.health.on_steps(step, losses, lr, grad_norm)
            self.health.on_speed(step, utilisation, dt * self.ranks.world, gpu=self.device.name != "cpu")

    def evaluate(self, step: int) -> None:
        """Take and log the mean loss over the fixed validation batches, and remember the best."""
        with self.timer.paused():
            began = time.monotonic()
            train_loss, val_loss = self.health.loss_on(self.health.train), self.health.loss_on(self.health.val)
            self._evaluation_seconds = time.monotonic() - began
            best = self.best_val_loss is None or val_loss < self.best_val_loss
            if best:
                self.best_step, self.best_val_loss = step, val_loss
            self.val_loss, self.evaluated_step = val_loss, step
            self.log.evaluation(step, train_loss=train_loss, val_loss=val_loss, floor=self.dataset.floor, best=best)
            self.health.on_evaluation(step, train_loss, val_loss)
            if gave_up(self.config.train, step, self.best_step):
                self._end(f"no better validation loss since step {self.best_step}")

    def sample(
        self, step: int, generate: Callable[[Sequence[int], SampleSettings, Iterator[float], int], Iterator[int]]
    ) -> None:
        """Continue every prompt and log the text."""
        train = self.config.train
        if not train.sample_tokens or not self.ranks.first:
            return
        settings = SampleSettings(max_new_tokens=train.sample_tokens, temperature=train.sample_temperature)
        with self.timer.paused():
            for number, (prompt, ids) in enumerate(self.opening.prompts.items()):
                tokens = generate(ids, settings, draws(train.seed, number), self.dataset.tokenizer.vocab_size)
                new = list(until_end(tokens, self.dataset.tokenizer))
                self.log.sample(step, prompt, self.dataset.tokenizer.decode(new))

    def save(self, step: int, save_tensors: Callable[[Path], None]) -> None:
        """Commit a checkpoint; raises UserError if there is no room for it, Diverged if the weights are spoilt."""
        with self.timer.paused():
            self.health.on_save(step)
            if not self.ranks.first:
                self.saved_step = step
                return
            tokenizer = self.dataset.tokenizer
            batch = self.config.train.batch_size * self.config.train.grad_accum_steps
            manifest = Manifest(
                step=step,
                config=to_dict(self.config),
                tokens=step * batch * self.config.model.block_size,
                val_loss=self.val_loss if self.evaluated_step == step else None,
                best_step=self.best_step,
                best_val_loss=self.best_val_loss,
                dataset=self.dataset.identity,
                tokenizer=identity(tokenizer),
                prompt=self.dataset.prompt,
                written_by={"program": self.twin, "versions": versions()},
                base=None if self.opening.base is None else base_entry(self.opening.base, place_of(self.folder, step)),
            )

            def write_files(folder: Path) -> None:
                save_tensors(folder)
                if self.averaging is not None:
                    self.averaging.save(folder)
                tokenizer.save(folder / TOKENIZER_FILE)

            best, keep = self.best_step == step, self.config.train.keep_checkpoints
            write_checkpoint(self.folder, manifest, write_files=write_files, best=best, keep=keep)
            self.saved_step = step
            self.health.on_saved(self.folder, step, self.best_step)

    def _evaluate_whole(self) -> WholeText | str | None:
        """The loss on the whole validation split, when training is at its end; or why it was not evaluated."""
        if self.interrupted is not None or not (self.ended or self.step == self.max_steps):
            return None
        if self.ranks.deals_weights:
            return f"not evaluated, no rank has all weights: python -m {self.twin}.evaluate {self.folder}"
        enough = lambda: self.interrupted is not None  # noqa: E731
        found = whole_split(
            self.step, self.config, self.dataset, self.opening.val, self.evaluated.losses, self.log.note, enough
        )
        if isinstance(found, WholeText):
            self.log.whole_text(self.step, found)
        return found

    def _finish(self) -> None:
        train, whole = self.config.train, self._evaluate_whole()
        self.log.energy(self.step, energy := self.power.energy)
        rows = closing_rows(
            self.step,
            self.config,
            ended=self.ended,
            evaluated_step=self.evaluated_step,
            whole=whole,
            estimated_on=estimated_on(
                self.opening.val,
                block_size=self.config.model.block_size,
                batch_size=train.batch_size,
                batches=train.eval_batches,
            ),
            best=(self.best_step, self.best_val_loss),
            floor=self.dataset.floor,
            timer=self.timer,
            peak_memory=self.peak_memory,
            energy=energy,
            expert_shares=fair_shares(self.expert_loads) or (),
            ranks=self.times.in_words if self.ranks.world > 1 else None,
        )
        broken = self._read_back(rows)
        found, problem = report_at_end(self.folder, self.log.encoding) if self.config.train.report else ([], None)
        rows += found
        if problem:
            self.log.note(problem)
        rows.append(
            ("health", f"look at this: {count}" if (count := alarms_in_words(self.health.rang)) else "no alarm")
        )
        rows.append(("files", str(self.folder)))
        done = self.step == self.config.train.max_steps or self.ended is not None
        hint = f"python -m {self.twin}." + (f"sample {self.folder}" if done else f"train --resume {self.folder}")
        self.log.summary(title="done" if done else "stopped", rows=rows, command_hint=hint)
        if broken is not None:
            raise broken
        if self.interrupted is not None:
            raise Stopped(self.interrupted)
        if self.following.error is not None:
            raise UserError(f"{self.following.error}; then `{hint}` goes on")

    def _read_back(self, rows: list[tuple[str, str]]) -> GateFailed | None:
        """What was saved, loaded again; after a signal there is no time for it."""
        if (
            self.interrupted is not None
            or self.saved_step == self.first_step
            or self.config.train.health_gates == "off"
        ):
            return None
        try:
            found = self.health.read_back(self.folder, (self.best_step, self.best_val_loss))
        except GateFailed as error:
            self.health.warn(str(error))
            return error
        rows += [("read back", found)] if found else []
        return None
