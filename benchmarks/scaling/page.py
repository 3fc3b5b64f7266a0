"""A grid as a page: one self-contained file beside its runs, without scripts or network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.scaling.findings import PUBLISHED, Findings, count, published_rows
from benchmarks.scaling.foretelling import Foretold
from benchmarks.scaling.grid import repeated
from benchmarks.scaling.laws import Fit, Point
from benchmarks.scaling.pictures import View, by_size, compute, contours, residuals, titles
from benchmarks.scaling.size import SizeFit
from gpt_common.drawing import svg
from gpt_common.sweep.definition import Cell
from gpt_common.training.report.page import loss, render, write_page
from gpt_common.training.report.past import PastRun

PAGE = "scaling.html"
"""Its name in the folder of the runs."""


def write_scaling(view: View, name: str, told: Sequence[tuple[str, str]], folder: Path) -> Path:
    """Write the page into the folder of the runs; returns where.

    Args:
        name: of the grid.
        told: how the runs were made, (what, words).

    Raises:
        UserError: it cannot be written, or a package is missing.
    """
    return write_page(render_scaling(view, name, told), folder / PAGE)


def render_scaling(view: View, name: str, told: Sequence[tuple[str, str]]) -> str:
    """The page."""
    findings, points = view.findings, titles(view)
    residual_titles = {f"{x}{gid}": said for gid, said in points.items() for x in ("parameters", "tokens")}
    lengths = sorted({point.tokens for point in findings.points}, reverse=True)
    return render(
        "page.html.jinja",
        folder=Path(__file__).parent,
        name=name,
        findings=findings,
        facts=facts(findings),
        compute=svg(
            compute(view), "compute", "Loss over FLOPs of training, with the envelope of the runs and the law's best",
            height=470, narrow_height=520, titles=points,
        ),
        contours=svg(
            contours(view), "contours", "Lines of equal loss over parameters and tokens",
            height=460, narrow_height=420, titles=points,
        ),
        by_size=svg(
            by_size(view, findings.size), "size", "Loss over parameters of the runs with the most tokens",
            height=440, narrow_height=480, titles=titles(view, findings.size.tokens),
        ) if findings.size is not None else "",
        residuals=svg(
            residuals(view), "residuals", "How far each run is off the law, over parameters and over tokens",
            height=300, narrow_height=520, titles=residual_titles,
        ),
        depths=view.depths,
        tables=[(length_in_words(findings, length), losses(view, length)) for length in lengths],
        fits_as_rows=[[title, *fit_row(fit)] for title, fit in fits(findings)],
        size_row=size_row(findings.size) if findings.size is not None else [],
        exponents=exponents(findings),
        held_out=held_out(findings),
        foretold=[row for each in view.foretold for row in foretold_rows(each)],
        remarks=[f"{each.name}: {said}." for each in view.foretold for said in remarks(each)],
        published=list(PUBLISHED),
        published_as_rows=[[flops, *cells] for flops, cells in published_rows()],
        told=told,
    )  # fmt: skip


def told(runs: Sequence[tuple[Cell, PastRun]], command: str) -> list[tuple[str, str]]:
    """How the runs were made, and by which command the page."""

    def all_of(found: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(each) for each in found if each))

    sessions = [session for _, run in runs for session in run.sessions]
    versions = [one["versions"] for one in sessions if isinstance(one.get("versions"), dict)]
    said = [("command", command), ("twin", all_of(run.twin for _, run in runs))]
    said += [("data", all_of(run.dataset for _, run in runs))]
    said += [(what, all_of(session.get(what) for session in sessions)) for what in ("device", "chip", "os", "git")]
    said += [("versions", all_of(f"{name} {version}" for one in versions for name, version in one.items()))]
    hours = sum(run.course.seconds for _, run in runs) / 3600
    said += [
        ("training", f"{hours:.2f} hours in all, {sum(run.course.stepping[1] for _, run in runs) / 3600:.2f} of steps")
    ]
    return [(what, words) for what, words in said if words]


def facts(findings: Findings) -> list[tuple[str, str]]:
    """(what, figure) of the first row."""
    law = findings.best.law
    found = [("runs", f"{len(findings.points)}"), ("alpha", f"{float(law.alpha):.3f}")]
    found += [("beta", f"{float(law.beta):.3f}"), ("best size N ~ C^x", f"{findings.exponent[0]:.3f}")]
    found += [("off the law, RMS", f"{findings.best.residual:.2%}")]
    if findings.noise is not None:
        found.append(("seeds differ by, RMS", f"{findings.noise:.2%}"))
    if findings.floor is not None:
        found.append(("floor, nats per token", f"{findings.floor:.4f}"))
    return found


def fits(findings: Findings) -> list[tuple[str, Fit]]:
    """The fits that there are, by name."""
    named = (("floor known", findings.known), ("floor fitted", findings.free))
    return [(name, fit) for name, fit in named if fit is not None]


def fit_row(fit: Fit) -> list[str]:
    """Floor, A, alpha, B, beta, exponent, residual."""
    law, others = fit.law, fit.resampled

    def sure(value: object, low: float, high: float) -> str:
        return f"{float(value):.3f} ({low:.3f} to {high:.3f})"  # type: ignore[arg-type]

    floor = f"{float(law.floor):.4f}"
    if not fit.floor_known:
        low, high = fit.interval(others.floor)
        floor += f" ({max(0.0, low):.4f} to {high:.4f})"
    return [
        floor,
        f"{float(law.a):.4g}",
        sure(law.alpha, *fit.interval(others.alpha)),
        f"{float(law.b):.4g}",
        sure(law.beta, *fit.interval(others.beta)),
        f"{fit.residual:.2%}",
    ]


def exponents(findings: Findings) -> list[tuple[str, str, str]]:
    """How the best size grows with compute, by each approach: (approach, exponent, what is to be said of it)."""
    exponent, low, high = findings.exponent
    seen = not math.isnan(findings.envelope)
    found = [
        ("3: the law", f"{exponent:.3f}", f"{low:.3f} to {high:.3f} (90 %)"),
        (
            "3, were C = 6 N D",
            f"{float(findings.best.law.exponent):.3f}",
            f"the FLOPs of a token grow as N^{findings.growth:.2f} among these runs",
        ),
        (
            "1: envelope of the runs",
            f"{findings.envelope:.3f}" if seen else "-",
            "" if seen else "the best runs are of one budget",
        ),
    ]
    if findings.parabolas is not None and findings.bias is not None:
        said = f"of it {findings.bias:+.3f} is the bias of parabolas on this grid, were the law exact"
        found.append(("2: parabolas", f"{findings.parabolas:.3f}", said))
    else:
        found.append(("2: parabolas", "-", findings.without_parabolas))
    if findings.embedded is not None:
        law = findings.embedded
        said = f"alpha {float(law.alpha):.3f}, beta {float(law.beta):.3f}"
        found.append(("3, embeddings counted, were C = 6 N D", f"{float(law.exponent):.3f}", said))
    return found + [
        (name, f"{float(law.exponent):.3f}", "published, on web text, C = 6 N D") for name, law in PUBLISHED.items()
    ]


def held_out(findings: Findings) -> list[list[str]]:
    """Of each of the largest runs, by the law of the others: cell, what was foretold, what came, the error."""
    if findings.held_out is None:
        return []
    return [
        [
            point.cell,
            f"{said.loss:.4f} ({said.low:.4f} to {said.high:.4f})",
            loss(point.loss),
            f"{said.error(point.loss):+.1%}",
            "yes" if said.holds(point.loss) else "no",
        ]
        for point, said in findings.held_out.runs
    ]


def size_row(size: SizeFit) -> list[str]:
    """Runs, floor, A, alpha, gamma, residual of the law of size and depth."""
    sure = (size.interval(each) for each in (size.floor, size.alpha, size.gamma))
    floor, power, deeper = (f"{low:.3f} to {high:.3f}" for low, high in sure)
    return [
        f"{size.points} runs on {count(size.tokens)} tokens",
        f"{float(size.floor[0]):.4f} ({floor})",
        f"{float(size.a[0]):.4g}",
        f"{float(size.alpha[0]):.3f} ({power})",
        f"{float(size.gamma[0]):.2f} ({deeper})",
        f"{size.residual:.2%}",
    ]


def foretold_rows(each: Foretold) -> list[list[str]]:
    """Of a run that is not of the grid, by each law: model, size, FLOPs, law, foretold, came, error, whether inside."""
    rows = []
    for law, said in each.laws.items():
        came = ["not trained", "-", "-"]
        if each.came is not None:
            of = f", {each.seeds} seeds" if each.seeds > 1 else ""
            came = [loss(each.came) + of, f"{said.error(each.came):+.1%}", "yes" if said.holds(each.came) else "no"]
        model = [each.name, f"{each.parameters:,}", f"{each.flops:.2e}"]
        rows.append([*model, law, f"{said.loss:.4f} ({said.low:.4f} to {said.high:.4f})", *came])
    return rows


def remarks(each: Foretold) -> list[str]:
    """What is to be said of it besides."""
    unlike = f"not a run of this grid: {each.unlike}" if each.unlike else None
    return [said for said in (each.repeats, unlike) if said]


def length_in_words(findings: Findings, length: float) -> str:
    """Heading of the table of a length."""
    said = repeated(int(length), findings.length)
    return f"{count(length)} tokens" + (f", {said}" if said else "")


def losses(view: View, length: float) -> list[tuple[int, list[str]]]:
    """Of each width the losses at each depth after so many tokens; the mean over seeds, and how far apart they are."""

    def cell(found: Sequence[Point]) -> str:
        if not found:
            return "-"
        seen = [point.loss for point in found]
        apart = f" ({max(seen) - min(seen):.4f})" if len(seen) > 1 else ""
        return loss(mean(seen)) + apart

    here = [point for point in view.findings.points if point.tokens == length]
    return [
        (width, [cell([point for point in here if point.shape == (width, depth)]) for depth in view.depths])
        for width in view.widths
    ]
