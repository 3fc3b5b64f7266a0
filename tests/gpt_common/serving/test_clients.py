"""Clients that leave, servers that are full or slow or broken, and a server beside another."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpt_common.serving.malformed import COMPLETIONS
from tests.gpt_common.serving.served import Saying, Server, make_model, serving_made_up


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "plain")
    make_model(folder / "chat", chat=True)
    return folder


class Slow(Saying):
    """Takes a while for every token."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, wait=lambda: time.sleep(0.005))


def until_idle(server: Server) -> None:
    deadline = time.monotonic() + 20
    while server.ask("/health")[1] != {"status": "ok", "writing": 0, "waiting": 0}:
        assert time.monotonic() < deadline, "the place of a client that left is still taken"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_its_place(stream: bool, runs: Path) -> None:
    with serving_made_up([runs / "plain"], lambda source: Slow(source.tokenizer), max_tokens=10**6) as server:
        body = json.dumps({"prompt": "a", "max_tokens": 10**6, "stream": stream, "n": 2}).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        clients = []
        for _ in range(12):  # 24 answers: 16 are written, 8 wait
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            clients.append(client)
        deadline = time.monotonic() + 20
        while server.ask("/health")[1] != {"status": "ok", "writing": 16, "waiting": 8}:
            assert time.monotonic() < deadline
        for client in clients:
            client.close()
        until_idle(server)
        assert server.complete("a", max_tokens=2, temperature=0)["text"] == "bc"


def test_a_full_queue(runs: Path) -> None:
    fields = {"batch_size": 1, "queue": 2, "max_tokens": 10**6}
    with serving_made_up([runs / "plain"], lambda source: Slow(source.tokenizer), **fields) as server:
        stream = server.stream(COMPLETIONS, {"prompt": "a", "max_tokens": 10**6, "stream": True})
        next(stream)
        waiting = [threading.Thread(target=server.complete, args=("a",), kwargs={"max_tokens": 1}) for _ in range(2)]
        for thread in waiting:
            thread.start()
        deadline = time.monotonic() + 20
        while server.ask("/health")[1]["waiting"] < 2:
            assert time.monotonic() < deadline
        status, answer, headers = server.ask(COMPLETIONS, {"prompt": "a"})
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert headers["retry-after"] == "1"
        status, _, _ = server.ask(COMPLETIONS, {"prompt": "a", "n": 2})
        assert status == 429
        # What could never wait is no matter of trying again.
        status, answer, _ = server.ask(COMPLETIONS, {"prompt": "a", "n": 3})
        assert status == 400
        assert "asks for 3 answers, and no more than 2 may wait" in answer["error"]["message"]
        stream.close()
        for thread in waiting:
            thread.join(20)
            assert not thread.is_alive()


def test_a_limit_of_time(runs: Path) -> None:
    fields = {"time_limit": 0.2, "max_tokens": 10**6}
    with serving_made_up([runs / "plain"], lambda source: Slow(source.tokenizer), **fields) as server:
        status, answer, _ = server.ask(COMPLETIONS, {"prompt": "a", "max_tokens": 10**6})
        assert (status, answer["error"]["code"]) == (504, "time_limit")
        *_, last = server.stream(COMPLETIONS, {"prompt": "a", "max_tokens": 10**6, "stream": True})
        assert last["error"]["code"] == "time_limit"


def test_a_token(runs: Path) -> None:
    secret = "a-long-enough-secret"
    with serving_made_up([runs / "plain"], lambda source: Saying(source.tokenizer), token=secret) as server:
        status, answer, _ = server.ask("/v1/models")
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert secret not in json.dumps(answer)
        assert server.ask("/v1/models", Authorization=f"Bearer {secret}")[0] == 200
        assert server.ask("/")[0] == 200


def test_a_fault_is_told_on_the_console_alone(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Saying):
        def next_logits(self, contexts: Any) -> Any:  # noqa: ARG002
            raise RuntimeError("the inside of the model")

    with serving_made_up([runs / "plain"], lambda source: Broken(source.tokenizer)) as server:
        status, answer, _ = server.ask(COMPLETIONS, {"prompt": "a"})
        assert status == 500
        assert "inside" not in json.dumps(answer)
    assert "the inside of the model" in capfd.readouterr().err


def test_a_server_beside_this_one(runs: Path) -> None:
    """The other twin's answers come through, streams and refusals too; no page reaches it past the guard."""
    with (
        serving_made_up([runs / "chat"], lambda source: Saying(source.tokenizer, "xyz")) as other,
        serving_made_up([runs / "plain"], lambda source: Saying(source.tokenizer), beside=other.port) as server,
    ):
        assert server.ask("/v1/models")[1]["beside"]
        assert [one["id"] for one in server.ask("/beside/v1/models")[1]["data"]] == ["chat", "chat/step-000005"]
        asked = {"prompt": "x", "max_tokens": 3, "temperature": 0}
        assert server.ask(f"/beside{COMPLETIONS}", asked)[1]["choices"][0]["text"] == "yzx"
        events = list(server.stream(f"/beside{COMPLETIONS}", {**asked, "stream": True}))
        assert "".join(event["choices"][0]["text"] for event in events) == "yzx"
        status, answer, _ = server.ask(f"/beside{COMPLETIONS}", {"prompt": ""})
        assert (status, answer["error"]["param"]) == (400, "prompt")
        assert server.ask("/beside/v1/models", Origin="http://evil.example")[0] == 403
        assert server.ask("/beside/health")[0] == 404, "nothing else of it"
        assert other.ask("/beside/v1/models")[0] == 404
    with serving_made_up([runs / "plain"], lambda source: Saying(source.tokenizer), beside=other.port) as server:
        status, answer, _ = server.ask("/beside/v1/models")
        assert (status, answer["error"]["type"]) == (502, "server_error")
