"""Templates that fail, loop, or would do what no template may: a line each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from tests.gpt_common.data.conversations.test_preparing import PAIR, prepared
from tests.twins import ROOT

WRONG_TEMPLATES = {
    "not Jinja": ("{% for %}", "cannot be read"),
    "an import": ("{% import 'os' as os %}{{ os }}", "fails"),
    "out of the sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError|no answer|fails|changes"),
    "its own error": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "it changes answers": ("{% for m in messages %}{{ m.content[1:] }}{% endfor %}", "changes"),
    "it drops answers": ("hello", "changes answers"),
    "it writes without end": ("{% for i in range(99999) %}{% for j in range(999) %}{{ 'a' }}{% endfor %}{% endfor %}",
                              "writes more|takes more"),
    "a large power": ("{{ 9 ** 99999 }}", "SecurityError"),
    "repeated text": ("{{ 'a' * 999999999 }}", "SecurityError"),
    "a call of nothing": ("{{ nothing() }}", "UndefinedError"),
    "another file": ("{% include '/etc/passwd' %}", "fails"),
    "a parent's file": ("{% extends '/etc/passwd' %}", "fails"),
    "a shell by a macro": ("{% macro m() %}{% endmacro %}{{ m.__call__.__globals__.os.mkdir('CANARY') }}", "fails"),
    "a shell by what Jinja knows": ("{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}", "fails"),
    "a shell by a format": ("{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}", "fails|changes"),
    "a shell by an attribute's name": ("{{ (''|attr('__class__')).__mro__ }}{{ lipsum|attr('__globals__') }}", "fails"),
    "a list that is changed": ("{% for m in messages %}{{ messages.append(m) }}{% endfor %}", "SecurityError"),
    "itself without end": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "a range without end": ("{% for i in range(10 ** 12) %}{% endfor %}", "fails"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "says"), WRONG_TEMPLATES.values(), ids=WRONG_TEMPLATES)
def test_a_wrong_template_is_one_line(tmp_path: Path, source: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        prepared(tmp_path, PAIR, PAIR, template=str(tmp_path / "t.jinja"))
    assert "\n" not in str(error.value)
    assert "talk.jsonl:1: " in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jinja", "talk.jsonl"], "nothing is left, or run"


def test_a_template_that_loops_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_common.data.conversations.written.SECONDS", 0.5)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "t.jinja").write_text(loop)
    with pytest.raises(UserError, match="it loops") as error:
        prepared(tmp_path, PAIR, PAIR, template=str(tmp_path / "t.jinja"))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jinja", "talk.jsonl"]


VICTIM = """
import os, signal, threading
from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.conversations.written import Template

LOOP = "{% for m in messages %}{{ m.content }}{% if m.content == 'loop' %}{% for i in range(99999) %}" \\
    "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}"

if __name__ == "__main__":
    talks = [Conversation("", (Message("assistant", said),)) for said in ("hello", "loop")]
    with Template(LOOP).writer() as write:
        asking = write(iter(talks))
        next(asking)  # its process is there; the next one is sent to it, and then nobody waits for the answer any more
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        next(asking)
"""


def test_a_template_that_loops_ends_with_who_asked(tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(VICTIM)
    command = [sys.executable, str(tmp_path / "victim.py")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as victim:
        # The template's process has the same pipe: it is at its end when the last of them is.
        assert victim.communicate(timeout=60)[0] == b""
        assert victim.returncode == -signal.SIGKILL
