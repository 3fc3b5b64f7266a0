"""A run as a page, and several runs over each other: one self-contained file each, without scripts or network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.config import to_dict
from gpt_common.drawing import colour, css, page_colour, svg
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.training.report import figures
from gpt_common.training.report.curves import Curve
from gpt_common.training.report.past import PastRun, Sample, made_as
from gpt_common.training.report.probes import Probed, drawing, read_probes
from gpt_common.words import duration, in_joules, in_memory, milliseconds, printable, rate, share, usage, watts

REPORT = "report.html"
"""Its name in the folder of a run."""
SHOWN_ALARMS, SHOWN_PROMPTS, SHOWN_SESSIONS = 20, 12, 50
SHOWN_CHARACTERS = 2000
"""Of a sample, of a prompt or of a value of the configuration."""


def write_report(run: PastRun, path: Path | None = None) -> Path:
    """Write a run's page, by default into its folder; returns where.

    Raises:
        UserError: it cannot be written, or a package is missing.
    """
    return write_page(render_report(run), path or run.folder / REPORT)


def write_comparison(runs: Mapping[str, PastRun], path: Path) -> Path:
    """Write the page that compares runs, by their names on it.

    Raises:
        UserError: it cannot be written, or a package is missing.
    """
    return write_page(render_comparison(runs), path)


def write_page(page: str, path: Path) -> Path:
    """Write a page; raises UserError where it cannot be written."""
    try:
        # Lone surrogates of a damaged text have no UTF-8.
        write_atomically(path, page.encode("utf-8", "replace").decode())
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def render_report(run: PastRun) -> str:
    """The page of one run."""
    course, last = run.course, run.sessions[-1] if run.sessions else {}
    steps, samples = sample_table(run.samples)
    logged = len(course.steps) + len(course.evaluations) > 0
    panels = figures.panels_of_progress(course)
    loads = figures.expert_loads(course)
    probed = read_probes(run.folder)
    return render(
        "report.html.jinja",
        run=run,
        over=", ".join(filter(None, (run.twin, run.origin, run.dataset and f"data: {run.dataset}"))),
        sentence=sentence(run),
        facts=facts(run),
        alarms=[alarm_in_words(*alarm) for alarm in course.alarms[:SHOWN_ALARMS]],
        more_alarms=max(len(course.alarms) - SHOWN_ALARMS, 0),
        losses=svg(figures.losses(course), "loss", "Loss over steps and time", height=340, narrow_height=560)
        if logged
        else "",
        progress=svg(
            figures.progress(course),
            "progress",
            ", ".join(panels.values()) + ", over steps",
            height=220 * -(-len(panels) // 2),
            narrow_height=190 * len(panels),
        )
        if len(course.steps)
        else "",
        loads=svg(loads, "loads", "Loads of experts", height=260, narrow_height=460) if loads else "",
        heading="Rate, gradient, speed, memory" + ", power" * ("power_watts" in panels),
        captions={"loss": loss_caption(run), "speed": speed_caption(run)},
        probed=probed,
        probes=svg_of_probes(probed) if probed else "",
        samples=samples[:SHOWN_PROMPTS],
        sample_steps=steps,
        more_samples=len(run.samples) - sum(sample is not None for row in samples[:SHOWN_PROMPTS] for sample in row),
        environment=[
            *((name, last[name]) for name in ("device", "chip", "os", "git") if last.get(name)),
            *(last["versions"].items() if isinstance(last.get("versions"), dict) else ()),
        ],
        sessions=session_rows(run),
    )


def svg_of_probes(probed: Probed) -> str:
    """The picture of what probes found, if anything can be drawn."""
    if not probed.reliability and not probed.agreement:
        return ""
    return svg(drawing(probed), "probes", "Reliability, and facts repeated rightly", height=380, narrow_height=700)


def render_comparison(runs: Mapping[str, PastRun]) -> str:
    """The page of several runs."""
    heads, rows = comparison(runs)
    return render(
        "compare.html.jinja",
        names=list(runs),
        heads=heads,
        rows=rows,
        numeric=range(3, len(heads)),
        colours=[page_colour(colour(i)) for i in range(len(runs))],
        losses=svg(figures.compared(runs), "compared", "Losses of the runs", height=1000, narrow_height=860),
        differences=configuration_differences(list(runs.values())),
    )


def render(template: str, *, folder: Path = Path(__file__).parent, **values: Any) -> str:
    """A page from a template that extends base.html.jinja, and lies in `folder`."""
    try:
        import jinja2
    except ImportError:
        raise UserError("a report needs jinja2: pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Figures are safe already (Markup); whatever else comes from files has no control characters on a page.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = shown
    return environment.get_template(template).render(css=css(), **values)


def shown(value: Any) -> str:
    """A value of the configuration, as TOML writes it."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return cut(text)


