"""llama.cpp reads what we write: the same ids of any text, and the same likeliest tokens.

Asked is npm's node-llama-cpp, which has nothing in common with gguf-py; `llama_cpp.py` says how it gets here.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.formats.gguf import architectures, vocabulary
from convert.storage.gguf_file import read_gguf, write_gguf
from convert.storage.gguf_header import KINDS
from convert.storage.tensors import from_array, load
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer
from gpt_common.data.tokenizers.extended import with_tokens
from tests.convert.conftest import done
from tests.convert.formats.continuation import greedy, load_model
from tests.convert.gguf import llama_cpp
from tests.convert.gguf.llama_cpp import Job, ask
from tests.convert.gguf.models import CHARACTERS, PROMPT, SEEDS, TOKENIZERS, model_of, write_run

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(llama_cpp.missing() is not None, reason=llama_cpp.missing() or ""),
]
STEPS = 64
CLEAR = 0.015
"""Logits between the two likeliest tokens, at least: 30 times what llama.cpp's float16 products are off by (5e-4)."""
TEXTS = 200
LETTERS = (
    "abcdefghijklmnopqrstuvwxyz ABC  \n\n\t\r,.;:'!?0123456789 'll 're n't <|endoftext|> [PAD7]"
    "éüßñ漢字かな가😀👩\u200d👩\u200d👧½€²Ⅷ٣ \u0301عربيहिन्दी\u00a0\u2003\u200b\ufeff"
)


def texts_of(tokenizer: Tokenizer) -> list[str]:
    """Texts of characters that the tokenizer knows."""
    choose = random.Random(7)
    pool = tokenizer.characters if isinstance(tokenizer, CharTokenizer) else LETTERS
    found = ["".join(choose.choice(pool) for _ in range(choose.randint(1, 60))) for _ in range(TEXTS - 1)]
    return [*found, " ,".join(pool[:60])]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, gpt2_vocabulary: None) -> Path:  # noqa: ARG001
    """For every model of SEEDS a run, its float32 file, and one of float16."""
    folder = tmp_path_factory.mktemp("exported")
    for (family, kind), seed in SEEDS.items():
        tokenizer = TOKENIZERS[kind]()
        run = write_run(folder / f"{family}-{kind}", tokenizer, model_of(family, tokenizer), seed)
        done("export", run, "--to", "gguf", "-o", folder / f"{run.name}-f32.gguf")
        done("export", run, "--to", "gguf", "-o", folder / f"{run.name}-f16.gguf", "--dtype", "float16")
        done("import", folder / f"{run.name}-f16.gguf", "-o", folder / f"{run.name}-f16")
    return folder


def margin(run: Path, course: list[int]) -> float:
    """The least distance between the two likeliest logits along a course."""
    tokens = torch.tensor([[*PROMPT, *course[:-1]]])
    with torch.no_grad():
        top = load_model("torch", run)(tokens)[0, len(PROMPT) - 1 :].topk(2).values
    return float((top[:, 0] - top[:, 1]).min())


