"""Who may ask: this machine by its own names, no page from elsewhere, and with a token only who knows it."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_common.errors import UserError
from gpt_common.serving.command import ServeCommand, host_of, is_loopback
from gpt_common.serving.guard import check
from gpt_common.serving.refusals import Refused

SECRET = "a-long-enough-secret"
HERE = {"host": "127.0.0.1:8000"}


def status(
    headers: dict[str, str], path: str = "/v1/models", secret: str | None = None, host: str = "127.0.0.1"
) -> int:
    """200, or the status with which it is refused."""
    try:
        check(path, headers, host, secret)
    except Refused as refused:
        return refused.status
    return 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "LOCALHOST:1"])
def test_this_machine_by_its_own_names(host: str) -> None:
    assert status({"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.2:8000", "", "a@localhost",
     "localhost:8000/x", "localhost:99999", "[::1", "0x7f.1", "localhost#", "evil.example:8000@127.0.0.1"],
)  # fmt: skip
def test_no_other_name(host: str) -> None:
    """What a page would ask for whose name was let point here."""
    assert status({"host": host}) == 403


@pytest.mark.parametrize(
    "more",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:3000"},
     {"origin": "http://localhost:8000"}, {"origin": "file://"}, {"origin": ""}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_no_page_from_elsewhere(more: dict[str, str]) -> None:
    assert status({**HERE, **more}) == 403
    assert status({**HERE, **more}, path="/") == 403


def test_its_own_page_and_a_link_to_it() -> None:
    assert status({**HERE, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}) == 200
    link = {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert status(link, path="/") == 200
    assert status(link, path="/v1/models") == 403


def test_a_token() -> None:
    away = {"host": "server.example:8000"}
    assert status(away, secret=SECRET, host="0.0.0.0") == 401
    for said in (SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer ", "Bearer\u00e9"):
        assert status({**away, "authorization": said}, secret=SECRET, host="0.0.0.0") == 401
    known = {**away, "authorization": f"Bearer {SECRET}"}
    assert status(known, secret=SECRET, host="0.0.0.0") == 200
    assert status({**known, "origin": "http://evil.example"}, secret=SECRET, host="0.0.0.0") == 403
    assert status(away, path="/", secret=SECRET, host="0.0.0.0") == 200, "the page asks for it"
    assert status(HERE, secret=SECRET) == 401, "on this machine too, where there is one"


def test_another_host_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_TORCH_GPT_TOKEN", raising=False)
    for host in ("0.0.0.0", "192.168.1.2", "::", "server.example"):
        with pytest.raises(UserError, match="--token"):
            ServeCommand(host=host)
    assert ServeCommand(host="0.0.0.0", token=SECRET).secret == SECRET
    monkeypatch.setenv("MLX_TORCH_GPT_TOKEN", SECRET)
    assert ServeCommand(host="0.0.0.0").secret == SECRET
    assert ServeCommand(host="127.3.2.1", token=None).secret == SECRET


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"token": "short"}, "16 characters"), ({"token": "with a blank in it here"}, "blank"),
     ({"token": "é" * 20}, "ASCII"), ({"port": 70000}, "65535"), ({"queue": 0}, "queue"),
     ({"time_limit": float("nan")}, "time_limit")],
)  # fmt: skip
def test_impossible_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ServeCommand(**fields)


def test_hosts_in_words() -> None:
    assert host_of("[::1]:80") == "::1"
    assert host_of("Localhost") == "localhost"
    assert [is_loopback(host) for host in ("::1", "127.9.9.9", "localhost", "0.0.0.0", "a.b", "")] == [True] * 3 + [
        False
    ] * 3
