"""Logits of llama.cpp beside ours, by llama-cpp-python, which is built from source (six minutes to half an hour).

pip install llama-cpp-python
python -m pytest tests/convert/gguf/test_logits.py -m slow -rP -p no:xdist
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.convert.conftest import done
from tests.convert.formats.continuation import TWINS, load_model, logits
from tests.convert.gguf.models import FAMILIES, TOKENIZERS, model_of, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None, reason="no llama_cpp: pip install llama-cpp-python"
    ),
]
LENGTH = 100
FLOAT32 = 2e-6
"""Relative to the largest logit, where llama.cpp computes in float32 throughout."""
ROUNDED = 3e-2
"""The same where it rounds what it multiplies: GELU from a table of float16, float16 weights, blocks."""


def of_llama_cpp(path: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """(T, V), with a cache in float32."""
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=128,
        n_batch=128,
        n_threads=1,
        n_gpu_layers=0,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
    )
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits(tmp_path: Path, family: str, dtype: str) -> None:
    tokenizer = TOKENIZERS["bpe"]()
    run = write_run(tmp_path / "run", tokenizer, model_of(family, tokenizer), 6, gain=1.0)
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--dtype", dtype)
    done("import", tmp_path / "x.gguf", "-o", tmp_path / "back")
    tokens = np.random.default_rng(1).integers(1, tokenizer.vocab_size, LENGTH)
    theirs = of_llama_cpp(tmp_path / "x.gguf", tokens.tolist())
    exact = dtype == "float32" and "gpt2" not in family
    for twin in TWINS:
        ours = logits(twin, load_model(twin, tmp_path / "back"), tokens[None])[0]
        apart_T = np.abs(ours - theirs).max(axis=1) / np.abs(ours).max()
        # Rounding sends a token to another expert now and then, and from there on it is another text.
        apart = float(np.median(apart_T) if "deepseek" in family and dtype != "float32" else apart_T.max())
        print(f"{family}, {dtype}, {twin}: {apart:.1e}")
        assert apart <= (FLOAT32 if exact else ROUNDED)
