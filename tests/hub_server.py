"""A server on this machine that answers as a hub does, with faults on demand; what it has, whoever serves it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import huggingface_hub.constants
import pytest


@dataclass
class File:
    """A file as it is at a commit."""

    name: str
    data: bytes
    commit: str
    digest: str
    """What the hub gives as its hash."""
    linked: bool
    """It is a large one, which is stored elsewhere under its SHA-256."""


class Refused(Exception):
    """An answer that gives nothing: status, and the hub's own word for why."""


@dataclass
class Hub:
    """What the server holds and does."""

    url: str = ""
    gated: set[str] = field(default_factory=set)
    """Models and data sets, OWNER/NAME."""
    cut: set[str] = field(default_factory=set)
    """Files whose answers break off half way, however often one asks for the rest."""
    forged: set[str] = field(default_factory=set)
    """Files that are not what their hash says."""
    asked: list[str] = field(default_factory=list)
    """Files that were downloaded."""

    def found(self, path: list[str]) -> File | dict[str, Any]:
        """What is at the path of an address: a file, or what the hub says of a repository; else raises `Refused`."""
        raise NotImplementedError


AnyHub = TypeVar("AnyHub", bound=Hub)


@contextmanager
def serving(hub: AnyHub) -> Iterator[AnyHub]:
    """A hub for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            try:
                found = hub.found([unquote(part) for part in self.path.split("?")[0].strip("/").split("/")])
            except Refused as refused:
                status, code = refused.args
                return self.begin(status, {"X-Error-Code": code, "X-Error-Message": code}, 0)
            if isinstance(found, File):
                return self.send(found, body)
            data = json.dumps(found).encode()
            self.begin(200, {"Content-Type": "application/json"}, len(data))
            self.wfile.write(data)
            return None

        def begin(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

        def send(self, file: File, body: bool) -> None:
            data = file.data
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"X-Repo-Commit": file.commit, "ETag": f'"{file.digest}"'}
            if file.linked:
                headers |= {"X-Linked-Etag": f'"{file.digest}"', "X-Linked-Size": str(len(data))}
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.begin(206 if begin else 200, headers, len(data) - begin)
            if not body:
                return
            hub.asked.append(file.name)
            if file.name in hub.forged:
                data = bytes([data[0] ^ 1]) + data[1:]
            if file.name in hub.cut:
                self.wfile.write(data[begin : len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(data[begin:])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does in a process that has not imported the library yet."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def ask_with_empty_cache(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process asks the server, keeps what it gets in `cache`, and does not wait before it tries again."""
    ask(url, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
