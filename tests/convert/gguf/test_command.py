"""`export --to gguf` and `import x.gguf`: what is written, what is said, what is refused by name; and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from convert.storage import gguf_file
from gpt_common.data.conversations.templates import SETTINGS, settings_of, template_beside
from gpt_common.data.conversations.written import CHATML, END, TURN, Template
from gpt_common.data.tokenizers import BpeTokenizer, CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.training.checkpoint import find_checkpoint
from tests.convert.conftest import done, refused
from tests.convert.gguf.models import FAMILIES, TOKENIZERS, model_of, write_run

BPE = TOKENIZERS["bpe"]


def run_of(folder: Path, family: str = "llama", tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    """A run in `folder`."""
    tokenizer = tokenizer or BPE()
    return write_run(folder / "run", tokenizer, model_of(family, tokenizer, **changes))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def setting(file: Path, key: str) -> Any:
    """What gguf-py reads under a key; None if it is not there."""
    found = GGUFReader(file).get_field(key)
    return None if found is None else found.contents()


def test_a_file_and_its_modelfile(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    said = done("export", run, "--to", "gguf", "-o", tmp_path / "out" / "small.gguf")
    assert "small.gguf: GGUF file from native checkpoint" in said
    assert names(tmp_path / "out") == {"small.gguf", "Modelfile"}
    assert (tmp_path / "out" / "Modelfile").read_text().splitlines()[1:] == [
        "FROM ./small.gguf",
        "PARAMETER num_ctx 128",
        "PARAMETER repeat_penalty 1",
        'PARAMETER stop "<|endoftext|>"',
        'TEMPLATE "{{ .Prompt }}"',
    ]
    assert setting(tmp_path / "out" / "small.gguf", "general.name") == "small"


def test_a_folder_where_no_file_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    done("export", run, "--to", "gguf")
    folder = tmp_path / "run-gguf"
    assert names(folder) == {"model.gguf", "Modelfile"}
    assert "FROM ./model.gguf\n" in (folder / "Modelfile").read_text()
    done("diff", run, folder)
    done("export", run, "--to", "gguf", "--overwrite", "--dtype", "q8_0")
    assert names(folder) == {"model.gguf", "Modelfile"}
    (folder / "letter.txt").write_text("dear")
    assert "letter.txt" in refused("export", run, "--to", "gguf", "--overwrite")


def test_conversations_have_their_template(tmp_path: Path) -> None:
    tokenizer = with_tokens(BPE(), (TURN, END))
    run = run_of(tmp_path, tokenizer=tokenizer)
    done("export", run, "--to", "gguf", "-o", tmp_path / "out" / "chat.gguf")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.endswith(
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
        '{{ end }}<|im_start|>assistant\n"""\n'
    )
    file = tmp_path / "out" / "chat.gguf"
    assert setting(file, "tokenizer.chat_template") == CHATML
    ends = [setting(file, f"tokenizer.ggml.{which}_token_id") for which in ("eos", "eot", "bos")]
    assert ends == [tokenizer.specials[END], tokenizer.specials[END], tokenizer.end_of_text]
    done("import", file, "-o", tmp_path / "back")
    assert names(tmp_path / "back") == {"config.toml", "checkpoints"}


