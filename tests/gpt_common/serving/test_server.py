"""Both twins' servers as a person starts them: what many ask at once is what each would be told alone."""

from __future__ import annotations

import functools
import importlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpt_common.commands import SampleSettings
from gpt_common.keyed import draws
from tests.gpt_common.serving.malformed import CHAT, COMPLETIONS
from tests.gpt_common.serving.served import Server, make_model, serving
from tests.twins import ROOT, TWINS, command

PROMPTS = ["Once", "a", "The frog said", "Hello, hello!", "x" * 47, "yes\nno", "B", "Where is it?"]


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "plain")
    make_model(folder / "chat", chat=True, seed=3)
    return folder


@pytest.fixture(scope="module")
def server(twin: str, runs: Path) -> Iterator[Server]:
    with serving(twin, runs / "plain", runs / "chat", "--batch-size", "8") as found:
        yield found


@functools.cache
def loaded(twin: str, run: Path) -> Any:
    return importlib.import_module(f"{twin}.notebook").load(run, device="cpu")


def alone(twin: str, run: Path, prompt: str, settings: SampleSettings, seed: int) -> str:
    """What `generate` says, asked for nothing else."""
    model = loaded(twin, run)
    ids = model.tokenizer.encode(prompt)
    new = importlib.import_module(f"{twin}.sample").generate(
        model, ids, settings, draws(seed, 0), model.tokenizer.vocab_size
    )
    return str(model.tokenizer.decode(list(new)))


def test_many_at_once_are_told_what_each_is_told_alone(twin: str, runs: Path, server: Server) -> None:
    """Greedy and sampled, past the end of the block, 24 clients and 8 places."""
    asked = [
        {
            "prompt": prompt,
            "max_tokens": 30 + 7 * at,
            "temperature": temperature,
            "seed": at,
            "top_k": 20,
            "top_p": 0.95,
        }
        for at, prompt in enumerate(PROMPTS)
        for temperature in (0, 0.8, 1.3)
    ]
    with ThreadPoolExecutor(len(asked)) as clients:
        found = list(clients.map(lambda one: server.complete(**one)["text"], asked))
    expected = []
    for one in asked:
        names = {"max_new_tokens": one["max_tokens"], **{name: one[name] for name in ("temperature", "top_k", "top_p")}}
        expected.append(alone(twin, runs / "plain", str(one["prompt"]), SampleSettings(**names), one["seed"]))  # type: ignore[arg-type]
    assert found == expected
    assert len(set(expected)) == len(expected)


def test_several_answers_are_those_of_sample(twin: str, runs: Path, server: Server) -> None:
    asked = {"prompt": "Once", "max_tokens": 40, "temperature": 0.8, "seed": 5, "n": 3}
    choices = server.ask(COMPLETIONS, asked)[1]["choices"]
    words = [str(runs / "plain"), "--prompt", "Once", "--max-new-tokens", "40", "--seed", "5", "--num-samples", "3"]
    done = command(twin, *words, "--device", "cpu", program="sample")
    assert done.returncode == 0, done.stderr
    for choice in choices:
        assert f"Once{choice['text']}\n" in done.stdout


def test_the_probabilities_of_a_text_are_those_of_its_pieces(server: Server) -> None:
    """What an answer was given, token by token from a cache, an echo gives again in one pass."""
    said = server.complete("Once", max_tokens=30, temperature=0.9, seed=2, logprobs=3)
    again = server.complete("Once" + said["text"], max_tokens=0, echo=True, logprobs=3)
    assert again["logprobs"]["tokens"][4:] == said["logprobs"]["tokens"]
    assert again["logprobs"]["token_logprobs"][4:] == pytest.approx(said["logprobs"]["token_logprobs"], abs=1e-4)


