"""A server on this machine that answers as the hub does, with faults on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds and does."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    """Folder by OWNER/NAME."""
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    """Files whose answers break off half way, however often one asks for the rest."""
    forged: set[str] = field(default_factory=set)
    """Files that are not what their hash says."""
    asked: list[str] = field(default_factory=list)
    """Files that were downloaded."""


def digest(path: Path) -> str:
    """What the hub gives as a file's hash: SHA-256 of large ones, and of the others what git calls a blob."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub for as long as the block lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            owner, name, _, revision, *parts = self.path.split("?")[0].strip("/").split("/") + [""] * 5
            repository, file = f"{owner}/{name}", "/".join(part for part in parts if part)
            if repository not in hub.models:
                return self.refuse(404, "RepoNotFound")
            if repository in hub.gated:
                return self.refuse(403, "GatedRepo")
            if revision not in ("main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            path = hub.models[repository] / file
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            data = path.read_bytes()
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{digest(path)}"')
            if path.suffix == ".safetensors":
                self.send_header("X-Linked-Etag", f'"{digest(path)}"')
                self.send_header("X-Linked-Size", str(len(data)))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            if not body:
                return None
            hub.asked.append(file)
            if file in hub.forged:
                data = bytes([data[0] ^ 1]) + data[1:]
            if file in hub.cut:
                self.wfile.write(data[begin : len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return None
            self.wfile.write(data[begin:])
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