TALK = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nDear.<|im_end|>\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TALK + "{# another #}", ['"""']),
        (NO_SYSTEM + TALK, ['"""', 'SYSTEM """Dear."""']),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", ["# No TEMPLATE"]),
        ("{{ raise_exception('no') }}", ["# No TEMPLATE"]),
    ],
)
def test_a_template_from_elsewhere_goes_along(tmp_path: Path, source: str, said: list[str]) -> None:
    tokenizer = with_tokens(BPE(), (TURN, END))
    run = run_of(tmp_path, tokenizer=tokenizer)
    template = Template(source, "elsewhere", begin="<|im_start|>", end="<|im_end|>")
    (run / SETTINGS).write_text(settings_of(template))
    done("export", run, "--to", "gguf", "-o", tmp_path / "out" / "chat.gguf")
    file = tmp_path / "out" / "chat.gguf"
    assert setting(file, "tokenizer.chat_template") == source
    assert setting(file, "tokenizer.ggml.bos_token_id") == tokenizer.specials[TURN]
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()[-len(said) :]
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines
    assert ("TEMPLATE" in (tmp_path / "out" / "Modelfile").read_text().partition("# No")[0]) == (said[0] == '"""')
    # And back, to where conversations are prepared.
    done("import", file, "-o", tmp_path / "back")
    done("export", tmp_path / "back", "--to", "transformers", "-o", tmp_path / "folder")
    for folder in ("back", "folder"):
        found = template_beside(None, str(tmp_path / folder))
        assert (found.source, found.begin, found.end) == (source, "<|im_start|>", "<|im_end|>")


def test_a_modelfile_of_another_stays(tmp_path: Path) -> None:
    run, out = run_of(tmp_path), tmp_path / "out"
    done("export", run, "--to", "gguf", "-o", out / "one.gguf")
    one = (out / "Modelfile").read_text()
    said = done("export", run, "--to", "gguf", "-o", out / "two.gguf", "--dtype", "q8_0")
    assert "two.Modelfile" in said
    assert (out / "Modelfile").read_text() == one
    assert "FROM ./two.gguf\n" in (out / "two.Modelfile").read_text()
    assert "-f two.Modelfile" in (out / "two.Modelfile").read_text()
    # Its own is written anew where that was asked for, and only there.
    (out / "Modelfile").write_text(one + "SYSTEM dear\n")
    (out / "one.gguf").unlink()
    done("export", run, "--to", "gguf", "-o", out / "one.gguf")
    assert "SYSTEM dear" in (out / "Modelfile").read_text()
    (out / "one.Modelfile").unlink()
    done("export", run, "--to", "gguf", "-o", out / "one.gguf", "--overwrite")
    assert (out / "Modelfile").read_text() == one


def test_rows_that_are_no_multiple_of_32_are_float16(tmp_path: Path) -> None:
    run = run_of(tmp_path, n_embd=48, n_head=2, feed_forward_width=64)
    said = done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--dtype", "q4_0")
    assert "note: 14 tensors in float16: their rows are no multiple of 32, as q4_0 needs" in said
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_norm.weight"] == "F32"


def test_what_was_packed_is_said_when_it_is_read(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--dtype", "q4_1")
    assert "numbers in q4_1: read as float32" in done("inspect", tmp_path / "x.gguf")
    done("import", tmp_path / "x.gguf", "-o", tmp_path / "back")
    assert "tensors are equal" in done("diff", tmp_path / "x.gguf", tmp_path / "back")


def test_a_number_that_float32_does_not_hold_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, rope_theta=123456789.0)
    said = done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert "note: llama.rope.freq_base 123456789.0 is 123456790.0 there" in said
    assert "note: llama" not in done("export", run_of(tmp_path / "b"), "--to", "gguf", "-o", tmp_path / "y.gguf")


def test_a_folder_of_transformers_with_a_gguf_in_it_is_that_folder(tmp_path: Path) -> None:
    run, folder = run_of(tmp_path), tmp_path / "folder"
    done("export", run, "--to", "transformers", "-o", folder)
    done("export", run, "--to", "gguf", "-o", folder / "model.gguf", "--dtype", "q4_0")
    assert "transformers Llama folder" in done("inspect", folder)


def test_an_older_gelu_is_asked_about(tmp_path: Path) -> None:
    run = run_of(tmp_path, "gpt2", feed_forward="gelu")
    assert "llama.cpp computes gelu_tanh" in refused("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--other-gelu")


