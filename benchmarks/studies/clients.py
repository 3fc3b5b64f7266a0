"""`python benchmarks/studies/clients.py RUN`: two hundred clients at once ask a server of this run for a minute.

Each asks again as soon as it has its answer, for a greedy continuation of one of forty texts, streamed or whole, by one
connection each. What is said is compared with what `generate` says alone, letter for letter; what is printed is how
many answers there were, what went wrong, how long they took and how much memory the server had in each sixth of the
time. Needs psutil (extra `benchmarks`).
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common import manual
from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.words import in_memory

PROG = "python benchmarks/studies/clients.py"
TEXTS = 40
SAMPLES = 6
"""Of the server's memory."""
Twin = Literal["torch", "mlx"]


@dataclass(frozen=True, kw_only=True)
class ClientsStudy:
    """Let many clients ask a server at once, and compare what each is told with what it would be told alone."""

    twin: Twin = "torch"
    """Whose server."""
    clients: int = 200
    """At once."""
    seconds: float = 60.0
    """How long they ask."""
    tokens: int = 64
    """Of the longest answers; others are shorter."""


@dataclass
class Told:
    """What the clients were told."""

    seconds: list[float] = field(default_factory=list)
    """That each answer took."""
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers that were refused, broken off, or others than they should be."""


Wanted = list[tuple[str, int, str]]
"""Prompt, tokens, and what is to be said."""


def expected(twin: Twin, run: Path, tokens: int) -> Wanted:
    """Forty prompts of many lengths, and how the model goes on, asked for each alone."""
    notebook = import_module(f"{twin}_gpt.notebook")
    model = notebook.load(run, device="cpu")
    long = notebook.generate(model, model.tokenizer.decode([model.tokenizer.known[-1]]), max_new_tokens=2000, seed=3)
    block, found = model.config.block_size, []
    for number in range(TEXTS):
        prompt = long[37 * number : 37 * number + 1 + number * (block - 2) // TEXTS]
        count = tokens - number % 7 * (tokens // 8)
        said = notebook.generate(model, prompt, max_new_tokens=count, temperature=0)
        found.append((prompt, count, said[len(prompt) :]))
    return found


async def client(port: int, number: int, wanted: Wanted, until: float, told: Told) -> None:
    """Ask one question after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at = number
    while time.monotonic() < until:
        prompt, tokens, said = wanted[at % len(wanted)]
        stream = (number + at) % 2 == 0
        at += 1
        began = time.monotonic()
        body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await read_answer(reader)
        text = text_of(answer, stream)
        if text != said:
            told.wrong.append(answer[:200].decode(errors="replace"))
        told.seconds.append(time.monotonic() - began)
        told.tokens += tokens
    writer.close()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    if match := re.search(rb"content-length: (\d+)", head):
        return await reader.readexactly(int(match[1]))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def text_of(answer: bytes, stream: bool) -> str | None:
    """What an answer says; None where it says nothing."""
    try:
        if not stream:
            return str(json.loads(answer)["choices"][0]["text"])
        events = [line[6:] for line in answer.decode().split("\n\n") if line.startswith("data: {")]
        return "".join(json.loads(event)["choices"][0]["text"] for event in events)
    except (KeyError, ValueError):
        return None


async def ask(port: int, process: int, command: ClientsStudy, wanted: Wanted) -> tuple[Told, list[int]]:
    """Let all ask; what they were told, and the server's memory over the time."""
    import psutil

    told, server, memory = Told(), psutil.Process(process), list[int]()
    until = time.monotonic() + command.seconds
    going = [asyncio.ensure_future(client(port, n, wanted, until, told)) for n in range(command.clients)]
    for _ in range(SAMPLES):
        await asyncio.sleep(command.seconds / SAMPLES)
        memory.append(int(server.memory_info().rss))
    await asyncio.gather(*going)
    return told, memory


def main(argv: Sequence[str]) -> None:
    """The command."""
    if manual.asked(argv):
        parse(ClientsStudy, argv, prog=f"{PROG} RUN")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"which run? {PROG} RUN")
    run, command = Path(argv[0]), parse(ClientsStudy, argv[1:], prog=f"{PROG} RUN")
    wanted = expected(command.twin, run, command.tokens)
    words = [sys.executable, "-m", f"{command.twin}_gpt.serve", str(run), "--port", "0", "--device", "cpu"]
    server: Any = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    try:
        match = re.search(r":(\d+)$", server.stdout.readline().strip())
        if match is None:
            raise WorkFailed("the server did not start: its error stands above")
        began = time.monotonic()
        told, memory = asyncio.run(ask(int(match[1]), server.pid, command, wanted))
        took = time.monotonic() - began
    finally:
        server.terminate()
        code = server.wait()
    ordered = sorted(told.seconds)
    print(f"{len(ordered):,} answers in {took:.0f} s to {command.clients} clients, {told.tokens / took:,.0f} tokens/s")
    print(f"  wrong or refused      {len(told.wrong)}")
    late = ordered[len(ordered) * 99 // 100]
    print(f"  seconds of an answer  {statistics.median(ordered):.2f}, 99 of 100 within {late:.2f}")
    print(f"  memory of the server  {', '.join(in_memory(bytes_) for bytes_ in memory)}")
    print(f"  its exit code         {code}")
    for wrong in told.wrong[:3]:
        print(f"  {wrong}")
    if told.wrong:
        raise WorkFailed("not every answer was what it should be")


if __name__ == "__main__":
    run_main(main)
