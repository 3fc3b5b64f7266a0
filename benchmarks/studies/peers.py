"""`python benchmarks/studies/peers.py`: our training step, or our generation, beside other people's, block by block.

    --work step         a training step beside nanoGPT's. First all do the same 60 steps, and their losses must agree.
    --work generation   one text at a time, beside transformers' `generate` with its cache and nanoGPT's, which has
                        none. First all write the likeliest text, and it must be the same.

All have our initial weights and work on this CPU in float32. A round starts every side in a process of its own, and
they take turns, A B C C B A; its ratio is the geometric mean of the turns'. What is printed is the median of the
rounds, their range, and a 95 % interval of their mean (benchmarks/report/pairs.py). Without equal work no figure is
given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring.backends import BACKENDS, Backend
from benchmarks.measuring.work import Absent, Batcher, Refused, Work, run_steps
from benchmarks.measuring.worker import open_work
from benchmarks.nanogpt import check_nanogpt
from benchmarks.report.pairs import MINIMUM_ROUNDS
from benchmarks.studies.turns import Proof, Proofs, losses_apart, measure, proven, ratios_of, work_on_request
from benchmarks.workload import resolve
from gpt_common.cli import parse
from gpt_common.commands import SampleSettings
from gpt_common.config import RunConfig, load_preset, load_toml
from gpt_common.errors import UserError, WorkFailed, nearest, run_main
from gpt_common.keyed import draws

PROG = "python benchmarks/studies/peers.py"
STEPS = 60
"""Steps whose losses must agree."""
LARGEST_DIFFERENCE = 1e-5
"""Nats per token by which a loss may be another than ours: rounding, in 60 steps."""
OURS, PEERS = ("torch", "mlx"), ("transformers", "nanogpt")
AIMS = {
    ("step", "torch", "nanogpt"): 0.70,
    ("generation", "torch", "transformers"): 1 / 2,
    ("generation", "mlx", "transformers"): 1 / 2,
    ("generation", "torch", "nanogpt"): 1 / 5,
    ("generation", "mlx", "nanogpt"): 1 / 5,
}
"""Our time over theirs, at most."""
WorkKind = Literal["step", "generation"]


@dataclass(frozen=True, kw_only=True)
class PeersStudy:
    """Measure our training step or our generation beside other people's, with the same weights, in turns."""

    work: WorkKind = "step"
    """A training step, or generating a text."""
    sides: str = ""
    """Who, with commas: torch, mlx, transformers, nanogpt. Left out: torch,nanogpt for a step, all for generation."""
    nanogpt_path: Path | None = None
    """Your clone of nanoGPT, which a step needs unless --sides leaves nanogpt out."""
    preset: str = "shakespeare-char-cpu"
    """The shape, without dropout."""
    config: Path | None = None
    """The shape in this TOML file instead."""
    tokens: int = 0
    """generation: tokens after the prompt, which is one token; 0 fills the model's block."""
    sampled: bool = False
    """generation: time drawing tokens at temperature 1 instead of taking the likeliest."""
    threads: int = 1
    """Threads of every side."""
    rounds: int = MINIMUM_ROUNDS
    """Rounds; each gives one ratio."""
    seconds: float = 3.0
    """Least time of one side's turn."""
    json: Path | None = None
    """Also write the figures here."""
    side: str | None = None
    """For this program's own use: work as long as the standard input says."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not self.seconds > 0:
            raise UserError(f"seconds is {self.seconds}: it must be above 0")
        if self.json is not None and not self.json.parent.is_dir():
            raise UserError(f"--json {self.json}: there is no folder {self.json.parent}")
        if self.tokens < 0:
            raise UserError(f"tokens is {self.tokens}: it must not be negative")
        if self.work == "step" and (self.tokens or self.sampled):
            raise UserError("--tokens and --sampled are of texts that are written: add --work generation")


def chosen_sides(command: PeersStudy) -> list[str]:
    """Who takes part, ours first.

    Raises:
        UserError: an unknown name, nobody of ours or nobody else, or no folder for nanoGPT.
    """
    usual = {"step": ("torch", "nanogpt"), "generation": (*OURS, *PEERS)}[command.work]
    names = [name.strip() for name in command.sides.split(",") if name.strip()]
    for name in names:
        if name not in (*OURS, *PEERS):
            raise UserError(f"no side '{name}': {nearest(name, (*OURS, *PEERS))}")
    if not names:
        names = [name for name in usual if name != "nanogpt" or command.work == "step" or command.nanogpt_path]
    sides = [name for name in (*OURS, *PEERS) if name in names]
    if not set(sides) & set(OURS) or not set(sides) & set(PEERS):
        raise UserError(f"--sides {command.sides}: name one of ours, {' or '.join(OURS)}, and a peer")
    if "nanogpt" in sides:
        check_nanogpt("nanogpt", command.nanogpt_path, [configuration(command)])
    return sides


def configuration(command: PeersStudy) -> RunConfig:
    """The shape on a CPU in float32, nothing dropped: a text has no dropout, and losses must agree."""
    config = resolve(load_preset(command.preset) if command.config is None else load_toml(command.config, RunConfig()))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        train=dataclasses.replace(config.train, dtype="float32", gradient_checkpointing=False),
    )


def text_length(command: PeersStudy) -> int:
    """Tokens to generate.

    Raises:
        UserError: more than the block has room for: beyond it each implementation drops something else.
    """
    room = configuration(command).model.block_size - 1
    if command.tokens > room:
        raise UserError(f"tokens is {command.tokens}: after a prompt of one the block holds {room}")
    return command.tokens or room


def open_side(command: PeersStudy, side: str) -> Work:
    """A side's model at our initial weights.

    Raises:
        UserError: it is not here, or cannot be used.
    """
    source = str(command.nanogpt_path.resolve()) if side == "nanogpt" and command.nanogpt_path else ""
    peer = Backend(f"{side}-cpu", "torch", "cpu", peer=side, source=source)  # type: ignore[arg-type]
    backend = {"torch": BACKENDS["cpu"], "mlx": BACKENDS["mlx-cpu"]}.get(side, peer)
    try:
        return open_work(backend, configuration(command))
    except (Absent, Refused) as error:
        raise UserError(f"{side}: {error}") from None


def prepare_steps(work: Work, config: RunConfig) -> tuple[Proof, Callable[[], object]]:
    """The losses of the first steps, and a function that does one more, waited for."""
    taken, losses = Batcher(config).take(STEPS), []
    for step in taken:
        run_steps(work, config, [step])
        losses.append(work.loss())
    again = cycle(taken)
    return losses, lambda: run_steps(work, config, [next(again)])


def prepare_generation(side: str, work: Work, tokens: int, *, sampled: bool) -> tuple[Proof, Callable[[], object]]:
    """The likeliest text, and a function that writes one, the likeliest or drawn; token ids, one prompt token first."""
    writers: dict[str, Callable[[Work, int, bool], list[int]]] = {twin: partial(ours, twin) for twin in OURS}
    write = {**writers, "transformers": transformers, "nanogpt": nanogpt}[side]
    return [*write(work, tokens, False)], lambda: write(work, tokens, sampled)


def ours(twin: str, work: Work, tokens: int, sampled: bool) -> list[int]:
    """By the sampler of a twin."""
    generate = import_module(f"{twin}_gpt.sample").generate
    settings = SampleSettings(max_new_tokens=tokens, temperature=1.0 if sampled else 0.0)
    return [0, *generate(work.model, [0], settings, draws(0, 0))]


def transformers(work: Work, tokens: int, sampled: bool) -> list[int]:
    """By transformers' own `generate`, with its cache."""
    import torch

    prompt = torch.zeros((1, 1), dtype=torch.long)
    work.model.eval()
    found = work.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        use_cache=True,
        pad_token_id=0,
        **({"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}),
    )
    return [int(token) for token in found[0]]


def nanogpt(work: Work, tokens: int, sampled: bool) -> list[int]:
    """By nanoGPT's own `generate`; of one candidate it draws that one."""
    import torch

    work.model.eval()
    prompt = torch.zeros((1, 1), dtype=torch.long)
    found = work.model.generate(prompt, tokens, top_k=None if sampled else 1)
    return [int(token) for token in found[0]]


def start(command: PeersStudy, proofs: Proofs, side: str) -> subprocess.Popen[str]:
    """A side that has shown that its work is the same; see `turns.proven`."""
    flags = [f"--{name}={getattr(command, name)}" for name in ("work", "preset", "tokens", "threads")]
    flags += [f"--config={command.config.resolve()}"] if command.config else []
    flags += ["--sampled"] if command.sampled else []
    flags += [f"--nanogpt-path={command.nanogpt_path.resolve()}"] if command.nanogpt_path else []
    return proven(__file__, side, flags, command.threads, proofs, partial(compare, work=command.work))


def compare(proofs: Mapping[str, Proof], side: str, work: WorkKind) -> float:
    """How far a side's proof is from the first one's; 0 for texts, which are the same or not.

    Raises:
        WorkFailed: further than rounding goes, or another text.
    """
    if work == "step":
        return losses_apart(proofs, side, LARGEST_DIFFERENCE)
    first = next(iter(proofs))
    expected, found = proofs[first], proofs[side]
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if place is not None or len(expected) != len(found):
        raise WorkFailed(f"{side} writes another text than {first}, from token {place} on: no figure is given")
    return 0.0


def row(own: str, peer: str, found: Mapping[str, Any], work: WorkKind) -> str:
    """A line of the table."""
    spread = f"{min(found['ratios']):.3f} .. {max(found['ratios']):.3f}"
    interval = "{:.3f} .. {:.3f}".format(*found["interval"]) if found["interval"] else "-"
    aim = AIMS.get((work, own, peer))
    aims = "" if aim is None else f"   at most {aim:.2f}: {'met' if found['median'] <= aim else 'not met'}"
    return f"{own + ' / ' + peer:20} {found['median']:7.3f} {spread:>16} {interval:>16}{aims}"


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(PeersStudy, argv, prog=PROG)
    config, tokens = configuration(command), text_length(command)
    if command.side is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # nanoGPT's model says how large it is
            work = open_side(command, command.side)
            if command.work == "step":
                proof, unit = prepare_steps(work, config)
            else:
                proof, unit = prepare_generation(command.side, work, tokens, sampled=command.sampled)
        print(json.dumps(proof), flush=True)
        work_on_request(unit)
        return
    sides = chosen_sides(command)
    matches = partial(compare, work=command.work)
    seconds, apart = measure(sides, partial(start, command), matches, command.rounds, command.seconds)
    what = "a step" if command.work == "step" else f"{tokens} {'drawn' if command.sampled else 'likeliest'} tokens"
    print(f"{command.config or command.preset}, {what}, threads: {command.threads}, rounds: {command.rounds}")
    for side in sides:
        middle = statistics.median(seconds[side])
        said = f"{1000 * middle:.2f} ms" if command.work == "step" else f"{tokens / middle:.1f} tokens/s"
        proven = f"{STEPS} losses within {apart[side]:.1e} of {sides[0]}'s" if command.work == "step" else "same text"
        print(f"  {side:14} {said}, {proven}")
    print(f"{'time of ours / theirs':20} {'median':>6} {'range':>16} {'95 % interval':>16}")
    results: dict[str, Any] = {"seconds": seconds, "apart": apart, "ratios": {}}
    for own in (side for side in sides if side in OURS):
        for peer in (side for side in sides if side in PEERS):
            found = results["ratios"][f"{own} / {peer}"] = ratios_of(seconds[own], seconds[peer])
            print(row(own, peer, found, command.work), flush=True)
    if command.json is not None:
        command.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