def cut(text: str) -> str:
    """No more of a text than anyone reads on a page."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


def loss(value: float) -> str:
    """`0.5213`, `12.31`; `-` where there is none."""
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def sentence(run: PastRun) -> str:
    """How a run went, in a sentence or two."""
    if run.made is not None:
        found = run.made.best_val_loss
        told = "" if found is None else f" Best validation loss {loss(found)} nats per token."
        return f"Not trained here ({made_as(run.made)}): step {run.made.step:,}.{told}"
    course, of = run.course, run.max_steps
    how = {"running": "Still running", "done": "Done", "stopped": "Stopped"}[run.state]
    said = f"{how}: {course.last_step:,} of {of:,} steps" + (f", {course.ended}." if course.ended else ".")
    if course.best is None:
        return f"{said} It was not evaluated yet."
    step, best = course.best
    said += f" Best validation loss {loss(best)} nats per token, at step {step:,}"
    if course.excess is None:
        return f"{said}."
    side = "below" if course.excess < 0 else "above"
    return f"{said}: {loss(abs(course.excess))} {side} the lowest possible one."


def facts(run: PastRun) -> list[tuple[str, str]]:
    """(what, figure) of the first row of a report."""
    course, session = run.course, run.course.sessions[-1]
    found = [("parameters", f"{run.parameters[0]:,}")]
    if run.parameters[1] != run.parameters[0]:
        found.append(("of them active", f"{run.parameters[1]:,}"))
    found.append(("tokens", rate(course.last_step * course.tokens_per_step)))
    found.append(("training time", duration(course.seconds)))
    if course.whole is not None:
        found.append(("whole split", f"{loss(course.whole[1])} nats"))
        found.append(("bits per byte", loss(course.whole[2])))
    found.append(("tokens/s", rate(course.tokens_per_second)))
    if session.start_up is not None:
        found.append(("start-up", seconds(session.start_up)))
    if session.first_step_seconds is not None:
        found.append(("first step", seconds(session.first_step_seconds)))
    if course.memory is not None:
        found.append(("peak memory", in_memory(course.memory)))
    mfu = course.steps.finite("mfu")
    if len(mfu):
        found.append(("MFU", share(float(np.median(mfu)))))
    if course.used is not None:
        found.append(("energy", in_joules(course.used.joules)))
        found.append(("mean power", f"{watts(course.used.joules / course.used.seconds)} W"))
    usages = course.steps.finite("gpu_usage")
    if len(usages):
        found.append(("GPU busy", usage(float(np.median(usages)))))
    return found + _of_ranks(course.steps)


def _of_ranks(steps: Curve) -> list[tuple[str, str]]:
    """How long rank 0 waited for others, who was last most often, and what each is worth; nothing of a single one."""
    found, slowest = [], steps.finite("slowest_rank")
    with np.errstate(all="ignore"):  # a log may say anything
        parts = steps.values["dt_ranks"] / steps.values["dt"]
    if np.isfinite(parts).any():
        found.append(("in sums over ranks", share(float(np.nanmedian(parts)))))
    if len(slowest):
        ranks, counts = np.unique(slowest, return_counts=True)
        behind = steps.finite("dt_behind")
        by = f", by {milliseconds(float(np.median(behind)))} ms" if len(behind) else ""
        found.append(("slowest rank", f"{ranks[counts.argmax()]:g}{by}"))
    if len(worth := steps.finite("efficiency")):
        found.append(("efficiency of a rank", share(float(np.median(worth)))))
    return found


def alarm_in_words(step: int, alarm: str) -> str:
    """`step 700: the loss rises`; many alarms name their step themselves."""
    alarm = cut(alarm)
    return alarm if alarm.startswith("step ") else f"step {step}: {alarm}"


def seconds(value: float | None) -> str:
    """`0.41 s`, `12.3 s`, `2:05`; `-` where it is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 60 else duration(value)


