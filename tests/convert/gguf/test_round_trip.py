"""Nothing changes on the way into a GGUF file and back; what is packed is packed as gguf-py does, block by block."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file

from convert.formats.gguf import BLOCKS
from convert.storage import gguf_file, tensors
from convert.storage.gguf_file import read_gguf
from convert.storage.gguf_header import KINDS
from convert.storage.tensors import load
from gpt_common.config import ModelConfig, RunConfig, to_dict
from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.training.checkpoint import find_checkpoint, read_manifest, write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, Manifest, tensor_hashes
from tests.convert.conftest import done
from tests.convert.gguf.models import FAMILIES, TOKENIZERS, model_of, weights_of, write_run
from tests.convert.sources import Model, deepseeks, folder, llamas, models, raw

EXAMPLES = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Array = np.ndarray[Any, Any]


def native(model: Model, place: Path) -> Path:
    """A run with the model's bits and no tokenizer."""

    def files(at: Path) -> dict[str, dict[str, str]]:
        save_file(model.weights(), at / MODEL_FILE)
        return {MODEL_FILE: tensor_hashes(at / MODEL_FILE)}

    manifest = Manifest(step=1, config=to_dict(RunConfig(model=model.config)))
    write_checkpoint(place / "run", manifest, write_files=files, best=True, keep=1)
    return place / "run"


def there_and_back(model: Model) -> None:
    """The same configuration, the same bits; what stays float32 in a file of half precision has the same values."""
    with folder() as place:
        run = native(model, place)
        done("export", run, "--to", "gguf", "-o", place / "x.gguf", "--tokenizer", "none")
        done("import", place / "x.gguf", "-o", place / "back")
        checkpoint = find_checkpoint(place / "back", prefer="latest")
        said = read_manifest(checkpoint).run_config.model
        # Dropout is training's, and says nothing to llama.cpp.
        assert said == dataclasses.replace(model.config, dropout=0.0, feed_forward_width=said.feed_forward_width)
        assert said.inner_width == model.config.inner_width
        found = load_file(checkpoint / MODEL_FILE)
        weights = model.weights()
        assert found.keys() == weights.keys()
        for name, tensor in weights.items():
            if found[name].dtype != tensor.dtype:
                assert (found[name].dtype, tensor.dim() == 1 or "position" in name or "router" in name) == (
                    torch.float32,
                    True,
                )
                assert torch.equal(found[name], tensor.float()), name
            else:
                assert raw(found[name]) == raw(tensor), name


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 elements, so that small tensors have many, the last one short."""
    monkeypatch.setattr(tensors, "BLOCK", 7)


@EXAMPLES
@given(model=llamas())
def test_any_llama(small_blocks: None, model: Model) -> None:  # noqa: ARG001
    there_and_back(model)


@EXAMPLES
@given(model=deepseeks(attention_bias=False, rope_layout="interleaved", norm_eps=1e-6))
def test_any_deepseek(small_blocks: None, model: Model) -> None:  # noqa: ARG001
    there_and_back(model)


@EXAMPLES
@given(model=models(feed_forward="gelu_tanh", head_bias=False))
def test_any_gpt2(small_blocks: None, model: Model) -> None:  # noqa: ARG001
    there_and_back(dataclasses.replace(model, moments=False))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_run_comes_back_with_its_tokenizer(tmp_path: Path, family: str) -> None:
    tokenizer = TOKENIZERS["bpe"]()
    run = write_run(tmp_path / "run", tokenizer, model_of(family, tokenizer))
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert "GGUF file" in done("inspect", tmp_path / "x.gguf")
    assert "tensors are equal" in done("diff", run, tmp_path / "x.gguf")
    done("import", tmp_path / "x.gguf", "-o", tmp_path / "back")
    done("diff", run, tmp_path / "back")
    assert load_tokenizer(tmp_path / "back").fingerprint == tokenizer.fingerprint


# ---- what lies in the file, by gguf-py and by hand -------------------------------------------------------------------


def side_by_side(rows: Array, heads: int) -> Array:
    """The order of llama.cpp's rows, by numpy."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def expected_llama(model: ModelConfig, weights: dict[str, Array]) -> dict[str, Array]:
    """Names, shapes and rows of llama.cpp's llama, spelled out."""
    found = {"token_embd.weight": weights["token_embedding.weight"], "output_norm.weight": weights["final_norm.weight"]}
    found["output.weight"] = weights["head.weight"]
    parts = {
        "attn_norm": "attention_norm", "attn_v": "attention.v_proj", "attn_output": "attention.out_proj",
        "ffn_norm": "feed_forward_norm", "ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj",
        "ffn_down": "feed_forward.down_proj",
    }  # fmt: skip
    for i in range(model.n_layer):
        found |= {f"blk.{i}.{theirs}.weight": weights[f"blocks.{i}.{ours}.weight"] for theirs, ours in parts.items()}
        for which, heads in (("q", model.n_head), ("k", model.n_kv_head)):
            rows = weights[f"blocks.{i}.attention.{which}_proj.weight"]
            found[f"blk.{i}.attn_{which}.weight"] = side_by_side(rows, heads)
    return found


