"""A model of characters loads in transformers and mlx-lm whatever characters it lacks, and says unknown for unknown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_common.config import ModelConfig, RunConfig, to_toml
from gpt_common.data.tokenizers import CharTokenizer, load_tokenizer
from gpt_common.training.checkpoint import find_checkpoint
from tests.convert.conftest import done
from tests.convert.sources import Model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers|torch|mlx")]

VOCABULARIES = ["01", "xyz\n", "ACGT", "aé€😀", " ,ab", "<unk>|dox", "0123456789+=\n"]


def exported(tokenizer: CharTokenizer, to: str, place: Path) -> Path:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=16,
        n_layer=1,
        n_head=2,
        n_embd=8,
        bias=True,
        feed_forward="gelu_tanh",
    )
    torch.save(Model(config=config, dtype="F16", seed=1, moments=False, step=0).weights(), place / "w.pt")
    (place / "model.toml").write_text(to_toml(RunConfig(model=config)))
    tokenizer.save(place / "characters.json")
    flags = ("--config", place / "model.toml", "--tokenizer", place / "characters.json", "--dtype", "float32")
    done("import", place / "w.pt", "-o", place / "run", *flags)
    done("export", place / "run", "--to", to, "-o", place / to)
    return place / to


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def mlx_lm_tokenizer(folder: Path) -> Any:
    import mlx_lm

    return mlx_lm.load(str(folder))[1]


@pytest.mark.parametrize("end_of_text", [False, True])
@pytest.mark.parametrize("characters", VOCABULARIES)
@pytest.mark.parametrize(("to", "load"), [("transformers", transformers_tokenizer), ("mlx-lm", mlx_lm_tokenizer)])
def test_it_loads_and_unknown_is_unknown(
    to: str, load: Callable[[Path], Any], characters: str, end_of_text: bool, tmp_path: Path
) -> None:
    ours = CharTokenizer(characters, end_of_text=end_of_text)
    theirs = load(exported(ours, to, tmp_path))
    text = characters[::-1] + characters
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    first = characters[0]
    assert theirs.encode(f"{first}Ω{first}") == [0, theirs.unk_token_id, 0]
    assert theirs.unk_token_id == len(characters)
    assert theirs.unk_token == ("<|endoftext|>" if end_of_text else "<|unknown|>")
    assert theirs.eos_token == ("<|endoftext|>" if end_of_text else None)
    # And it comes back as it was.
    done("import", tmp_path / to, "-o", tmp_path / "again")
    assert load_tokenizer(find_checkpoint(tmp_path / "again", prefer="best")).fingerprint == ours.fingerprint


def test_mlx_lm_writes_text(tmp_path: Path) -> None:
    import mlx_lm

    tokenizer = CharTokenizer("01\n", end_of_text=True)
    model, theirs = mlx_lm.load(str(exported(tokenizer, "mlx-lm", tmp_path)))[:2]
    text = mlx_lm.generate(model, theirs, "01Ω10", max_tokens=8)
    assert set(text) <= {"0", "1", "\n"}
