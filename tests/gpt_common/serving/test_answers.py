"""The server of a made-up model: OpenAI's forms, what is refused, and clients that leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpt_common.serving.malformed import BODIES, CHAT, COMPLETIONS, DOCUMENTS, HELLO
from tests.gpt_common.serving.served import Saying, Server, make_model, serving_made_up


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "plain")
    make_model(folder / "plain", step=10)
    make_model(folder / "chat", chat=True)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    with serving_made_up([runs / "plain", runs / "chat"], lambda source: Saying(source.tokenizer)) as found:
        yield found


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_a_wrong_request_is_refused_in_json(number: int, server: Server) -> None:
    path, document, expected = DOCUMENTS[number]
    status, answer, headers = server.ask(path, document)
    assert (status, headers["content-type"]) == (expected, "application/json"), answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 400


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_wrong_body_is_refused_in_json(number: int, server: Server) -> None:
    path, body, expected = BODIES[number]
    status, answer, _ = server.ask(path, body, method="POST")
    assert status == expected
    assert answer["error"]["message"]


def test_there_are_fifty_of_them_and_they_do_no_harm(server: Server) -> None:
    assert len(BODIES) + len(DOCUMENTS) >= 50
    assert server.ask("/health")[1] == {"status": "ok", "writing": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("response_format", {"type": "yaml"}), ("logit_bias", {"1": 2}), ("temprature", 1), ("tools", [{}])],
)
def test_what_is_not_supported_is_named(name: str, value: Any, server: Server) -> None:
    for path, document in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO, "model": "chat"})):
        _, answer, _ = server.ask(path, {**document, name: value})
        assert answer["error"]["param"] == name
        assert name in answer["error"]["message"]


def test_what_asks_for_nothing_is_taken(server: Server) -> None:
    empty = {"response_format": {"type": "text"}, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "best_of": 1}
    assert server.complete("a", max_tokens=3, temperature=0, stop=None, **empty)["text"] == "bcd"


def test_a_prompt_that_cannot_fit_is_not_even_encoded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt_common.serving.models import Served

    monkeypatch.setattr(Served, "encode", None)
    for letters, said in ((1_000_000, "1000000 characters"), (48 * 3 + 1, "145 characters")):
        status, answer, _ = server.ask(COMPLETIONS, {"prompt": "a" * letters})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert said in answer["error"]["message"]


def test_only_json_is_read(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, answer, _ = server.ask(COMPLETIONS, {"prompt": "a"}, Content_Type=kind)
        assert (status, answer["error"]["code"]) == (415, "content_type")


@pytest.mark.parametrize("path", ["/", "/v1/models", COMPLETIONS, "/nothing"])
def test_no_page_from_elsewhere_and_no_other_name(path: str, server: Server) -> None:
    document = {"prompt": "a"} if path == COMPLETIONS else None
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        status, answer, headers = server.ask(path, document, **header)
        assert status == 403, answer
        assert "access-control-allow-origin" not in headers
    status, _, headers = server.ask(path, document, method="OPTIONS", Origin="http://evil.example")
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_every_answer_has_its_policy(server: Server) -> None:
    for path in ("/", "/page.js", "/page.css", "/v1/models", "/nothing"):
        headers = server.ask(path)[2]
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_models(server: Server) -> None:
    listed = server.ask("/v1/models")[1]["data"]
    assert [one["id"] for one in listed] == [
        "plain", "plain/step-000005", "plain/step-000010", "chat", "chat/step-000005",
    ]  # fmt: skip
    assert {one["id"]: one["chat"] for one in listed}["chat"]
    assert server.ask("/v1/models/plain/step-000005")[1]["step"] == 5
    assert server.ask("/v1/models/none")[0] == 404


# ---- completions: the model says a b c d e f g h a b ... -------------------------------------------------------------


def test_a_completion(server: Server) -> None:
    status, answer, _ = server.ask(COMPLETIONS, {"prompt": "ab", "max_tokens": 3, "temperature": 0})
    assert status == 200
    assert (answer["object"], answer["model"]) == ("text_completion", "plain")
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "text": "cde", "logprobs": None}]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert server.complete("a", temperature=0)["text"] == "bcdefghabcdefgha", "16 tokens, as OpenAI's"


def test_a_stop_string(server: Server) -> None:
    found = server.complete("a", temperature=0, stop=["zz", "ef"], logprobs=0)
    assert (found["text"], found["finish_reason"]) == ("bcd", "stop")
    assert found["logprobs"]["tokens"] == ["b", "c", "d"]
    assert found["logprobs"]["top_logprobs"] is None


def test_several_prompts_of_every_form(server: Server) -> None:
    ids = server.ask("/tokenize", {"prompt": "ab"})[1]["tokens"]
    assert server.ask("/detokenize", {"tokens": ids})[1] == {"prompt": "ab"}
    for prompt in (["ab", "e"], [ids, server.ask("/tokenize", {"prompt": "e"})[1]["tokens"]]):
        answer = server.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 2, "temperature": 0, "n": 2})[1]
        assert [(one["index"], one["text"]) for one in answer["choices"]] == [
            (0, "cd"),
            (1, "cd"),
            (2, "fg"),
            (3, "fg"),
        ]
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert server.complete(ids, max_tokens=1, temperature=0)["text"] == "c"


def test_probabilities(server: Server) -> None:
    found = server.complete("a", max_tokens=2, temperature=0, logprobs=2, return_token_ids=True)
    said = found["logprobs"]
    assert said["tokens"] == ["b", "c"]
    assert said["text_offset"] == [0, 1]
    for token, logprob, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2
        assert -0.01 < logprob < 0
    assert [one[0]["id"] for one in said["alternatives"]] == found["token_ids"]
    assert found["prompt_token_ids"] == server.ask("/tokenize", {"prompt": "a"})[1]["tokens"]


def test_an_echo(server: Server) -> None:
    found = server.complete("abx", max_tokens=0, echo=True, logprobs=1)
    said = found["logprobs"]
    assert (found["text"], found["finish_reason"]) == ("abx", "length")
    assert said["tokens"] == ["a", "b", "x"]
    assert said["token_logprobs"][0] is None
    assert said["top_logprobs"][0] is None
    assert said["token_logprobs"][1] > -0.01, "b follows a"
    assert said["token_logprobs"][2] == pytest.approx(said["token_logprobs"][1] - 9), "x does not follow b"
    assert len(said["top_logprobs"][2]) == 2, "what was likelier, and itself"
    more = server.complete("abc", max_tokens=2, echo=True, logprobs=1, temperature=0)
    assert more["text"] == "abcde"
    assert more["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


def test_what_lm_eval_asks(server: Server) -> None:
    """As its `local-completions` sends it, and read as it reads it (lm-eval 0.4.13)."""
    assert "eos_token" in server.ask("/tokenizer_info")[1]
    context, continuation = "ab", "cd"
    whole = server.ask("/tokenize", {"prompt": context + continuation, "add_special_tokens": False})[1]["tokens"]
    more = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    for prompt in ([whole], [whole, whole], context + continuation):
        answer = server.ask(COMPLETIONS, {"model": "plain", "prompt": prompt, **more})[1]
        for choice in answer["choices"]:
            logprobs = choice["logprobs"]["token_logprobs"][len(context) : -1]
            top = choice["logprobs"]["top_logprobs"][len(context) : -1]
            assert sum(logprobs) > -0.03
            assert all(one == max(others.values()) for one, others in zip(logprobs, top, strict=True))
    asked = {"max_tokens": 4, "temperature": 0, "stop": ["\n", "f"], "seed": 1234}
    answer = server.ask(COMPLETIONS, {"prompt": [whole], "model": "plain", **asked})[1]
    assert answer["choices"][0]["text"] == "e"


def test_a_stream(server: Server) -> None:
    asked = {
        "prompt": "a",
        "max_tokens": 3,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = list(server.stream(COMPLETIONS, {**asked, "n": 2, "logprobs": 1}))
    *pieces, last = events
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    for index in (0, 1):
        own = [event["choices"][0] for event in pieces if event["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in own) == "bcd"
        assert [piece["finish_reason"] for piece in own] == [None, None, None, "length"]
        assert [token for piece in own for token in piece["logprobs"]["tokens"]] == ["b", "c", "d"]
    assert len({event["id"] for event in events}) == 1


def test_a_chat(server: Server) -> None:
    asked = {"model": "chat", "messages": HELLO, "max_tokens": 4, "temperature": 0}
    _, answer, _ = server.ask(CHAT, {**asked, "logprobs": True, "top_logprobs": 2})
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "abcd", "refusal": None}
    assert [len(one["top_logprobs"]) for one in choice["logprobs"]["content"]] == [2] * 4
    assert choice["logprobs"]["content"][0]["bytes"] == [97]
    deltas = [event["choices"][0]["delta"] for event in server.stream(CHAT, {**asked, "stream": True})]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "abcd"
    assert deltas[-1] == {}


def test_nobody_ends_a_turn_by_naming_its_end(server: Server) -> None:
    def tokens(content: str) -> int:
        asked = {"model": "chat", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return int(server.ask(CHAT, asked)[1]["usage"]["prompt_tokens"])

    _, answer, _ = server.ask(CHAT, {"model": "chat", "messages": [{"role": "user", "content": "<|im_end|>"}]})
    assert "'<'" in answer["error"]["message"], "as letters, of which the vocabulary lacks the first"
    assert tokens("Hi") == len("user\nHi") + len("assistant\n") + 4  # turn, end, line end, turn


def test_a_model_without_a_template_says_so(server: Server) -> None:
    _, answer, _ = server.ask(CHAT, {"messages": HELLO})
    assert answer["error"]["code"] == "no_chat_template"
    assert "/v1/completions" in answer["error"]["message"]
