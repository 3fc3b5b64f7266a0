"""What opens a run where several processes train it: all check, all start from the same, and the first alone writes.

Alone a process is the first, and there is nobody to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt_common.commands import TrainCommand
from gpt_common.config import to_dict
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.peaks import Peak
from gpt_common.machine.power_meter import PowerMeter, open_meter
from gpt_common.machine.provenance import git_state, versions
from gpt_common.training.log.runlog import RunLog, read_metrics
from gpt_common.training.log.silent import SilentLog
from gpt_common.training.opening import Opening, open_run
from gpt_common.training.ranks.agreement import Agreement
from gpt_common.training.ranks.sharing import check_shared
from gpt_common.training.run_files import write_run_files
from gpt_common.training.schedule import Pace

OWN_FLAGS = {
    *("preset", "config", "run"),  # the configuration that came of them is compared, field by field
    *("name", "out", "resume", "init_from"),  # a folder of rank 0's; the same checkpoint may lie elsewhere
    *("force", "let_sleep", "power"),  # of a machine
    *("listen", "ranks", "join"),
}
"""What each rank may be told for itself. Of all else every rank must be told the same: one that measures, stops or
watches where another does not would leave that one waiting."""


def open_together(ranks: Agreement, command: TrainCommand, twin: str) -> Opening:
    """Open a run on every rank; what is wrong with one is said by the first.

    Raises:
        UserError: anything that the person must change, or two ranks that start from different things.
    """

    def open_here() -> Opening:
        ranks.check_dealt(command.run.train.grad_accum_steps)
        check_shared(command, twin, ranks.world, by_hand=ranks.wire is not None)
        return open_run(command, twin=twin, owner=ranks.first, ranks=ranks.world)

    ranks.shards_optimizer = command.shard_optimizer and ranks.world > 1
    opening = ranks.together(open_here)
    ranks.check_alike(lambda: _started_from(ranks, opening, command, twin))
    return opening


def _started_from(ranks: Agreement, opening: Opening, command: TrainCommand, twin: str) -> dict[str, object]:
    """What must be the same for all ranks."""
    settings = {
        f"{part}.{name}": value for part, fields in to_dict(opening.config).items() for name, value in fields.items()
    }
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    asked = {f"--{name.replace('_', '-')}": value for name, value in given.items() if name not in OWN_FLAGS}
    asked |= {"--resume": opening.resume_from is not None, "--init-from": opening.init_from is not None}
    here = {"first step": opening.first_step, "commit": git_state()}
    data = {"data": opening.dataset.fingerprint[:12]}  # behind the settings: another corpus is told by its name
    if ranks.wire is None:
        return {"twin": twin, **here, **asked, **settings, **data, **versions()}
    # Started by hand, each has its own twin, device and folder of data; numpy draws weights and batches.
    own = {"train.device", "data.data_dir"}
    settings = {name: value for name, value in settings.items() if name not in own}
    return {**here, **asked, **settings, **data, "numpy": versions()["numpy"]}


def _meet_by_hand(ranks: Agreement, opening: Opening, device: ComputeDevice, twin: str) -> Sequence[str]:
    """Find out whether ranks that were started by hand compute to the same bits; what needs that is refused.

    Returns:
        What each of them computes with.
    """
    ranks.check_alike(lambda: {"dtype": device.dtype})
    engines = ranks.gather(f"{twin} ({device.description}) on {opening.hardware.chip}")
    if len(set(engines)) == 1:
        return engines
    ranks.exact = False
    if opening.config.drops and opening.config.model.dropout_rng == "native":
        raise ranks.told("each twin and device drops other values: add --dropout-rng shared, or no dropout")
    if device.dtype != "float32":
        raise ranks.told("each twin and device rounds otherwise in bfloat16: add --dtype float32")
    return engines


def take_folder(
    ranks: Agreement, opening: Opening, device: ComputeDevice, *, twin: str, meter: bool
) -> tuple[Path, PowerMeter]:
    """Claim the folder and write down who is at work; the first rank does.

    Args:
        meter: look for a source of watts.

    Returns:
        The folder, which all know now, and the source; of other ranks one that tells nothing.
    """
    engines = _meet_by_hand(ranks, opening, device, twin) if ranks.wire is not None else ()

    def take() -> PowerMeter:
        if not ranks.first:
            return PowerMeter()
        power = open_meter(device.name) if meter else PowerMeter()
        write_run_files(
            opening,
            twin=twin,
            device=device.description,
            chip=opening.hardware.chip,
            power=power.about,
            ranks=ranks.world,
            engines=engines,
        )
        return power

    power = ranks.together(take)
    return Path(ranks.of_first(str(opening.folder))), power


def open_log(ranks: Agreement, opening: Opening, folder: Path) -> RunLog:
    """The run's log; of other ranks than the first one that writes and says nothing."""

    def open_it() -> RunLog:
        if not ranks.first:
            return SilentLog()
        return RunLog(
            folder,
            max_steps=opening.stop_at,
            first_step=opening.first_step,
            trackers=opening.config.train.trackers,
            config=to_dict(opening.config),
            run_name=folder.name,
        )

    return ranks.together(open_it)


def peak_of_all(ranks: Agreement, peak: Peak | None) -> float | None:
    """FLOP/s of all devices together, of which each may be another; None where one's is not known."""
    said = ranks.gather("" if peak is None else repr(peak.flops))
    return sum(map(float, said)) if all(said) else None


def new_pace(ranks: Agreement, opening: Opening, folder: Path) -> Pace | None:
    """What sets the number of steps, if it is a time that was asked for and not set by an earlier session."""
    minutes = opening.config.train.max_minutes
    events = read_metrics(folder) if minutes and opening.resume_from and ranks.first else []
    known = any(row.get("event") == "pace" for row in events)
    return Pace(minutes) if minutes and not ranks.of_first("known" if known else "") else None


def of_first_alone(ranks: Agreement, seconds: Callable[[], float]) -> float | None:
    """What the first rank measures while the others wait; None on those."""
    found = seconds() if ranks.first else None
    ranks.meet()
    return found