def loss_caption(run: PastRun) -> str:
    """What lies in the pictures of losses."""
    said = ["Time is that of training, with evaluations and checkpoints, without start-up."]
    if len(run.course.sessions) > 1:
        said.append("Dotted lines: where the run was taken up again.")
    if run.course.alarms:
        said.append("Triangles: alarms.")
    missing = int(np.isnan(run.course.steps.values["loss"]).sum())
    if missing:
        said.append(f"Logged losses that were not finite: {missing}.")
    return " ".join(said)


def speed_caption(run: PastRun) -> str:
    """How much of the time went into steps, and what the gaps of the speed are."""
    _, stepping = run.course.stepping
    said = []
    if run.course.seconds > stepping > 0:
        said.append(
            f"Steps took {share(stepping / run.course.seconds)} of the training time; the rest went into evaluation, "
            "samples, checkpoints and steps left out."
        )
    if run.course.untimed:
        said.append("Red: no step was timed there (the first one, which warms up; a machine asleep or throttled).")
    if power := power_caption(run):
        said.append(power)
    return " ".join(said)


def power_caption(run: PastRun) -> str:
    """Who told the power, for how long, and what it counts."""
    told = [session["power"] for session in run.sessions if isinstance(session.get("power"), dict)]
    sources = {f"{power.get('source')}: {power.get('counts')}": None for power in told if power.get("source")}
    if not sources:
        return ""
    said = f"Power is an estimate, by {' and '.join(map(cut, sources))}."
    used = run.course.used
    if used is None:
        return f"{said} The energy is not known: no session wrote it down."
    return f"{said} The energy is that of {duration(used.seconds)} in {used.sessions} of {len(run.sessions)} sessions."


def sample_table(samples: Sequence[Sample]) -> tuple[list[str], list[list[Sample | None]]]:
    """Headings, and of every prompt its continuations before, during and after training, side by side."""
    steps = sorted({sample.step for sample in samples})
    if len(steps) > 3:
        steps = [steps[0], steps[len(steps) // 2], steps[-1]]
    by_place = {(sample.prompt, sample.step): sample for sample in samples}
    rows: list[list[Sample | None]] = []
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        row = [by_place.get((prompt, step)) for step in steps]
        rows.append([s and Sample(s.step, cut(s.prompt), cut(s.text)) for s in row])
    return [f"step {step:,}" if step else "before training" for step in steps], rows


def session_rows(run: PastRun) -> list[dict[str, Any]]:
    """Of every session of run.json: when, from which step, with which command, and how long it took to begin."""
    begun = {session.first_step: session for session in run.course.sessions}
    rows = []
    for session in run.sessions[-SHOWN_SESSIONS:]:
        first = session.get("first_step")
        known = begun.get(first) if isinstance(first, int) else None
        rows.append(
            {
                "started": str(session.get("started", "-"))[:19].replace("T", " "),
                "first_step": "-" if first is None else first,
                "start_up": seconds(known.start_up if known else None),
                "first": seconds(known.first_step_seconds if known else None),
                "command": cut(str(session.get("command", "-"))),
            }
        )
    return rows


def comparison(runs: Mapping[str, PastRun]) -> tuple[list[str], list[list[str]]]:
    """The table of several runs: headings and rows."""
    heads = ["run", "twin", "data", "best loss", "above floor", "at step", "steps", "tokens", "time", "tokens/s"]
    rows = []
    for name, run in runs.items():
        course = run.course
        step, best = course.best or (None, math.nan)
        rows.append(
            [
                name,
                run.twin,
                run.dataset,
                loss(best),
                loss(math.nan if course.excess is None else course.excess),
                "-" if step is None else str(step),
                f"{course.last_step}/{run.max_steps}",
                rate(course.last_step * course.tokens_per_step),
                duration(course.seconds),
                rate(course.tokens_per_second),
            ]
        )
    return heads, rows


def configuration_differences(runs: Sequence[PastRun]) -> dict[str, list[Any]]:
    """Fields of the configuration in which runs differ, with the value of each."""
    tables = [to_dict(run.config) for run in runs]
    found = {
        f"{table}.{key}": [other[table][key] for other in tables]
        for table, values in tables[0].items()
        for key in values
    }
    found = {field: values for field, values in found.items() if any(value != values[0] for value in values)}
    devices = [run.sessions[-1].get("device", "-") if run.sessions else "-" for run in runs]
    return found | ({"device": devices} if len({str(device) for device in devices}) > 1 else {})