_LATENT_PER_HEAD = {
    "attention": "latent_per_head", "positions": "rope", "q_latent": 8, "kv_latent": 8, "nope_size": 4, "rope_size": 4,
    "value_size": 8,
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another activation": ("gpt2", {"feed_forward": "relu2"}, "feed_forward is relu2"),
    "no final norm": ("llama", {"final_norm": False}, "final_norm is False"),
    "both kinds of positions": ("llama", {"positions": "both"}, "positions is both"),
    "latents per head": ("gpt2", _LATENT_PER_HEAD, "attention is latent_per_head"),
    "pairs in a Llama": ("llama", {"rope_layout": "interleaved"}, "rope_layout is interleaved"),
    "halves in a DeepSeek": ("deepseek", {"rope_layout": "halves"}, "rope_layout is halves"),
    "biases in a DeepSeek": ("deepseek", {"attention_bias": True}, "attention_bias is True"),
    "another epsilon than of its latents": ("deepseek", {"norm_eps": 1e-5}, "norm_eps is 1e-05"),
    "no shared expert": ("deepseek", {"n_shared_expert": 0}, "n_shared_expert is 0"),
    "as many layers as V2 Lite": ("deepseek", {"n_layer": 27}, "n_layer is 27"),
    "normed queries and biases": ("qwen3", {"bias": True}, "bias is True"),
    "normed queries in a GPT-2": ("gpt2", {"qk_norm": True}, "qk_norm is True"),
    "a bias of the output": ("gpt2", {"tied_head": False, "head_bias": True}, "head_bias is True"),
    "layer norms in a Llama": ("llama", {"norm": "layernorm"}, "norm is layernorm"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_llama_cpp_cannot_be_is_refused_by_name(tmp_path: Path, name: str) -> None:
    family, changes, said = REFUSED[name]
    run = run_of(tmp_path, family, **changes)
    message = refused("export", run, "--to", "gguf", "-o", tmp_path / "out" / "x.gguf")
    assert said in message
    assert "llama.cpp" in message
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


@pytest.mark.parametrize("what", ["rule", "normalizer"])
def test_a_tokenizer_of_another_rule_is_refused(tmp_path: Path, what: str) -> None:
    definition = BPE()._document["tokenizer"]
    if what == "rule":
        split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
        bytes_alone = {**definition["pre_tokenizer"], "use_regex": False}
        definition = {**definition, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_alone]}}
    else:
        definition = {**definition, "normalizer": {"type": "NFC"}}
    run = run_of(tmp_path, tokenizer=BpeTokenizer(definition))
    message = refused("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert "splits text by a rule that is not one of gpt-2, smollm" in message
    assert names(tmp_path) == {"run"}
    # Without it the weights go out all the same.
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--tokenizer", "none")
    assert setting(tmp_path / "x.gguf", "tokenizer.ggml.model") == "none"


def test_blocks_are_for_gguf_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    message = refused("export", run, "--to", "transformers", "-o", tmp_path / "x", "--dtype", "q8_0")
    assert "--dtype q8_0 is for --to gguf" in message
    assert "q8_0" not in done("import", "--help")
    assert names(tmp_path) == {"run"}


def test_without_gguf_py_floats_go_and_blocks_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    done("export", run, "--to", "gguf", "-o", tmp_path / "q8.gguf", "--dtype", "q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    done("export", run, "--to", "gguf", "-o", tmp_path / "f16" / "x.gguf", "--dtype", "float16")
    done("import", tmp_path / "f16" / "x.gguf", "-o", tmp_path / "back")
    assert "'.[deploy]'" in refused("export", run, "--to", "gguf", "-o", tmp_path / "out" / "x.gguf", "--dtype", "q8_0")
    assert "'.[deploy]'" in refused("import", tmp_path / "q8.gguf", "-o", tmp_path / "out" / "run")
    assert not names(tmp_path / "out")


def test_numbers_too_large_for_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    monkeypatch.setattr(gguf_file, "LARGEST_IN_BLOCKS", 0.5)
    message = refused("export", run, "--to", "gguf", "-o", tmp_path / "out" / "x.gguf", "--dtype", "q4_0")
    assert "tensor token_embd.weight has numbers too large for q4_0" in message
    assert not names(tmp_path / "out")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = run_of(tmp_path), tmp_path / "out"
    right = gguf_file.packed

    def broken(name: str, tensor: Any, kind: Any) -> Any:
        if name == "output_norm.weight":
            raise OSError(28, "No space left on device")
        return right(name, tensor, kind)

    monkeypatch.setattr(gguf_file, "packed", broken)
    assert "no space left" in refused("export", run, "--to", "gguf", "-o", out / "x.gguf")
    assert not names(out)


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    weights = find_checkpoint(run, prefer="best") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "has changed since it was saved" in refused("export", run, "--to", "gguf", "-o", tmp_path / "out" / "x.gguf")
    assert not names(tmp_path / "out")


# ---- tokenizers there and back ---------------------------------------------------------------------------------------


def digits_apart() -> BpeTokenizer:
    """SmolLM's kind: digits one by one, special tokens in front, one that is a text of its own."""
    definition = train_bpe_on(["one 1 and two 22 and 333 make 356 in all"] * 9, 300)._document["tokenizer"]
    splitter = [{"type": "Digits", "individual_digits": True}, definition["pre_tokenizer"]]
    return BpeTokenizer({**definition, "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitter}})


KINDS: dict[str, Any] = {
    **TOKENIZERS,
    "characters without an end": lambda: CharTokenizer("\n abcé漢😀"),
    "digits apart": digits_apart,
    "conversations, characters": lambda: with_tokens(CharTokenizer("ab\n"), (TURN, END)),
    "conversations, characters with an end": lambda: with_tokens(TOKENIZERS["characters"](), (TURN, END)),
    "conversations, bpe": lambda: with_tokens(BPE(), (TURN, END)),
    "conversations, gpt2": lambda: with_tokens(TOKENIZERS["gpt2"](), (TURN, END, "<|tool|>")),
}


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_tokenizer_comes_back_as_the_same(
    tmp_path: Path,
    kind: str,
    spare: int,
    gpt2_vocabulary: None,  # noqa: ARG001 (provides it)
) -> None:
    from gpt_common.data.tokenizers import load_tokenizer

    tokenizer = KINDS[kind]()
    run = run_of(tmp_path, tokenizer=tokenizer, n_embd=8, vocab_size=tokenizer.vocab_size + spare)
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    done("import", tmp_path / "x.gguf", "-o", tmp_path / "back")
    done("diff", run, tmp_path / "back")
    back = load_tokenizer(tmp_path / "back")
    assert (back.fingerprint, back.specials) == (tokenizer.fingerprint, tokenizer.specials)


def test_what_others_say_of_a_tokenizer_is_read(tmp_path: Path) -> None:
    """No types, and an end by its id alone, as older files have it; a token that stands for itself."""
    from convert.formats.gguf import vocabulary

    tokenizer = digits_apart()
    settings, added = vocabulary.settings_of(tokenizer, tokenizer.vocab_size, None)
    assert (settings["tokenizer.ggml.pre"], added) == ("smollm", False)
    del settings["tokenizer.ggml.token_type"]
    back, notes = vocabulary.read(tmp_path, settings)
    assert back is not None
    assert (back.end_of_text, notes) == (tokenizer.end_of_text, ())
    text = "one 22 and 356!"
    assert back.encode(text) == tokenizer.encode(text)
    types = np.array([3] + [1] * (tokenizer.vocab_size - 1), np.int32)
    types[40] = 4
    own, _ = vocabulary.read(tmp_path, settings | {"tokenizer.ggml.token_type": types})
    assert own is not None
    assert list(own.specials.values()) == [0]


def test_every_family_has_a_test() -> None:
    assert {family for family, _, _ in REFUSED.values()} <= set(FAMILIES)