def test_likeliest_tokens_are_the_same(exported: Path) -> None:
    jobs, expected = [], []
    for family, kind in SEEDS:
        forms = [("f32", f"{family}-{kind}"), ("f16", f"{family}-{kind}-f16")]
        # In float16 products round what goes in: where experts are chosen, that chooses another one now and then.
        for form, run in forms[: 1 if family.startswith("deepseek") else 2]:
            course = greedy("torch", exported / run, PROMPT, STEPS)
            assert greedy("mlx", exported / run, PROMPT, STEPS) == course
            assert len(set(course)) >= 20, "a text that repeats itself says little"
            assert margin(exported / run, course) > CLEAR, run
            jobs.append(Job(model=str(exported / f"{family}-{kind}-{form}.gguf"), prompts=[PROMPT], count=STEPS))
            expected.append(course)
    for job, answer, course in zip(jobs, ask(jobs), expected, strict=True):
        assert answer.continuations == [course], job.model


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_ids_of_any_text_are_the_same(exported: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts = texts_of(tokenizer)
    job = Job(model=str(exported / f"llama-{kind}-f32.gguf"), texts=texts, vocabulary=tokenizer.vocab_size)
    (answer,) = ask([job])
    for text, ids in zip(texts, answer.ids, strict=True):
        assert ids == tokenizer.encode(text), repr(text)
    assert answer.ends == [tokenizer.end_of_text]
    if kind == "characters":
        assert answer.texts == texts
        return
    # llama.cpp's detokeniser drops the space before a comma for this rule, as transformers once did by default.
    same = [text for text, back in zip(texts, answer.texts, strict=True) if text == back]
    assert len(same) > TEXTS / 2


def test_a_vocabulary_without_an_end_is_given_one_that_never_comes(tmp_path: Path) -> None:
    """Without it, token 11 would end a text."""
    tokenizer = CharTokenizer(CHARACTERS)
    for family in ("gpt2", "llama"):
        run = write_run(tmp_path / family, tokenizer, model_of(family, tokenizer))
        said = done("export", run, "--to", "gguf", "-o", tmp_path / f"{family}.gguf")
        assert "one was added" in said
    texts = texts_of(tokenizer)
    jobs = [
        Job(model=str(tmp_path / f"{family}.gguf"), texts=texts, prompts=[PROMPT], vocabulary=len(CHARACTERS) + 1)
        for family in ("gpt2", "llama")
    ]
    for family, answer in zip(("gpt2", "llama"), ask(jobs), strict=True):
        assert answer.ends == [len(CHARACTERS)]
        assert answer.ids == [tokenizer.encode(text) for text in texts]
        assert answer.continuations == [greedy("torch", tmp_path / family, PROMPT, STEPS)]
        # Back without it.
        done("import", tmp_path / f"{family}.gguf", "-o", tmp_path / f"{family}-back")
        done("diff", tmp_path / family, tmp_path / f"{family}-back")


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_conversation_ends_where_its_answer_does(tmp_path: Path, kind: str, gpt2_vocabulary: None) -> None:  # noqa: ARG001
    tokenizer = with_tokens(TOKENIZERS[kind](), (TURN, END))
    run = write_run(tmp_path / "run", tokenizer, model_of("llama", tokenizer, n_embd=32))
    done("export", run, "--to", "gguf", "-o", tmp_path / "chat.gguf")
    texts = texts_of(TOKENIZERS[kind]())
    (answer,) = ask([Job(model=str(tmp_path / "chat.gguf"), texts=texts, vocabulary=tokenizer.vocab_size)])
    assert answer.ids == [tokenizer.encode(text) for text in texts]
    assert set(answer.ends) == {tokenizer.specials[END], tokenizer.end_of_text}


def test_keys_and_values_apart_are_the_same_model(tmp_path: Path) -> None:
    """As llama.cpp's own converter has written DeepSeek since April 2025: it reads both, and so do we."""
    tokenizer = TOKENIZERS["bpe"]()
    model = model_of("deepseek", tokenizer)
    run = write_run(tmp_path / "run", tokenizer, model, SEEDS["deepseek", "bpe"])
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    header, found = read_gguf(tmp_path / "x.gguf")
    named = {}
    H, N, V, R = model.n_head, model.nope_size, model.value_size, model.kv_latent
    for name, tensor in found.items():
        if name.endswith("attn_kv_b.weight"):
            whole = load(tensor).reshape(H, N + V, R)
            parts = {"k_b": whole[:, :N].swapaxes(1, 2), "v_b": whole[:, N:]}
            for part, numbers in parts.items():
                apart = from_array(np.ascontiguousarray(numbers), "F32")
                named[name.replace("kv_b", part)] = (apart, KINDS["F32"])
        else:
            named[name] = (tensor, KINDS[tensor.dtype])
    lengths = {
        "head_count_kv": 1, "key_length": R + model.rope_size, "value_length": R, "key_length_mla": model.key_size,
        "value_length_mla": V,
    }  # fmt: skip
    settings = header.settings | {f"deepseek2.attention.{key}": value for key, value in lengths.items()}
    write_gguf(tmp_path / "apart.gguf", settings, named, lambda _: None)
    done("import", tmp_path / "apart.gguf", "-o", tmp_path / "back")
    done("diff", run, tmp_path / "back")
    jobs = [Job(model=str(tmp_path / name), prompts=[PROMPT], count=STEPS) for name in ("x.gguf", "apart.gguf")]
    whole_answer, apart_answer = ask(jobs)
    assert whole_answer.continuations == apart_answer.continuations == [greedy("torch", run, PROMPT, STEPS)]


class TestOfTheTest:
    """Each way to write a wrong file is seen by llama.cpp's answers."""

    @staticmethod
    def differs(folder: Path, family: str) -> bool:
        tokenizer = TOKENIZERS["bpe"]()
        run = write_run(folder / "run", tokenizer, model_of(family, tokenizer), SEEDS[family, "bpe"])
        done("export", run, "--to", "gguf", "-o", folder / "wrong.gguf")
        texts = texts_of(tokenizer)
        (answer,) = ask([Job(model=str(folder / "wrong.gguf"), texts=texts, prompts=[PROMPT])])
        wrong = answer.continuations != [greedy("torch", run, PROMPT, STEPS)]
        return wrong or answer.ids != [tokenizer.encode(text) for text in texts]

    def test_what_is_right_does_not_differ(self, tmp_path: Path) -> None:
        assert not self.differs(tmp_path, "llama")

    def test_rows_of_queries_and_keys_left_as_they_are(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("convert.formats.gguf.side_by_side", lambda K: list(range(K)))
        assert self.differs(tmp_path, "llama")

    def test_matrices_as_in_conv1d(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from convert.formats import gguf
        from convert.storage.tensors import transposed

        right = gguf._kept

        def conv1d(*arguments: object) -> object:
            kept, refused = right(*arguments)  # type: ignore[arg-type]
            for name, (tensor, kind) in kept.items():
                if name.endswith("out_proj.weight"):  # square: its shape does not tell
                    kept[name] = (transposed(tensor), kind)
            return kept, refused

        monkeypatch.setattr(gguf, "_kept", conv1d)
        assert self.differs(tmp_path, "gpt2")

    def test_no_base_of_the_wavelengths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fields = {key: value for key, value in architectures.LLAMA.fields.items() if key != "rope.freq_base"}
        monkeypatch.setitem(architectures.LLAMA.__dict__, "fields", fields)
        assert self.differs(tmp_path, "llama")

    def test_no_merges(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = vocabulary._pieces

        def without(*arguments: object) -> tuple[str, list[str]]:
            rule, _ = right(*arguments)  # type: ignore[arg-type]
            return rule, [f"{vocabulary.NEVER} {vocabulary.NEVER}"]

        monkeypatch.setattr(vocabulary, "_pieces", without)
        assert self.differs(tmp_path, "llama")

    def test_characters_of_several_bytes_without_merges(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = vocabulary._characters

        def without(*arguments: object) -> tuple[str, list[str]]:
            rule, _ = right(*arguments)  # type: ignore[arg-type]
            return rule, [f"{vocabulary.NEVER} {vocabulary.NEVER}"]

        monkeypatch.setattr(vocabulary, "_characters", without)
        monkeypatch.setitem(TOKENIZERS, "bpe", TOKENIZERS["characters"])
        assert self.differs(tmp_path, "llama")

    def test_no_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """llama.cpp takes token 11."""
        right = vocabulary.settings_of

        def without(*arguments: object) -> object:
            found, added = right(*arguments)  # type: ignore[arg-type]
            return {key: value for key, value in found.items() if "os_token_id" not in key}, added

        monkeypatch.setattr(vocabulary, "settings_of", without)
        tokenizer = CharTokenizer(CHARACTERS)
        run = write_run(tmp_path / "run", tokenizer, model_of("llama", tokenizer, n_embd=32))
        done("export", run, "--to", "gguf", "-o", tmp_path / "wrong.gguf")
        (answer,) = ask([Job(model=str(tmp_path / "wrong.gguf"), vocabulary=20)])
        assert 11 in answer.ends

    def test_a_margin_is_measured(self, tmp_path: Path) -> None:
        tokenizer = TOKENIZERS["bpe"]()
        run = write_run(tmp_path / "run", tokenizer, model_of("llama", tokenizer), 6)
        course = greedy("torch", run, PROMPT, STEPS)
        assert 0 < margin(run, course) < np.inf
        assert margin(run, [course[0], *[0] * (STEPS - 1)]) != margin(run, course)
