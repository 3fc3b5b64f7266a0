"""What `inspect` and `diff` say of any two formats."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from convert.inspection import Inspect, inspect
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from tests.convert.conftest import done, refused, run_convert
from tests.convert.hostile.corpus_families import deepseek, deepseek_tensors
from tests.convert.sources import MODEL


class TestInspect:
    def test_says_what_it_is(self, checkpoint: Path) -> None:
        said = done("inspect", checkpoint)
        first, *_ = said.splitlines()
        count = sum(tensor.numel() for tensor in MODEL.weights().values())
        assert first.startswith(
            f"{checkpoint}: nanoGPT checkpoint, {count:,} parameters in {len(MODEL.shapes)} tensors"
        )
        assert "n_head 2" in said
        assert f"step {MODEL.step}, AdamW state of {len(MODEL.shapes)} tensors, best validation loss 1.5000" in said
        assert "blocks.1.attention.qkv_proj.weight" in said
        assert "transformer.h.1.attn.c_attn.weight" in said

    def test_hashes_are_the_manifest_s(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        manifest = read_manifest(find_checkpoint(tmp_path / "run", prefer="best"))
        for source in (checkpoint, tmp_path / "run"):
            said = done("inspect", source, "--hashes")
            for file in manifest.tensors.values():
                assert all(digest in said for digest in file.values())

    def test_hashes_verify(self, checkpoint: Path) -> None:
        spoilt = bytearray(checkpoint.read_bytes())
        spoilt[len(spoilt) // 2] ^= 1
        checkpoint.write_bytes(spoilt)
        assert "checksum" in refused("inspect", checkpoint, "--hashes")

    def test_hashes_tell_what_is_no_number(self, tmp_path: Path) -> None:
        weights = MODEL.weights()
        name = next(iter(weights))
        torch.save(weights, tmp_path / "sound.pth")
        weights[name][0, 0] = float("nan")
        torch.save(weights, tmp_path / "spoilt.pth")
        assert "NaN" not in done("inspect", tmp_path / "sound.pth", "--hashes")
        (line,) = [line for line in done("inspect", tmp_path / "spoilt.pth", "--hashes").splitlines() if "NaN" in line]
        assert line.endswith("NaN or infinity")

    def test_what_is_not_understood(self, tmp_path: Path) -> None:
        torch.save({**MODEL.weights(), "adapter.weight": torch.ones(2, 3)}, tmp_path / "weights.pth")
        said = done("inspect", tmp_path / "weights.pth")
        assert "problem: unexpected tensor adapter.weight: it does not belong to a GPT-2 model" in said
        assert "n_head ?" in said

    def test_settings_that_tell_something(self, tmp_path: Path) -> None:
        said = done("inspect", deepseek()(tmp_path))
        lines = said.splitlines()
        # All but four of six experts of three matrices, 3 x 8 numbers each.
        count = sum(t.numel() for name, t in deepseek_tensors().items() if not name.endswith("correction_bias"))
        assert f" {count:,} parameters ({count - 4 * 3 * 24:,} active) in 32 tensors" in lines[0]
        settings = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("step "))]
        assert all(len(line) <= 80 for line in settings)
        spoken = " ".join(line.strip() for line in settings)
        assert spoken.startswith("model: vocab_size 65, block_size 16, n_layer 2, n_head 4, n_embd 8, norm rmsnorm")
        assert "n_expert_group 3, groups_per_token 2, router sigmoid, router_scale 2.5" in spoken
        for silent in ("head_size", "qk_norm", "router_normalise", "dropout"):
            assert silent not in spoken
        assert said.index("token_embedding") < said.index("blocks.1.attention.q_up") < said.index("\nhead.weight")

    def test_a_narrow_terminal_gets_two_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        source, terminal = deepseek()(tmp_path), Terminal()
        monkeypatch.setenv("COLUMNS", "80")
        with redirect_stdout(terminal):
            inspect(Inspect(src=source))
        lines = terminal.getvalue().splitlines()
        table = lines[lines.index("") :]
        assert all(len(line) <= 80 for line in table)
        place = next(
            i for i, line in enumerate(table) if line.startswith("blocks.1.feed_forward.experts.up_proj.weight")
        )
        assert table[place].endswith("6x3x8")
        assert table[place + 1].strip() == "model.layers.1.mlp.experts.*.up_proj.weight"

    def test_our_own_names_are_said_once(self, tmp_path: Path) -> None:
        done("torch2mlx", deepseek()(tmp_path), "-o", tmp_path / "run")
        assert done("inspect", tmp_path / "run").count("blocks.1.attention.q_up_proj.weight") == 1


class TestDiff:
    def test_equal(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        said = done("diff", checkpoint, tmp_path / "run")
        assert said.splitlines()[-1] == f"{3 * len(MODEL.shapes)} of {3 * len(MODEL.shapes)} tensors are equal"

    def test_worst_first_and_tolerance(self, checkpoint: Path, tmp_path: Path) -> None:
        entries = torch.load(checkpoint, weights_only=True)
        weights = entries["model"]
        weights["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"] * 1.001
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"] * 1.1
        torch.save(entries, tmp_path / "other.pt")
        outcome = run_convert("diff", checkpoint, tmp_path / "other.pt")
        assert outcome.code == 1
        lines = outcome.stdout.splitlines()
        assert [line.split()[0] for line in lines[:2]] == ["position_embedding.weight", "final_norm.weight"]
        assert "relative L2 1.000e-01" in lines[0]
        assert "relative L2 1.000e-03" in lines[1]
        assert "2 tensors beyond tolerance 0" in outcome.stderr
        assert run_convert("diff", checkpoint, tmp_path / "other.pt", "--tolerance", "0.01").code == 1
        assert run_convert("diff", checkpoint, tmp_path / "other.pt", "--tolerance", "0.11").code == 0

    def test_missing_and_misshapen_come_first(self, checkpoint: Path, tmp_path: Path) -> None:
        weights = torch.load(checkpoint, weights_only=True)["model"]
        torch.save(weights, tmp_path / "a.pth")
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:4]
        weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] * 2
        del weights["transformer.h.0.ln_1.bias"]
        torch.save(weights, tmp_path / "b.pth")
        outcome = run_convert("diff", tmp_path / "a.pth", tmp_path / "b.pth", "--tolerance", "1e9")
        assert outcome.code == 1
        lines = outcome.stdout.splitlines()
        assert "missing in B" in lines[0]
        assert "shape [5, 6] and [4, 6]" in lines[1]
        assert "final_norm.bias" in lines[2]

    def test_nan_equals_nan_and_nothing_else(self, tmp_path: Path) -> None:
        values = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([1.0, float("nan")])}
        torch.save(values, tmp_path / "a.pth")
        torch.save({**values, "b": torch.tensor([1.0, 2.0])}, tmp_path / "b.pth")
        assert run_convert("diff", tmp_path / "a.pth", tmp_path / "a.pth").code == 0
        outcome = run_convert("diff", tmp_path / "a.pth", tmp_path / "b.pth", "--tolerance", "1e30")
        assert outcome.code == 1
        assert "inf" in outcome.stdout.splitlines()[0]

    def test_dtypes_are_compared_by_value(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "narrow", "--dtype", "bfloat16")
        done("mlx2torch", tmp_path / "narrow", "-o", tmp_path / "wide.pt", "--dtype", "float32")
        assert "equal values, different bits (BF16 and F32)" in done("diff", tmp_path / "narrow", tmp_path / "wide.pt")
        assert run_convert("diff", checkpoint, tmp_path / "narrow").code == 1
        done("diff", checkpoint, tmp_path / "narrow", "--tolerance", "0.004")

    def test_settings_count(self, checkpoint: Path, tmp_path: Path) -> None:
        entries = torch.load(checkpoint, weights_only=True)
        entries["model_args"]["n_head"] = 3
        torch.save(entries, tmp_path / "other.pt")
        outcome = run_convert("diff", checkpoint, tmp_path / "other.pt")
        assert outcome.code == 1
        assert "n_head: 2 and 3" in outcome.stdout
