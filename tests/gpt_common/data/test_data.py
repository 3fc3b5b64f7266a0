"""`python -m gpt_common.data`: downloads, the command line, and what it shows."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_common.data import download, open_dataset
from gpt_common.data.__main__ import main
from gpt_common.data.prepare import prepare_named
from gpt_common.errors import run_main
from gpt_common.progress import Progress
from tests.borrowed import tiny_shakespeare
from tests.gpt_common.data.corpora import fails, prepare_characters, silent

# --- download, from a server of our own


BODY = b"First Citizen:\n" * 5000
SERVED = download.Text("the text", "", "text.txt", len(BODY), hashlib.sha256(BODY).hexdigest())


given_up = threading.Event()
"""Ends the silence of `/silent`, when all tests are done."""


class Handler(http.server.BaseHTTPRequestHandler):
    """`/good`, `/wrong` (one byte differs), `/short` (breaks off), `/long`, `/silent`, anything else 404."""

    def do_GET(self) -> None:
        bodies = {"/good": BODY, "/wrong": BODY[:-1] + b"!", "/short": BODY[:999], "/long": BODY + b"!", "/silent": b""}
        body = bodies.get(self.path)
        if self.path == "/silent":
            given_up.wait(60)
        with contextlib.suppress(ConnectionError):  # whoever asked may have gone
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(BODY) if self.path == "/short" else len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        given_up.set()
        running.shutdown()
        thread.join()


def served(url: str) -> download.Text:
    return download.Text(SERVED.title, url, SERVED.file_name, SERVED.size, SERVED.sha256)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_download_is_kept_and_not_repeated(tmp_path: Path, server: str) -> None:
    phases: list[tuple[str, int, int]] = []
    note = lambda *progress: phases.append(progress)  # noqa: E731
    data = prepare_named("shakespeare_char", tmp_path, text=served(server + "/good"), on_progress=note)
    assert data.tokenizer.decode(data.val) == BODY.decode()[-7500:]  # type: ignore[arg-type]
    assert ("downloading the text", len(BODY), len(BODY)) in phases
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["text.txt"]
    again = {"text": served("http://127.0.0.1:9/closed"), "on_progress": silent}
    prepare_named("shakespeare_char", tmp_path, overwrite=True, **again)  # type: ignore[arg-type]
    (tmp_path / "downloads" / "text.txt").write_text("changed")
    with fails("cannot reach"):
        prepare_named("shakespeare_char", tmp_path, overwrite=True, **again)  # type: ignore[arg-type]
    assert open_dataset("shakespeare_char", tmp_path).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/wrong", r"is not the text any more .*SHA-256.*--from-file"),
        ("/long", r"is not the text any more .*SHA-256.*--from-file"),
        ("/short", r"broke off before all 75,000 bytes.*--from-file"),
        ("/absent", r"answers 404 Not Found.*--from-file"),
        ("/silent", r"does not answer within 0.1 s.*--from-file"),
    ],
)
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    if path == "/silent":
        defaults = download.fetch.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "timeout", 0.1)
    with fails(message):
        prepare_named("shakespeare_char", tmp_path, text=served(server + path), on_progress=silent)
    assert not list((tmp_path / "downloads").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed", "http://name.invalid/text"])
def test_no_network_is_said(tmp_path: Path, url: str) -> None:
    with fails(r"cannot reach http://.*--from-file"):
        prepare_named("shakespeare", tmp_path, text=served(url), on_progress=silent)


def test_the_address_is_that_of_the_text_that_nanogpt_uses(tmp_path: Path) -> None:
    text = download.TINY_SHAKESPEARE
    assert text.url == "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    # Said twice, so that a slip of the keyboard is noticed where the text itself is not here.
    digest = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert (text.size, text.sha256) == (1_115_394, digest)
    source, expected = tiny_shakespeare(tmp_path)
    body = source.read_bytes()
    assert (expected.size, expected.sha256) == (len(body), hashlib.sha256(body).hexdigest())


def test_a_local_file_must_be_the_text(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Second Citizen")
    with fails(r"other.txt is not Tiny Shakespeare .*--text FILE"):
        prepare_named("shakespeare", tmp_path, from_file=tmp_path / "other.txt", on_progress=silent)
    with fails(r"cannot read .*absent: No such file"):
        prepare_named("shakespeare", tmp_path, from_file=tmp_path / "absent", on_progress=silent)


def stories(folder: Path, count: int, name: str, first: int = 0) -> download.Text:
    """A file of small stories, each with the separator behind it, as a text that is known to the last byte."""
    lines = [f"Story {i}. Once there was a cat.\n<|endoftext|>\n" for i in range(first, first + count)]
    body = "".join(lines).encode()
    (folder / name).write_bytes(body)
    return download.Text(name, f"http://127.0.0.1:9/{name}", name, len(body), hashlib.sha256(body).hexdigest())


def test_tinystories_takes_its_own_validation_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_common.data.prepare.TINY_STORIES_VOCABULARY", 300)
    texts = {"text": stories(tmp_path, 300, "train.txt"), "validation": stories(tmp_path, 40, "valid.txt", 5000)}
    local = {"from_file": tmp_path / "train.txt", "on_progress": silent, "workers": 1}
    data = prepare_named("tinystories", tmp_path / "data", **texts, **local)  # type: ignore[arg-type]
    train, val = (data.tokenizer.decode(split.tolist()) for split in (data.train, data.val))
    assert "Story 0." in train
    assert "Story 299." in train
    assert "Story 5000" not in train
    assert val.startswith("Story 5000")
    assert "Story 299." not in val
    assert data.tokenizer.vocab_size == 300
    meta = json.loads((tmp_path / "data" / "tinystories" / "meta.json").read_text())
    assert meta["separator"] == "<|endoftext|>"
    # Without the second file the last tenth of the first is for validation, from where a story begins.
    (tmp_path / "valid.txt").unlink()
    data = prepare_named("tinystories", tmp_path / "data", overwrite=True, **texts, **local)  # type: ignore[arg-type]
    assert data.tokenizer.decode(data.val.tolist()).lstrip().startswith("Story 2")
    # And a text of another kind is refused by name, wherever it lies.
    (tmp_path / "valid.txt").write_text("other")
    with fails(r"valid.txt is not valid.txt .*--text FILE"):
        prepare_named("tinystories", tmp_path / "data", overwrite=True, **texts, **local)  # type: ignore[arg-type]


def test_tinystories_is_downloaded_from_a_fixed_revision() -> None:
    for text, size, digest in (
        (download.TINY_STORIES, 2_227_753_162, "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443"),
        (
            download.TINY_STORIES_VALIDATION,
            22_502_601,
            "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
        ),
    ):
        assert (text.size, text.sha256) == (size, digest)
        assert re.fullmatch(
            r"https://huggingface\.co/datasets/roneneldan/TinyStories/resolve/[0-9a-f]{40}/TinyStoriesV2-GPT4-\w+\.txt",
            text.url,
        )


# --- the command


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `python -m gpt_common.data ARGUMENTS`."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            run_main(main, arguments.split())
    finally:
        signal.signal(signal.SIGTERM, previous)
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_prepare_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "a.txt").write_text("hello " * 2000)
    (tmp_path / "b.txt").write_text("world " * 500)
    data = f"--data-dir {tmp_path}/data"
    arguments = (
        f"prepare --text {tmp_path}/a.txt {tmp_path}/b.txt --name mine --tokenizer char --val_fraction 0.2 {data}"
    )
    code, out, err = run(arguments, capsys)
    assert code == 0
    assert "train      12,000 tokens" in out
    assert "val         3,000 tokens" in out
    assert f"python -m mlx_gpt.train --dataset mine --data-dir {tmp_path}/data" in out
    assert err.splitlines()[-1] == "encoding: 100 %"
    code, out, _ = run(f"list {data}", capsys)
    assert code == 0
    assert re.search(r"^mine +12,000 +3,000 +char 9 +0\.0 MB +prepared", out, re.MULTILINE)
    assert re.search(r"^stories +made at first use", out, re.MULTILINE)
    assert f"\npython -m gpt_common.data prepare shakespeare_char --data-dir {tmp_path}/data\n" in out
    (tmp_path / "data" / "mine" / "meta.json").write_text("{")
    assert re.search(r"^mine +damaged", run(f"list {data}", capsys)[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepar", "unknown command 'prepar': did you mean 'prepare'?"),
        ("prepare", "say which corpus (shakespeare, shakespeare_char, tinystories)"),
        ("prepare shakespear", "no corpus 'shakespear' (did you mean 'shakespeare'?)"),
        ("prepare pyproject.toml", "--text pyproject.toml --name NAME"),
        ("prepare shakespeare --text a", "say which corpus"),
        ("prepare shakespeare --name a", "--name is settled"),
        ("prepare --tokeniser char", "did you mean '--tokenizer'?"),
        ("prepare --text a --tokenizer char", "--text needs --name NAME"),
        ("prepare --text a --name shakespeare --tokenizer char", "belongs to Tiny Shakespeare"),
        ("prepare --text a --name b --tokenizer char --from-file c", "--from-file is for corpora that have a name"),
        ("prepare shakespeare --workers many", "--workers"),
        ("list --data", "did you mean '--data-dir'?"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("arguments", ["--help", "prepare --help", "list --help", ""])
def test_help_is_given(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    code, out, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    assert "usage: python -m gpt_common.data" in out


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nimport gpt_common.data.__main__\n"
        "print([m for m in ('tiktoken', 'tokenizers', 'requests', 'rich', 'torch', 'mlx') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress() as on_progress:
            for done in range(101):
                on_progress("reading", done, 100)
            on_progress("encoding", 5, 5)
        shown.append(stream.getvalue())
    assert "reading" in shown[0]
    assert "\x1b[" in shown[0]
    assert shown[1].splitlines() == [*(f"reading: {done} %" for done in (0, 25, 50, 75, 100)), "encoding: 100 %"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with fails(f"cannot write {tmp_path}/data/mine"):
        prepare_characters(tmp_path)