def expected_gpt2(model: ModelConfig, weights: dict[str, Array]) -> dict[str, Array]:
    """Names of llama.cpp's gpt2: every matrix (out, in), unlike transformers'."""
    top = {"token_embd": "token_embedding", "position_embd": "position_embedding", "output_norm": "final_norm"}
    parts = {
        "attn_norm": "attention_norm", "attn_qkv": "attention.qkv_proj", "attn_output": "attention.out_proj",
        "ffn_norm": "feed_forward_norm", "ffn_up": "feed_forward.up_proj", "ffn_down": "feed_forward.down_proj",
    }  # fmt: skip
    names = top | {f"blk.{i}.{a}": f"blocks.{i}.{b}" for i in range(model.n_layer) for a, b in parts.items()}
    return {
        f"{theirs}.{kind}": weights[f"{ours}.{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in weights
    }


EXPECTED = {"llama": expected_llama, "gpt2": expected_gpt2}


def read_by_gguf_py(path: Path) -> dict[str, tuple[str, Array]]:
    """Kind and bytes of every tensor."""
    return {tensor.name: (tensor.tensor_type.name, np.array(tensor.data)) for tensor in GGUFReader(path).tensors}


def assert_as_expected(path: Path, expected: dict[str, Array], dtype: str) -> None:
    """Every tensor is what gguf-py makes of the expected numbers, to the bit, and we read it as gguf-py does."""
    found = read_by_gguf_py(path)
    _, ours = read_gguf(path)
    assert found.keys() == expected.keys() == ours.keys()
    wanted = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    for name, numbers in expected.items():
        kind, data = found[name]
        assert kind == ("F32" if numbers.ndim == 1 or name.startswith("position") else wanted), name
        number = GGMLQuantizationType[kind]
        packed = quants.quantize(numbers.astype(np.float32), number)
        assert np.array_equal(data.view(np.uint8).reshape(-1), packed.view(np.uint8).reshape(-1)), name
        numbers_back = load(ours[name])
        if ours[name].dtype == "BF16":
            numbers_back = (numbers_back.astype(np.uint32) << 16).view(np.float32)
        assert ours[name].shape == numbers.shape
        assert np.array_equal(numbers_back.astype(np.float32), quants.dequantize(packed, number)), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", *BLOCKS])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_tensor_is_where_and_what_it_should_be(
    tmp_path: Path, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK", 1 << 8)
    tokenizer = TOKENIZERS["bpe"]()
    model = model_of(family, tokenizer)
    run = write_run(tmp_path / "run", tokenizer, model)
    done("export", run, "--to", "gguf", "-o", tmp_path / "x.gguf", "--dtype", dtype)
    assert_as_expected(tmp_path / "x.gguf", EXPECTED[family](model, weights_of(model)), dtype)


def test_names_and_sizes_of_blocks_are_ggmls() -> None:
    for kind in KINDS.values():
        number = GGMLQuantizationType[kind.name]
        assert (number.value, *gguf.GGML_QUANT_SIZES[number]) == (kind.number, kind.elements, kind.nbytes)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.elements > 1])
def test_blocks_that_others_packed_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes are a block; those that make no number are refused later, by name."""
    monkeypatch.setattr(tensors, "BLOCK", 1 << 9)
    number, rows, width = GGMLQuantizationType[kind], 5, 768
    data = np.random.default_rng(3).integers(0, 256, (rows, KINDS[kind].size_of(width)), np.uint8)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, found = read_gguf(tmp_path / "x.gguf")
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data, number)
    assert found["x"].shape == (rows, width)
    assert np.array_equal(load(found["x"]), expected, equal_nan=True)


class TestOfTheTest:
    """What a wrong writer makes is not what is expected."""

    @staticmethod
    def export(place: Path, family: str, *flags: str) -> tuple[Path, dict[str, Array]]:
        tokenizer = TOKENIZERS["bpe"]()
        model = model_of(family, tokenizer)
        run = write_run(place / "run", tokenizer, model)
        done("export", run, "--to", "gguf", "-o", place / "x.gguf", *flags)
        return place / "x.gguf", EXPECTED[family](model, weights_of(model))

    def test_rows_left_as_they_are(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("convert.formats.gguf.side_by_side", lambda K: list(range(K)))
        path, expected = self.export(tmp_path, "llama")
        with pytest.raises(AssertionError, match=r"attn_[qk]"):
            assert_as_expected(path, expected, "float32")

    def test_blocks_along_the_other_axis(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = gguf_file.packed

        def along_columns(name: str, tensor: Any, kind: Any) -> Any:
            if not gguf_file.is_packed(kind) or tensor.shape[0] % kind.elements:
                return right(name, tensor, kind)
            columns = quants.quantize(np.ascontiguousarray(load(tensor).T), GGMLQuantizationType[kind.name])
            rows = quants.dequantize(columns, GGMLQuantizationType[kind.name]).T
            return right(name, tensors.from_array(np.ascontiguousarray(rows), "F32"), kind)

        monkeypatch.setattr(gguf_file, "packed", along_columns)
        path, expected = self.export(tmp_path, "llama", "--dtype", "q8_0")
        with pytest.raises(AssertionError, match="weight"):
            assert_as_expected(path, expected, "q8_0")

    def test_matrices_as_in_conv1d(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = gguf_file.packed

        def transposed(name: str, tensor: Any, kind: Any) -> Any:
            square = name.endswith("attn_output.weight")
            return right(name, tensors.transposed(tensor) if square else tensor, kind)

        monkeypatch.setattr(gguf_file, "packed", transposed)
        path, expected = self.export(tmp_path, "gpt2")
        with pytest.raises(AssertionError, match="attn_output"):
            assert_as_expected(path, expected, "float32")
