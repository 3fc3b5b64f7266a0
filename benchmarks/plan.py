"""`python benchmarks/plan.py --preset gpt2 --chip "M3 Max" --memory 64GB`: what a run will take, before it is run.

Parameters, FLOPs, memory of both twins and whether it fits, the largest batch, time and energy for a number of tokens,
and how many tokens are the best use of a model of this size. Knows no framework, and runs nothing
but, for --link localhost, a sum over ranks of each twin.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt_common.cli import in_our_words, parse
from gpt_common.config import RunConfig, TrainConfig
from gpt_common.errors import UserError, run_main
from gpt_common.files import write_atomically
from gpt_common.machine.hardware import Hardware, detect
from gpt_common.words import WIDTH, in_memory, share

PROG = "python benchmarks/plan.py"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take: memory, time, energy. Every field of a configuration is a flag too."""

    preset: str | None = None
    """Plan this preset; without one and without --config, nanoGPT's Shakespeare by characters."""
    config: Path | None = None
    """Plan the configuration in this TOML file."""
    chip: str | None = None
    """Plan for this chip ("M3 Max", "H200"), not for this machine."""
    gpu_cores: int | None = None
    """GPU cores of an Apple chip given with --chip; the most that are sold if not given."""
    memory: str | None = None
    """Memory to plan for: 64GB."""
    tokens: str | None = None
    """Tokens to train on: 300M, 2.5B; the configuration's own steps if not given."""
    mfu: float | None = None
    """Share of the peak that training reaches, 0 to 1; that of the nearest published training if not given."""
    watts: float | None = None
    """Power to reckon energy with."""
    devices: int = 1
    """So many of them share each step, over --link; each does its part of the micro-steps."""
    link: Literal["TB5", "TB4", "10GbE", "NVLink", "localhost"] | None = None
    """What is between the devices; localhost: ranks on the cores of this machine, whose sum is measured here."""
    result: Path | None = None
    """Result of benchmarks/run.py on the machine planned for: its measured speed and power replace assumptions."""
    base_bits: Literal[2, 3, 4, 5, 6, 8] | None = None
    """With an adapter: the matrices of the base are quantised, in groups of 64."""
    json: Path | None = None
    """Write all figures as JSON to this file; `-` writes them to the standard output, without tables."""
    run: RunConfig = field(default_factory=RunConfig)
    """The configuration; every field is a flag."""

    def __post_init__(self) -> None:
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise UserError(f"mfu is {self.mfu}: it must be above 0 and at most 1, as in --mfu 0.3")
        if self.watts is not None and not self.watts > 0:
            raise UserError(f"watts is {self.watts}: it must be above 0")
        if self.gpu_cores is not None and self.gpu_cores < 1:
            raise UserError(f"gpu_cores is {self.gpu_cores}: it must be at least 1")
        if self.gpu_cores is not None and self.chip is None:
            raise UserError("--gpu-cores is for a chip that is named: add --chip, as in --chip 'M3 Max'")
        if self.devices < 1 or (self.devices == 1 and self.link is not None):
            raise UserError(f"devices is {self.devices}: two or more share a step over a link, as in --devices 2")
        if self.mfu is not None and self.result is not None:
            raise UserError("--mfu assumes a speed and --result brings a measured one: leave one out")


def main(argv: Sequence[str]) -> None:
    """The command."""
    from benchmarks.workload import answer_help, base_config, resolve

    answer_help(Plan, argv, PROG)
    argv = in_our_words(Plan, argv)
    command = parse(Plan, argv, prog=PROG)

    from benchmarks.devices.expectation import check, with_devices
    from benchmarks.devices.links import LOCALHOST
    from benchmarks.gpu_memory import limit_here
    from benchmarks.grids import GROUP_SIZE
    from benchmarks.planning import make_plan, measured_speeds
    from gpt_common.adapting.quantisation import Grid

    hardware = _hardware(command)
    name, base = base_config(argv, has_gpu=hardware.kind != "cpu")
    command = parse(Plan, argv, prog=PROG, default=replace(command, run=base))
    if command.base_bits is not None and not command.run.adapter.adapts:
        raise UserError("--base-bits is for a base with an adapter beside it: add --adapter lora")
    # Only the vocabulary is wanted: where and in which dtype is decided for each twin.
    model = resolve(replace(command.run, train=TrainConfig())).model
    # Of this very Mac its owner and Metal know better than any rule.
    here = hardware.kind == "apple" and command.chip is None and command.memory is None
    config = replace(command.run, model=model)
    if command.devices > 1:
        check(command.devices, command.link, config, hardware)
        hardware = replace(hardware, cores=1) if command.link == LOCALHOST else hardware  # each rank has one
    plan = make_plan(
        name,
        config,
        hardware,
        tokens=None if command.tokens is None else parse_amount(command.tokens, "--tokens"),
        mfu=command.mfu,
        watts=command.watts,
        measured=None
        if command.result is None
        else measured_speeds(
            command.result,
            hardware,
            command.run.train,
            adapts=command.run.adapter.adapts,
            bits=command.base_bits,
        ),
        limit=limit_here() if here and command.run.train.device != "cpu" else None,
        assume=True,
        grid=None if command.base_bits is None else Grid(command.base_bits, GROUP_SIZE),
    )
    if command.link is not None:
        plan = with_devices(plan, config, hardware, command.devices, command.link)
    if command.json is not None:
        _write_json(plan, command.json)
    if command.json != Path("-"):
        print_plan(plan)


