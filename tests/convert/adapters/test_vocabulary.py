"""An adapter whose run added tokens goes to peft with its tokenizer, and comes back as what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from convert.__main__ import main
from convert.formats.tokenizer_files import write_tokenizer
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, load_tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from tests.convert.adapters.judges import CASES, TOKENS, adapted, base_run
from tests.convert.adapters.test_exchange import saved_whole, tensors, twins
from tests.twins.adapting.test_adapters import apart

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TOKENIZERS = {
    "characters": CharTokenizer("".join(map(chr, range(48, 88)))),
    "with an end": CharTokenizer("".join(map(chr, range(48, 87))), end_of_text=True),
    "bpe": train_bpe_on(["to be or not to be " * 9], 270),
}


def peft_folder(tokenizer: Tokenizer, folder: Path, written: Tokenizer) -> None:
    """A base, and an adapter of peft's for it with two tokens more, beside the tokenizer `written`."""
    size = tokenizer.vocab_size
    base_run("gpt2", folder, tokenizer=tokenizer, vocab_size=size)
    adapted(next(case for case in CASES if case.name == "gpt2-lora"), folder / "hf", folder / "peft")
    table = np.random.default_rng(3).standard_normal((size + 2, 32), np.float32) * np.float32(0.1)
    saved_whole(folder / "peft", wte=table, lm_head=table.copy())
    write_tokenizer(written, folder / "peft", 16)


def resized_peft_logits(folder: Path, rows: int) -> npt.NDArray[np.float32]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    network.resize_token_embeddings(rows)
    with torch.no_grad():
        network = PeftModel.from_pretrained(network, str(folder / "again")).eval()
        return np.asarray(network(torch.from_numpy(TOKENS).long()).logits.numpy())


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_it_comes_back_with_its_tokens(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = with_tokens(tokenizer, (TURN, END))
    peft_folder(tokenizer, tmp_path, grown)
    main(["import", str(tmp_path / "peft"), "--base", str(tmp_path / "base"), "-o", str(tmp_path / "run")])
    checkpoint = find_checkpoint(tmp_path / "run", prefer="best")
    assert load_tokenizer(checkpoint).fingerprint == grown.fingerprint
    assert read_manifest(checkpoint).run_config.model.vocab_size == grown.vocab_size

    main(["export", str(tmp_path / "run"), "--to", "peft", "-o", str(tmp_path / "again")])
    assert f"model.resize_token_embeddings({grown.vocab_size})" in capsys.readouterr().out
    first, again = tensors(tmp_path / "peft"), tensors(tmp_path / "again")
    assert all(np.array_equal(first[name], again[name]) for name in first.keys() | again.keys())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes()
    expected = resized_peft_logits(tmp_path, grown.vocab_size)
    for twin, logits in twins(tmp_path / "run").items():
        assert apart(logits, expected) <= 2e-6, twin


def test_another_tokenizer_adds_nothing(tmp_path: Path) -> None:
    other = with_tokens(CharTokenizer("".join(map(chr, range(49, 89)))), (TURN, END))
    peft_folder(TOKENIZERS["characters"], tmp_path, other)
    with pytest.raises(UserError, match=r"has shape \[42, 32\]"):
        main(["import", str(tmp_path / "peft"), "--base", str(tmp_path / "base"), "-o", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
