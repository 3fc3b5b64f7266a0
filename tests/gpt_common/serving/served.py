"""Checkpoints that nobody trained, and servers of them: in a process of their own, or of made-up models in this one."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt_common.config import from_dict, to_dict
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, ExtendedTokenizer, Tokenizer, identity
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes
from gpt_common.sampling import Logits
from gpt_common.serving.application import Application
from gpt_common.serving.command import ServeCommand
from gpt_common.serving.engine import Engine
from gpt_common.serving.models import open_library
from gpt_common.training.checkpoint import write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, TOKENIZER_FILE, Manifest
from tests.twins import ROOT

LETTERS = "\n !'.,?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzé雨"
BLOCK = 48


def make_model(
    run: Path,
    *,
    step: int = 5,
    chat: bool = False,
    seed: int = 1,
    letters: str = LETTERS,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A checkpoint of a run, with weights of 0.2 by this seed, which say something that nobody has said; its run."""
    tokenizer = CharTokenizer(letters) if tokenizer is None else tokenizer
    if chat:
        tokenizer = ExtendedTokenizer(tokenizer, [TURN, END])
    model = {"vocab_size": tokenizer.vocab_size, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config = from_dict({"model": {**model, "positions": "rope", "norm": "rmsnorm"}})
    weights = {
        name: np.float32(0.2) * keyed_generator(seed, name).standard_normal(shape, np.float32)
        + np.float32("norm" in name)
        for name, shape in parameter_shapes(config.model).items()
    }

    def write_files(checkpoint: Path) -> None:
        save_file(weights, checkpoint / MODEL_FILE)
        tokenizer.save(checkpoint / TOKENIZER_FILE)

    manifest = Manifest(
        step=step,
        config=to_dict(config),
        tokens=96,
        val_loss=2.0,
        tokenizer=identity(tokenizer),
        prompt="Once",
        written_by={"program": "torch_gpt"},
    )
    write_checkpoint(run, manifest, write_files=write_files, best=True, keep=5)
    return run


class Saying:
    """Instead of a model: says one text over and over, from where its last letter stands; or what `then` makes of it.

    Args:
        tokenizer: of what it says.
        text: all letters of it differ.
        wait: is called at every step.
    """

    def __init__(self, tokenizer: Tokenizer, text: str = "abcdefgh", wait: Callable[[], object] = bool) -> None:
        self.size, self.ids = tokenizer.vocab_size, tokenizer.encode(text)
        self.wait = wait
        self.together: list[int] = []
        """How many sequences there were at each step."""

    def after(self, token: int) -> Logits:
        follows = self.ids[(self.ids.index(token) + 1) % len(self.ids)] if token in self.ids else self.ids[0]
        return np.where(np.arange(self.size) == follows, 9, 0).astype(np.float32)

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        if contexts:
            self.wait()
            self.together.append(len(contexts))
        return {number: self.after(context[-1]) for number, context in contexts.items()}

    def all_logits(self, tokens: Sequence[int]) -> Logits:
        return np.stack([self.after(token) for token in tokens])


@dataclass
class Server:
    """A server that listens at a port of this machine."""

    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, document: Any = None, *, method: str | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, the JSON of the answer, headers. A document that is bytes is sent as it is."""
        body = document if isinstance(document, bytes | None) else json.dumps(document).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        said = {"Content-Type": "application/json", **named} if body is not None else named
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, said)
            answer = connection.getresponse()
            text = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(text) if "json" in found.get("content-type", "") else text, found

    def complete(self, prompt: Any, **more: Any) -> dict[str, Any]:
        """The first choice of a completion."""
        status, document, _ = self.ask("/v1/completions", {"prompt": prompt, **more})
        assert status == 200, document
        return dict(document["choices"][0])

    def stream(self, path: str, document: Any) -> Generator[dict[str, Any], None, None]:
        """The events of a stream; leaves when nobody asks for more."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while line := answer.readline():
                if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                    yield json.loads(line[6:])


@contextlib.contextmanager
def serving(twin: str, *words: str | Path, **environment: str) -> Iterator[Server]:
    """A twin's server as it is started by hand, at a free port."""
    command = [sys.executable, "-m", f"{twin}.serve", *map(str, words), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        match = re.fullmatch(r"http://\S+:(\d+)\n", first)
        assert match, first + process.stderr.read()
        yield Server(int(match[1]), process)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def serving_made_up(paths: Sequence[Path], open_model: Callable[[Any], Any], **fields: Any) -> Iterator[Server]:
    """A server in a thread of this process, whose models are made up."""
    import uvicorn

    command = ServeCommand(port=0, **fields)
    library = open_library(paths, latest=False)
    started, found = threading.Event(), list[Any]()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def post(events: Any) -> None:
            loop.call_soon_threadsafe(lambda: [answer.hear(event) for answer, event in events])

        engine = Engine(open_model, post, batch_size=command.batch_size, queue=command.queue, loaded=command.loaded)
        engine.start(library.models[0])
        app = Application(library, engine, command, "made up").asgi()
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
        )
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        found.extend([server, server.servers[0].sockets[0].getsockname()[1]])
        started.set()
        await task
        await asyncio.to_thread(engine.stop)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(30)
    try:
        yield Server(found[1])
    finally:
        found[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()