def _hardware(command: Plan) -> Hardware:
    """The machine to plan for: this one, or the chip and memory that were given."""
    from benchmarks.devices.chips import named_chip
    from benchmarks.planning import this_machine

    hardware = this_machine(detect()) if command.chip is None else named_chip(command.chip, command.gpu_cores)
    if command.memory is not None:
        hardware = replace(hardware, memory_bytes=parse_amount(command.memory, "--memory", unit=2**30))
    return hardware


def parse_amount(text: str, flag: str, unit: int = 1) -> int:
    """`64GB` as bytes, `2.5B` as a number; for bytes K, M, G and T are powers of 1024, and G if none is given.

    Raises:
        UserError: not an amount.
    """
    match = re.fullmatch(r"([\d_,.]+(?:e\d+)?) *([KMGTB]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    try:
        number = float(match.group(1).replace(",", "").replace("_", "")) if match else 0.0
    except ValueError:
        number = 0.0
    letter = match.group(2).upper() if match else ""
    if unit > 1:
        factor = {"": unit, "B": 0, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[letter]
    else:
        factor = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}[letter]
    if number * factor < 1:
        raise UserError(f"{flag} {text}: write it as {'64GB' if unit > 1 else '300M or 2.5B'}")
    return int(number * factor)


def _write_json(plan: dict[str, Any], path: Path) -> None:
    """All figures, to a file or the standard output."""
    import json

    text = json.dumps(plan, indent=2) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
        return
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def print_plan(plan: dict[str, Any]) -> None:
    """The tables, 80 columns wide, of a plan in which nothing is unknown."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.devices.table import device_rows, title

    console = Console(width=WIDTH, highlight=False)

    def table(title: str, rows: Iterable[tuple[str, ...]], columns: Sequence[str] = ()) -> None:
        grid = Table(title=title, title_style="bold", title_justify="left", box=None, padding=(0, 2, 0, 0))
        grid.show_header = bool(columns)
        for i, column in enumerate(columns or ("", "")):
            grid.add_column(column, justify="right" if i and columns else "left", no_wrap=bool(columns))
        for row in rows:
            grid.add_row(*row)
        with console.capture() as printed:
            console.print(grid)
        # Cells are as wide as their column: blanks at the end of a line wrap it in a narrower terminal.
        print(*(line.rstrip() for line in printed.get().splitlines()), "", sep="\n")

    def of_twins(title: str, rows: dict[str, Callable[[Any], str]]) -> None:
        lines = [(name, *(write(one) for one in plan["twins"])) for name, write in rows.items()]
        table("", lines, (title, *(_twin_name(one) for one in plan["twins"])))

    machine = plan["machine"]
    cores = f", {machine['gpu_cores']} GPU cores" if machine["gpu_cores"] else ""
    has = memory(machine["memory_bytes"]) + (" assumed" if machine["memory_assumed"] else "")
    console.print()
    table(f"{plan['name']} on {machine['chip']}{cores}, {has}", _model_rows(plan))
    of_twins("memory of one step", _memory_rows(plan))
    of_twins(f"{amount(plan['tokens']['count'])} tokens", TIME_ROWS | _decode_rows(plan))
    if several := plan.get("devices"):
        of_twins(title(several), device_rows(amount, long_duration, several))
    for line in _notes(plan):
        console.print(line, markup=False)


def _twin_name(one: dict[str, Any]) -> str:
    name = "MLX" if one["twin"] == "mlx" else "PyTorch"
    return f"{name} {one['device']} {one['dtype'].replace('float', 'fp').replace('bfp', 'bf')}"


def _model_rows(plan: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    parts = ", ".join(f"{name} {amount(count)}" for name, count in plan["model"]["parts"].items())
    total, active = plan["model"]["parameters"], plan["model"]["active_parameters"]
    of = ", N active" if active != total else ""
    yield "parameters", f"{total:,}" + (f", {active:,} active" if active != total else "")
    yield "", parts
    if buffers := plan["model"]["buffers"]:
        yield "", f"and {buffers:,} numbers of routing bias, which no gradient trains"
    yield "FLOPs per token", f"{plan['flops']['per_token_palm']:.3g} by PaLM's formula, 6N + 12LHQT{of}"
    yield "", f"{plan['flops']['per_token_exact']:.3g} counted exactly, causal"
    for one in plan["compute_optimal"].values():
        yield "compute-optimal", f"{amount(one['tokens'])} tokens: {one['source']}"


def _memory_rows(plan: dict[str, Any]) -> dict[str, Callable[[Any], str]]:
    """What the rows are called, and what each says of a twin."""
    train = plan["config"]["train"]
    here, other = f" (here {train['batch_size']})", ""
    if train["gradient_checkpointing"]:
        here, other = other, here
    parts = ("weights", "moments", "gradients", "activations", "logits", "temporary", "total")
    rows: dict[str, Callable[[Any], str]] = {
        **{part: lambda one, part=part: memory(one["memory"][part]) for part in parts},  # type: ignore[misc]
        "is largest at": lambda one: one["memory"]["moment"],
        f"fits in {memory(plan['machine']['usable_bytes'])}": lambda one: "yes" if one["fits"] else "no",
        f"largest batch{here}": lambda one: _batch(one["largest_batch"]),
        f"  with checkpointing{other}": lambda one: _batch(one["largest_batch_checkpointing"]),
        "generation keeps, per token": lambda one: f"{one['kv_cache_bytes_per_token']:,} B",
    }
    if any(one["kv_cache_bytes_per_token"] != one["full_kv_bytes_per_token"] for one in plan["twins"]):
        rows["  as full keys and values"] = lambda one: f"{one['full_kv_bytes_per_token']:,} B"
    return rows


def _batch(size: int) -> str:
    from benchmarks.planning import MAX_BATCH

    return f"{size:,}" + (" or more" if size == MAX_BATCH else "") if size else "none"


def _energy(joules: float) -> str:
    hours = joules / 3.6e6
    return f"{hours:,.0f} kWh" if hours >= 100 else f"{hours:.3g} kWh"


TIME_ROWS: dict[str, Callable[[Any], str]] = {
    "peak, TFLOP/s": lambda one: f"{one['peak']['tflops']:.1f}",
    "MFU": lambda one: share(one["speed"]["mfu"]),
    "tokens/s": lambda one: amount(one["speed"]["tokens_per_second"]),
    "time": lambda one: long_duration(one["seconds"]),
    "energy": lambda one: _energy(one["joules"]),
}


def _decode_rows(plan: dict[str, Any]) -> dict[str, Callable[[Any], str]]:
    """How fast generation can be at most, where the memory's bandwidth is published."""
    if plan["twins"][0]["decode"] is None:
        return {}
    return {"decode at most, tokens/s": lambda one: amount(one["decode"]["tokens_per_second_at_most"])}


def _notes(plan: dict[str, Any]) -> Iterator[str]:
    """Where the figures come from: one line each, those that both twins share once."""
    import textwrap

    from benchmarks.devices.table import device_notes

    twins, machine = plan["twins"], plan["machine"]
    notes = [f"tokens: {plan['tokens']['basis']}"]
    if machine["memory_assumed"]:
        notes.append(f"memory: {memory(machine['memory_bytes'])} assumed, {machine['memory_assumed']}; or --memory")
    notes.append(f"fits: {machine['usable_basis']}")
    notes.append("memory: within 15 % of the measured peak on CPUs; unchecked on GPUs")
    notes += [f"peak: {one['peak']['source']}" for one in twins]
    if any("estimate" in one["peak"]["source"] for one in twins):
        notes.append(f"measure it: python benchmarks/run.py --backends mlx-bf16,mps, then {PROG} --result FILE")
    notes += [f"MFU: {one['speed']['basis']}" for one in twins]
    notes += [_decode_note(one["decode"]) for one in twins if one["decode"]]
    notes += [f"energy: {one['power']['watts']:g} W, {one['power']['basis']}" for one in twins]
    notes += device_notes(plan) if "devices" in plan else ()
    for note in dict.fromkeys(notes):
        yield textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _decode_note(decode: dict[str, Any]) -> str:
    """An upper bound calls itself so."""
    speed, read = f"{decode['bandwidth'] / 1e9:g} GB/s", memory(decode["bytes_per_token"])
    return (
        f"decode: an upper bound, {speed} ({decode['source']}) over {read} of matrices and of a cache of "
        f"{decode['context']:,} tokens, read for each token"
    )


def memory(count: int | None) -> str:
    """`512 MiB`, `1.25 GiB`; `-` where unknown."""
    return "-" if count is None else in_memory(count)


def amount(count: float) -> str:
    """`12.3M`, `2.49B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def long_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `5.6 days`, `2.1 years`."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


if __name__ == "__main__":
    run_main(main)
