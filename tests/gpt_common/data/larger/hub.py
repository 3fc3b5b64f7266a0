"""A server on this machine that answers as the hub does for data sets, with faults on demand, and files for it."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits."""
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def texts(seed: int, count: int) -> list[str]:
    choose = np.random.default_rng(seed)
    return ["".join(choose.choice(list(LETTERS), choose.integers(5, 80))) for _ in range(count)]


def parquet(rows: Sequence[str | None], *, group: int = 7, column: str = "text") -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(rows))), column: pyarrow.array(rows, pyarrow.string())})
    pyarrow.parquet.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


def json_lines(rows: Sequence[str | None]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@dataclass
class Hub:
    """What the server holds and does."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the one data set there is, someone/texts."""
    configs: list[dict[str, object]] | None = None
    """What its card lists."""
    commit: str = FIRST
    """What main is at; both commits may be asked for."""
    fault: str = ""
    """gated, cut (answers break off), forged (a byte is another), silly (no commit), or nothing."""
    faulty: str = ""
    """The file with the fault."""
    asked: list[str] = field(default_factory=list)
    """Files that were downloaded."""


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
            parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
            asks = parts[0] == "api"
            parts = parts[1:] if asks else parts
            if parts[:3] != ["datasets", "someone", "texts"]:
                return self.refuse(404, "RepoNotFound")
            if hub.fault == "gated":
                return self.refuse(403, "GatedRepo")
            revision = parts[4] if len(parts) > 4 else "main"
            if revision not in ("main", FIRST, SECOND):
                return self.refuse(404, "RevisionNotFound")
            commit = hub.commit if revision == "main" else revision
            if asks:
                return self.describe(commit)
            return self.send("/".join(parts[5:]), commit, body)

        def describe(self, commit: str) -> None:
            said = {
                "id": "someone/texts",
                "sha": None if hub.fault == "silly" else commit,
                "siblings": [{"rfilename": name} for name in hub.files],
                "cardData": None if hub.configs is None else {"configs": hub.configs},
            }
            data = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send(self, name: str, commit: str, body: bool) -> None:
            if name not in hub.files:
                return self.refuse(404, "EntryNotFound")
            data = hub.files[name]
            digest = hashlib.sha256(data).hexdigest()
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(data)))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            if not body:
                return None
            hub.asked.append(name)
            if name == hub.faulty and hub.fault == "forged":
                data = bytes([data[0] ^ 1]) + data[1:]
            if name == hub.faulty and hub.fault == "cut":
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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
