"""An adapter that one twin trained writes the same text in the other framework's library as it does here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main
from gpt_common.data.tokenizers import Tokenizer, load_tokenizer
from tests.convert.adapters.judges import base_run, mlx_lm_text, peft_text
from tests.convert.formats.continuation import TWINS, greedy
from tests.twins import losses, tensors, train

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # as in test_exchange.py
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
STEPS, TOKENS, PROMPT = 8, 64, "One day "
THERE = {"mlx_gpt": ("peft", "hf", peft_text), "torch_gpt": ("mlx-lm", "mlx", mlx_lm_text)}
"""By the twin that trains: whose format, the base's folder, and who writes."""


@pytest.fixture(scope="module")
def tokenizer(stories_dir: Path) -> Tokenizer:
    return load_tokenizer(stories_dir / "stories")


@pytest.fixture(scope="module")
def bases(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for every family: base, a run of random weights; hf and mlx, the same elsewhere."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            size = {"vocab_size": tokenizer.vocab_size, "block_size": len(PROMPT) + TOKENS}
            base_run(family, made[family], deviation=0.3, tokenizer=tokenizer, **size)
        return made[family]

    return of


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("twin", THERE)
def test_it_writes_the_same_text_there(
    twin: str,
    family: str,
    kind: str,
    bases: Callable[[str], Path],
    tokenizer: Tokenizer,
    stories_dir: Path,
    tmp_path: Path,
) -> None:
    folder, run, prompt = bases(family), tmp_path / "run", tokenizer.encode(PROMPT)
    start: list[str | Path] = [
        "--init-from",
        folder / "base",
        "--data-dir",
        stories_dir,
        "--out",
        run,
        "--device",
        "cpu",
    ]
    start += ["--adapter", kind, "--adapter-rank", "4", "--max-steps", str(STEPS), "--batch-size", "4"]
    start += ["--learning-rate", "5e-3", "--warmup-steps", "0", "--log-interval", "1", "--eval-interval", "0"]
    train(twin, *start, "--eval-batches", "1", "--sample-tokens", "0", "--no-report", "--health-gates", "off")
    course = losses(run)
    assert course[STEPS] < course[1] - 0.1, "an adapter that learnt nothing tells nothing"
    assert all(np.any(value) for value in tensors(run, STEPS).values())

    to, base, write = THERE[twin]
    main(["export", str(run), "--latest", "--to", to, "-o", str(tmp_path / "there")])
    here = {name: greedy(name, run, prompt, TOKENS) for name in TWINS}
    there = write(folder / base, tmp_path / "there", prompt, TOKENS)
    assert here["mlx"] == here["torch"] == there
    assert len(there) == TOKENS
    assert len(set(there)) >= 8, tokenizer.decode(there)
    assert there != greedy("torch", folder / "base", prompt, TOKENS), "the base alone writes something else"
