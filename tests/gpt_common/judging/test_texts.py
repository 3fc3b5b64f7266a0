"""The loss of a whole text: what one pass and a count by hand give, in units that do not depend on the tokenizer."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from convert.parity.mutants.planted import Edit, planted
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, prefix_token, train_bpe_on
from gpt_common.errors import UserError
from gpt_common.judging import texts
from gpt_common.judging.comparison import mean, ratio
from gpt_common.judging.texts import Kept, Loss, loss_of, read_texts
from gpt_common.training.source import open_source
from tests.gpt_common.judging.made_up import Remembering
from tests.twins import TWINS, fails, tiny, train
from torch_gpt.notebook import load
from torch_gpt.probe import TrainingProbe

LETTERS = "\n abcdeé京"


def some_text(count: int, seed: int = 0) -> str:
    return "".join(LETTERS[i] for i in np.random.default_rng(seed).integers(0, len(LETTERS), count))


def losses(
    tmp_path: Path,
    text: str,
    tokenizer: Tokenizer,
    model: Remembering,
    *,
    stride: int = 8,
    separator: str | None = None,
    kept: Kept | None = None,
) -> Loss:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    sources = read_texts([path], tokenizer, separator)
    (found,) = loss_of(model, sources, tokenizer, separator=separator, stride=stride, kept=kept or Kept(None, ""))
    return found


def by_hand(model: Remembering, documents: Sequence[Sequence[int]], before: int, stride: int) -> float:
    """Nats, one pass for each token, with what its window lets it see: float64."""
    nats = []
    for ids in documents:
        whole, block = [before, *ids], model.block_size
        for i in range(len(ids)):
            # The window that predicts token i ends at the first multiple of the stride behind the first block.
            end = block if i < block else min(len(ids), block + stride * math.ceil((i + 1 - block) / stride))
            seen = whole[max(0, min(end, len(ids)) - block) : i + 1]
            nats.append(-model.exact(seen)[-1, ids[i]])
    return math.fsum(nats)


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_nats_are_those_of_a_count_by_hand(tmp_path: Path, stride: int) -> None:
    tokenizer, text = CharTokenizer(LETTERS), some_text(100)
    model = Remembering(tokenizer.vocab_size, 16)
    found = losses(tmp_path, text, tokenizer, model, stride=stride)
    expected = by_hand(model, [tokenizer.encode(text)], prefix_token(tokenizer), stride)
    assert math.isclose(found.nats, expected, rel_tol=1e-7)
    assert found.tokens == 100
    assert found.bytes == len(text.encode())
    assert math.isclose(found.bits_per_byte, expected / math.log(2) / len(text.encode()), rel_tol=1e-7)
    assert math.isclose(found.bits_per_character, expected / math.log(2) / len(text), rel_tol=1e-7)
    assert math.isclose(found.perplexity, math.exp(expected / 100), rel_tol=1e-7)


def test_documents_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(LETTERS)
    model, parts = Remembering(tokenizer.vocab_size, 16), [some_text(30, 1), some_text(7, 2), some_text(40, 3)]
    found = losses(tmp_path, "<|endoftext|>".join(parts), tokenizer, model, separator="<|endoftext|>")
    assert found.documents == 3
    assert found.bytes == sum(len(part.encode()) for part in parts), "a separator is no text"
    expected = by_hand(model, [tokenizer.encode(part) for part in parts], prefix_token(tokenizer), 8)
    assert math.isclose(found.nats, expected, rel_tol=1e-7)


def test_bytes_are_the_text_s_whatever_the_tokenizer(tmp_path: Path) -> None:
    text = some_text(4000) + "naïve 東京 – ¿qué?\n" * 9
    characters = CharTokenizer("".join(sorted(set(text))))
    pairs = train_bpe_on([text], 300)
    assert len(pairs.encode(text)) < len(text)
    one, other = (losses(tmp_path, text, each, Remembering(each.vocab_size, 64)) for each in (characters, pairs))
    assert one.bytes == other.bytes == len(text.encode())
    assert one.characters == other.characters == len(text)
    assert one.tokens != other.tokens
    assert sum(size for size, _ in one.pieces.values()) == sum(size for size, _ in other.pieces.values()) == one.bytes
    assert one.pieces.keys() == other.pieces.keys(), "piece by piece, two models compare"


def test_the_last_token_of_a_vocabulary_without_an_end_stands_before(tmp_path: Path) -> None:
    assert prefix_token(CharTokenizer(LETTERS)) == 0, "a line end"
    assert prefix_token(CharTokenizer("abc")) == 0, "its first letter"
    assert prefix_token(CharTokenizer("abc", end_of_text=True)) == 3
    assert losses(tmp_path, "abc", CharTokenizer("abc"), Remembering(3, 8)).tokens == 3, "the first one counts"


def test_letters_outside_the_vocabulary_are_told_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 characters of the text.*'ß' for one \(2 times, first in line 2"):
        losses(tmp_path, "abc\nßß ü", CharTokenizer(LETTERS), Remembering(9, 8))


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "STRETCH", 50)
    tokenizer, text = CharTokenizer(LETTERS), some_text(500)
    whole = losses(tmp_path, text, tokenizer, Remembering(tokenizer.vocab_size, 16))
    path = tmp_path / "kept" / "some.part"

    class Stops(Remembering):
        """Ctrl-C in the fifth batch."""

        def scores(self, tokens, labels, shared=(), *, likeliest=True):  # type: ignore[no-untyped-def]
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().scores(tokens, labels, shared, likeliest=likeliest)

    with pytest.raises(KeyboardInterrupt):
        losses(tmp_path, text, tokenizer, Stops(tokenizer.vocab_size, 16), kept=Kept(path, "this"))
    assert path.exists()
    path.write_text(path.read_text() + "[[0, 0, 1.", encoding="utf-8")  # killed while it wrote
    other = Kept(tmp_path / "kept" / "other.part", "that")
    assert not other.stretches, "of something else"
    again, kept = Remembering(tokenizer.vocab_size, 16), Kept(path, "this")
    assert len(kept.stretches) == 4
    found = losses(tmp_path, text, tokenizer, again, kept=kept)
    assert found.nats == whole.nats, "to the bit"
    assert len(again.asked) < 10
    assert not path.exists(), "done"
    path.write_text(json.dumps("that") + "\n[0, []]\n", encoding="utf-8")
    assert not Kept(path, "this").stretches, "another text's"


def test_two_at_once_keep_the_same_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "STRETCH", 50)
    tokenizer, text = CharTokenizer(LETTERS), some_text(500)
    model = Remembering(tokenizer.vocab_size, 16)
    whole = losses(tmp_path, text, tokenizer, model)
    path = tmp_path / "kept" / "some.part"
    one, other = Kept(path, "this"), Kept(path, "this")

    class Both(Kept):
        """Two processes, of which each adds what it has done; both are killed at the end."""

        def __init__(self) -> None:
            super().__init__(None, "")

        def add(self, number: int, stretch: list[texts.Sum]) -> None:
            super().add(number, stretch)
            if number < 4:
                one.add(number, stretch)
                other.add(number, stretch)

    losses(tmp_path, text, tokenizer, model, kept=Both())
    assert len(path.read_text().splitlines()) == 9
    again = Kept(path, "this")
    assert list(again.stretches) == [0, 1, 2, 3]
    assert losses(tmp_path, text, tokenizer, model, kept=again).nats == whole.nats


def test_a_full_disk_loses_nothing_that_was_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "STRETCH", 50)
    tokenizer, text = CharTokenizer(LETTERS), some_text(500)
    model = Remembering(tokenizer.vocab_size, 16)
    kept = Kept(tmp_path / "some.part", "this")
    kept.path = Path("/dev/full") if Path("/dev/full").exists() else tmp_path  # neither can be added to
    assert losses(tmp_path, text, tokenizer, model, kept=kept).nats == losses(tmp_path, text, tokenizer, model).nats
    assert capsys.readouterr().err.count("nothing can be kept") == 1


SCORING, TEXTS = "gpt_common/judging/scoring.py", "gpt_common/judging/texts.py"
WINDOWS = "parts_of(document.ids, before"
FAULTS = {
    "overlap counted twice": Edit(
        SCORING, "parts_of", "        done += more", "        done += min(more, stride // 2 or 1)"
    ),
    "first token skipped": Edit(TEXTS, "loss_of", WINDOWS, "parts_of(document.ids[1:], document.ids[:1]"),
    "another prefix": Edit(TEXTS, "loss_of", WINDOWS, "parts_of(document.ids, [5]"),
    "mean for sum": Edit(TEXTS, "_by_piece", "math.fsum(nats))", "math.fsum(nats) / len(nats))"),
    "characters for bytes": Edit(TEXTS, "documents_of", "size + len(text.encode())", "size + len(text)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(tmp_path: Path, fault: str) -> None:
    with planted(FAULTS[fault]), pytest.raises(AssertionError):
        test_nats_are_those_of_a_count_by_hand(tmp_path, 5)


def test_errors_are_those_of_a_mean_and_of_a_ratio() -> None:
    values = np.random.default_rng(0).normal(2, 3, 400)
    found = mean(values)
    assert math.isclose(found.value, values.mean())
    assert math.isclose(found.error, values.std(ddof=1) / 20)
    assert found.is_clear
    assert not mean(values - values.mean()).is_clear
    assert math.isnan(mean(values[:9]).error), "too few"
    # Of pieces that all cost the same per byte the ratio is certain, whatever their sizes.
    sizes = np.arange(1.0, 30.0)
    assert ratio(2 * sizes, sizes).error < 1e-12
    # 94.2 % of 6000 for 60 pieces: 1.96 is the normal's, a few pieces have thicker tails.
    assert 0.925 < np.mean([_holds(seed) for seed in range(2000)]) < 0.96


def _holds(seed: int) -> bool:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(50, 200, 60)
    low, high = ratio([rng.normal(1.5 * size, np.sqrt(size)) for size in sizes], sizes).interval
    return bool(low <= 1.5 <= high)


@pytest.mark.parametrize("twin", TWINS)
def test_the_command_is_one_long_pass_where_that_is_possible(
    twin: str, tmp_path: Path, stories_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train("torch_gpt", *tiny(stories_dir, "--out", str(run), "--max-steps", "3"))
    evaluate = importlib.import_module(f"{twin}.evaluate").main
    source = open_source(run, latest=False)
    short = "Once upon a time there was a frog."[: source.model.block_size]
    (tmp_path / "short.txt").write_text(short, encoding="utf-8")
    capsys.readouterr()
    evaluate([str(run), "--text", str(tmp_path / "short.txt"), "--json", str(tmp_path / "figures.json")])
    said = capsys.readouterr().out
    assert "predicted behind '\\n'" in said
    assert max(map(len, said.splitlines()[1:])) <= 80
    (figures,) = json.loads((tmp_path / "figures.json").read_text()).values()
    found = figures["text"]["total"]
    assert json.loads((run / "evaluation" / "text.json").read_text())["total"] == found
    ids = source.tokenizer.encode("\n" + short)
    logits = TrainingProbe(load(run)).logits(np.array([ids[:-1]], np.int32))
    exact = logits[0].astype(np.float64)
    nats = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(len(ids) - 1), ids[1:]]
    assert math.isclose(found["loss"], nats.mean(), abs_tol=1e-5)
    assert "more than the model's block" in fails(
        capsys, twin, run, "--text", tmp_path / "short.txt", "--stride", "10000", program="evaluate"
    )
    for words, why in (
        (["--text"], "names no file"),
        (["--limit", "3"], "--limit is for --tasks"),
        (["--stride", "3"], "--stride is for --text"),
        (["--text", tmp_path / "short.txt", "--separator", ""], "--separator is empty"),
        (["--text", tmp_path / "short.txt", "--json", tmp_path], "is a folder"),
        (["--text", tmp_path / "short.txt", "--json", tmp_path / "no" / "such"], "does not exist"),
    ):
        assert why in fails(capsys, twin, run, *words, program="evaluate")
    evaluate([str(run), "--text", str(tmp_path / "short.txt"), "--against", str(run)])
    assert "+0.0000 (too short for an error)" in capsys.readouterr().out