def test_openais_client(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not here: pip install -e '.[dev]'")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert {model.id for model in client.models.list()} >= {"plain", "chat"}
        whole = client.completions.create(
            model="plain", prompt="Once", max_tokens=12, temperature=0, logprobs=2, stop=["\u0000"], n=2, user="me"
        )
        assert whole.choices[0].text == whole.choices[1].text
        assert len(whole.choices[0].logprobs.tokens) == 12
        assert whole.usage.completion_tokens == 24
        stream = client.completions.create(model="plain", prompt="Once", max_tokens=12, temperature=0, stream=True)
        assert "".join(event.choices[0].text for event in stream) == whole.choices[0].text
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        chat = client.chat.completions.create(
            model="chat",
            messages=messages,
            max_completion_tokens=9,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            seed=1,
        )
        assert chat.choices[0].finish_reason in ("length", "stop")
        said = client.chat.completions.create(
            model="chat",
            messages=messages,
            max_tokens=9,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        events = list(said)
        pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
        assert "".join(pieces) == chat.choices[0].message.content
        assert events[-1].usage.prompt_tokens == chat.usage.prompt_tokens
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.chat.completions.create(model="chat", messages=messages, response_format={"type": "json_object"})
        with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
            client.completions.create(model="other", prompt="a")


def listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except ConnectionError:
        return False
    except TimeoutError:  # more wait to be heard than the system lets wait
        return True
    return True


def test_a_signal_finishes_what_is_being_answered(twin: str, runs: Path) -> None:
    """Answers that are written and answers that wait; then exit code 143."""
    with serving(twin, runs / "plain", "--batch-size", "2") as server:
        assert server.process is not None
        asked = {"prompt": "Once", "max_tokens": 1500, "temperature": 0}
        stream = server.stream(COMPLETIONS, {**asked, "stream": True})
        next(stream)
        with ThreadPoolExecutor(4) as clients:
            others = [clients.submit(server.complete, **asked) for _ in range(4)]
            started = threading.Event()
            while not started.is_set():
                found = server.ask("/health")[1]
                if found["writing"] + found["waiting"] == 5:
                    started.set()
            server.process.send_signal(signal.SIGTERM)
            *_, last = stream
            assert last["choices"][0]["finish_reason"] == "length"
            assert {len(other.result()["text"]) for other in others} == {1500}
        assert server.process.wait(30) == 143
        assert not listens(server)


def test_a_second_signal_ends_it_at_once(twin: str, runs: Path) -> None:
    with serving(twin, runs / "plain", "--max-tokens", "1000000") as server:
        assert server.process is not None
        assert server.process.stderr is not None
        stream = server.stream(COMPLETIONS, {"prompt": "Once", "max_tokens": 10**6, "stream": True})
        next(stream)
        server.process.send_signal(signal.SIGINT)
        while listens(server):  # until the first was heard
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
        assert server.process.stderr.read() == "interrupted\n"
        stream.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--port", "1"], "Address already in use; another --port, or 0 for a free one"),
        (["--prot", "8000"], "did you mean '--port'?"),
        (["nothing-here"], "nothing-here"),
    ],
)
def test_what_a_person_can_mend_is_one_line(words: list[str], said: str, runs: Path) -> None:
    if words[:1] == ["--port"]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = command("torch_gpt", runs / "plain", "--port", str(taken.getsockname()[1]), program="serve")
    else:
        done = command("torch_gpt", *([] if words[0] == "nothing-here" else [runs / "plain"]), *words, program="serve")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_without_its_packages_it_names_the_extra(runs: Path) -> None:
    code = f"""
import sys
sys.modules["uvicorn"] = None
from gpt_common.errors import run_main
from torch_gpt.serve import main
run_main(main, [{str(runs / "plain")!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install -e '.[serve]'" in done.stderr


def test_what_it_says_of_itself_fits_a_line(server: Server) -> None:
    assert server.process is not None
    assert server.process.stdout is not None
    lines = [server.process.stdout.readline() for _ in range(3)]
    assert all(len(line) <= 81 for line in lines), lines
    assert "plain, step 5" in lines[0]
    assert "8 at once" in lines[1]


def test_a_chat_goes_on_from_its_prompt(server: Server) -> None:
    """The page goes on from any token: by ids, through the other address, with the same text."""
    messages = [{"role": "user", "content": "Hello"}]
    asked: dict[str, Any] = {"model": "chat", "temperature": 0, "return_token_ids": True}
    _, chat, _ = server.ask(CHAT, {**asked, "messages": messages, "max_tokens": 12})
    choice = chat["choices"][0]
    ids = choice["prompt_token_ids"] + choice["token_ids"][:4]
    rest = server.complete(ids, **asked, max_tokens=8)
    assert choice["token_ids"][4:] == rest["token_ids"][: len(choice["token_ids"]) - 4]
