"""The commands: what they say, what they refuse, what they replace, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import MODEL_FILE
from tests.convert.conftest import done, refused, run_convert
from tests.convert.sources import CHARACTERS, MODEL, Model

ROOT = Path(__file__).parents[2]


class TestDestination:
    def test_default_lies_beside_the_source(self, checkpoint: Path) -> None:
        done("torch2mlx", checkpoint)
        assert (checkpoint.parent / "ckpt-mlx" / "config.toml").is_file()
        done("mlx2torch", checkpoint.parent / "ckpt-mlx")
        assert (checkpoint.parent / "ckpt-mlx-nanogpt" / "ckpt.pt").is_file()

    def test_an_existing_one_is_replaced_only_on_request(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        marker = tmp_path / "run" / "config.toml"
        marker.write_text("old")
        assert "--overwrite" in refused("torch2mlx", checkpoint, "-o", tmp_path / "run")
        assert marker.read_text() == "old"
        done("torch2mlx", checkpoint, "-o", tmp_path / "run", "--overwrite")
        assert marker.read_text() != "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]

    def test_what_no_conversion_wrote_is_never_replaced(self, checkpoint: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "letters.txt").write_text("dear")
        assert "letters.txt" in refused("torch2mlx", checkpoint, "-o", home, "--overwrite")
        assert (home / "letters.txt").read_text() == "dear"

    @pytest.mark.parametrize("place", [".", "ckpt.pt", ".."])
    def test_the_source_is_never_replaced(self, checkpoint: Path, place: str) -> None:
        before = checkpoint.read_bytes()
        refused("torch2mlx", checkpoint, "-o", checkpoint.parent / place, "--overwrite")
        assert checkpoint.read_bytes() == before

    def test_a_file_for_nanogpt(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        assert "meta.pkl" in done("mlx2torch", tmp_path / "run", "-o", tmp_path / "model.pt")
        assert torch.load(tmp_path / "model.pt", weights_only=True)["iter_num"] == MODEL.step
        refused("torch2mlx", checkpoint, "-o", tmp_path / "model.pt", "--overwrite")

    def test_nothing_stays_of_what_fails_in_the_middle(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        before = (tmp_path / "run" / "config.toml").stat().st_mtime_ns

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("gpt_common.files.move_into_place", fail)
        assert run_convert("torch2mlx", checkpoint, "-o", tmp_path / "run", "--overwrite").code == 130
        assert run_convert("torch2mlx", checkpoint, "-o", tmp_path / "new").code == 130
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
        assert (tmp_path / "run" / "config.toml").stat().st_mtime_ns == before

    def test_leftovers_of_the_killed_go_and_of_the_living_stay(self, checkpoint: Path, tmp_path: Path) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        dead, alive = tmp_path / f"run.tmp-{ended.pid}", tmp_path / f"run.tmp-{os.getppid()}"
        dead.mkdir()
        alive.mkdir()
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        assert not dead.exists()
        assert alive.exists()

    def test_a_termination_signal_leaves_nothing(self, checkpoint: Path, tmp_path: Path) -> None:
        # Everything is written and only the last step is missing.
        program = (
            "import os, signal, runpy, gpt_common.files as files\n"
            "files.move_into_place = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
            "runpy.run_module('convert', run_name='__main__')\n"
        )
        command = [sys.executable, "-c", program, "torch2mlx", str(checkpoint), "-o", str(tmp_path / "run")]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestDtype:
    def test_weights_are_rounded_as_pytorch_rounds_and_what_is_lost_is_said(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        weights = torch.load(checkpoint, weights_only=True)["model"]
        del weights["lm_head.weight"]
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            said = done("torch2mlx", checkpoint, "-o", tmp_path / name, "--dtype", name)
            errors = torch.cat([(w.to(dtype).double() - w.double()).abs().flatten() for w in weights.values()])
            changed = int((errors > 0).sum())
            assert f"cast to {name}: {changed:,} of {errors.numel():,} values changed" in said
            assert f"the largest by {float(errors.max()):.3g}" in said
            folder = find_checkpoint(tmp_path / name, prefer="best")
            found = load_file(folder / MODEL_FILE)
            assert torch.equal(found["token_embedding.weight"], weights["transformer.wte.weight"].to(dtype))
            assert read_manifest(folder).step == MODEL.step

    def test_widening_loses_nothing_and_says_so(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "narrow", "--dtype", "bfloat16")
        done("mlx2torch", tmp_path / "narrow", "-o", tmp_path / "wide", "--dtype", "float32")
        assert "nothing was lost" in done(
            "torch2mlx", tmp_path / "wide", "-o", tmp_path / "again", "--dtype", "bfloat16"
        )
        assert "0 tensors" not in done("diff", tmp_path / "narrow", tmp_path / "wide")

    def test_float64_has_to_be_asked_for(self, checkpoint: Path, tmp_path: Path) -> None:
        entries = torch.load(checkpoint, weights_only=True)
        entries["model"] = {name: tensor.double() for name, tensor in entries["model"].items()}
        torch.save(entries, checkpoint)
        assert "--dtype float32" in refused("torch2mlx", checkpoint, "-o", tmp_path / "run")
        done("torch2mlx", checkpoint, "-o", tmp_path / "run", "--dtype", "float32")

    def test_overflow_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        entries = torch.load(checkpoint, weights_only=True)
        entries["model"]["transformer.ln_f.weight"][2] = 70000.0
        torch.save(entries, checkpoint)
        said = refused("torch2mlx", checkpoint, "-o", tmp_path / "run", "--dtype", "float16")
        assert "transformer.ln_f.weight: 1 values are too large for float16 (largest 7e+04)" in said
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
    def test_rounding_is_pytorch_s_for_every_kind_of_number(self, name: str, dtype: torch.dtype) -> None:
        from convert.storage.tensors import _round, values

        bits = np.random.default_rng(1).integers(0, 2**32, 300_000, np.uint32)
        numbers = bits.view(np.float32)
        with np.errstate(over="ignore"):
            rounded = _round(numbers, name)
        expected = torch.from_numpy(numbers).to(dtype)
        found = torch.frombuffer(bytearray(rounded), dtype=dtype)
        nan = torch.isnan(expected)
        assert torch.equal(torch.isnan(found), nan)
        assert torch.equal(found[~nan].view(torch.int16), expected[~nan].view(torch.int16))
        with np.errstate(invalid="ignore"):
            back = values(rounded, name)
        assert np.array_equal(back, expected.float().numpy(), equal_nan=True)


class TestLimits:
    """What a target cannot hold is refused, with the way out."""

    @pytest.fixture
    def untied(self, tmp_path: Path) -> Path:
        config = ModelConfig(
            **{**MODEL.config.__dict__, "tied_head": False, "head_bias": True, "feed_forward": "gelu_tanh"}
        )
        torch.save(Model(config, "F32", 1, False, 1).weights(), tmp_path / "weights.pth")
        (tmp_path / "model.toml").write_text('[model]\nn_head = 2\nfeed_forward = "gelu_tanh"\n')
        done("torch2mlx", tmp_path / "weights.pth", "-o", tmp_path / "run", "--config", tmp_path / "model.toml")
        return tmp_path / "run"

    @pytest.mark.parametrize(
        ("to", "says"),
        [("nanogpt", "gelu_tanh and nanoGPT computes gelu"), ("transformers", "bias"), ("mlx-lm", "tied_head")],
    )
    def test_refused(self, untied: Path, to: str, says: str) -> None:
        assert says in refused("mlx2torch", untied, "-o", untied.parent / "out", "--to", to)
        assert not (untied.parent / "out").exists()

    def test_another_gelu_only_on_request(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        assert "--other-gelu" in refused("mlx2torch", tmp_path / "run", "--to", "mlx-lm")
        done("mlx2torch", tmp_path / "run", "--to", "mlx-lm", "--other-gelu")

    def test_a_preset_that_contradicts_the_shapes(self, tmp_path: Path) -> None:
        torch.save(MODEL.weights(), tmp_path / "weights.pth")
        said = refused("torch2mlx", tmp_path / "weights.pth", "--preset", "gpt2")
        assert "vocab_size 11" in said
        assert "50257" in said
        (tmp_path / "model.toml").write_text("[model]\nn_layer = 3\nn_head = 2\n")
        said = refused("torch2mlx", tmp_path / "weights.pth", "--config", tmp_path / "model.toml")
        assert "n_layer 2" in said
        assert "says 3" in said

    def test_a_configuration_without_heads(self, tmp_path: Path) -> None:
        torch.save(MODEL.weights(), tmp_path / "weights.pth")
        (tmp_path / "model.toml").write_text("[model]\nn_layer = 2\n")
        assert "n_head" in refused("torch2mlx", tmp_path / "weights.pth", "--config", tmp_path / "model.toml")

    def test_a_preset_for_what_says_itself(self, checkpoint: Path) -> None:
        assert "leave out --preset" in refused("torch2mlx", checkpoint, "--preset", "gpt2")


class TestTokenizer:
    def test_characters_travel_to_transformers_and_back(self, checkpoint: Path, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        done("torch2mlx", checkpoint, "-o", tmp_path / "run")
        done("mlx2torch", tmp_path / "run", "-o", tmp_path / "hf", "--to", "transformers")
        ours = CharTokenizer(CHARACTERS)
        theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
        text = "a  b\n\n 😀é€ z \n"
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
        done("torch2mlx", tmp_path / "hf", "-o", tmp_path / "run 2")
        tokenizer = read_manifest(find_checkpoint(tmp_path / "run 2", prefer="best")).tokenizer
        assert tokenizer is not None
        assert tokenizer["fingerprint"] == ours.fingerprint

    @pytest.mark.usefixtures("gpt2_vocabulary")
    def test_gpt2_s_own(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        from convert.formats.tokenizer_files import read_tokenizer, write_tokenizer
        from gpt_common.data.tokenizers import Gpt2Tokenizer

        ours = Gpt2Tokenizer()
        write_tokenizer(ours, tmp_path, 1024)
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        text = "Once upon a time, 12 élan\n\n  there  was 한국어 😀!"
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.eos_token_id == ours.end_of_text
        back, _ = read_tokenizer(tmp_path)
        assert back is not None
        assert (back.kind, back.fingerprint) == ("gpt2", ours.fingerprint)

    def test_none_and_given(self, checkpoint: Path, tmp_path: Path) -> None:
        done("torch2mlx", checkpoint, "-o", tmp_path / "without", "--tokenizer", "none")
        assert not (find_checkpoint(tmp_path / "without", prefer="best") / "tokenizer.json").exists()
        CharTokenizer("abcdefghijk").save(tmp_path / "given.json")
        done("torch2mlx", checkpoint, "-o", tmp_path / "with", "--tokenizer", tmp_path / "given.json")
        folder = find_checkpoint(tmp_path / "with", prefer="best")
        assert json.loads((folder / "tokenizer.json").read_text())["characters"] == "abcdefghijk"
        CharTokenizer("abcdefghijkl").save(tmp_path / "given.json")
        said = refused("torch2mlx", checkpoint, "-o", tmp_path / "much", "--tokenizer", tmp_path / "given.json")
        assert "12 tokens, the model 11" in said


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "which command?"),
            (["inspect"], "missing argument: SRC"),
            (["diff"], "missing arguments: A, B"),
            (["inspct"], "did you mean 'inspect'?"),
            (["diff", "a", "b", "--tolerence", "1"], "did you mean '--tolerance'?"),
            (["torch2mlx", "a", "--dtype", "float"], "did you mean 'float16' or 'float32'?"),
            (["mlx2torch", "a", "--to", "pytorch"], "not a choice"),
            (["diff", "a", "b", "--tolerance", "-1"], "must not be negative"),
            (["inspect", "no/such/file"], "no/such/file"),
        ],
    )
    def test_mistakes_are_one_line(self, arguments: list[str], says: str) -> None:
        said = refused(*arguments)
        assert says in said
        assert len(said.splitlines()) == 1

    @pytest.mark.parametrize("command", [[], ["torch2mlx"], ["mlx2torch"], ["inspect"], ["diff"]])
    def test_help(self, command: list[str]) -> None:
        assert "usage: python -m convert" in done(*command, "--help")

    def test_no_framework_is_loaded(self, checkpoint: Path) -> None:
        program = (
            "import sys\nfrom convert.__main__ import main\nmain(sys.argv[1:])\n"
            "assert not {'torch', 'mlx', 'mlx.core', 'transformers'} & set(sys.modules)"
        )
        for command in (["inspect", str(checkpoint), "--hashes"], ["torch2mlx", str(checkpoint)]):
            subprocess.run([sys.executable, "-c", program, *command], cwd=ROOT, check=True, capture_output=True)

    def test_progress_is_lines_where_there_is_no_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gpt_common.progress import Progress

        clock = iter(range(0, 1000, 6))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        import contextlib
        import io

        with contextlib.redirect_stderr(io.StringIO()) as said, Progress(of_bytes=True) as progress:
            advance = progress.counting("writing x", 4_000_000)
            for _ in range(4):
                advance(1_000_000)
        assert said.getvalue().splitlines() == ["writing x: 2.0 MB of 4.0 MB", "writing x: 4.0 MB of 4.0 MB"]
