"""Memory does not grow with the model; by hand, the speed of six gigabytes beside that of `cp`."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convert.formats.names import GPT2, translate
from convert.storage import disk
from convert.storage.tensors import BLOCK, Tensor, load, tee
from convert.storage.torch_file import TorchFile, plan, write_torch_file
from gpt_common.config import ModelConfig
from gpt_common.network.parameters import parameter_shapes
from tests.convert.conftest import run_convert

ROOT = Path(__file__).parents[3]
MEGABYTE = 1 << 20


def write_nanogpt(path: Path, config: ModelConfig) -> None:
    """A checkpoint of any size, written without ever being in memory; tensors differ from one another."""
    noise = np.random.default_rng(0).standard_normal(BLOCK + 4096, np.float32) * np.float32(0.02)

    def tensor(shape: tuple[int, ...], seed: int) -> Tensor:
        def blocks() -> Iterator[bytes]:
            for number, start in enumerate(range(0, math.prod(shape), BLOCK)):
                first = (37 * seed + 11 * number) % 4096
                yield noise[first : first + min(BLOCK, math.prod(shape) - start)].tobytes()

        return Tensor(dtype="F32", shape=shape, blocks=blocks)

    tensors = {
        str(translate(name, GPT2)): tensor(shape, i) for i, (name, shape) in enumerate(parameter_shapes(config).items())
    }
    stored = plan(tensors)
    keys = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    value = {
        "model": {**stored, "lm_head.weight": stored["transformer.wte.weight"]},
        "model_args": {key: getattr(config, key) for key in keys},
        "iter_num": 100,
        "best_val_loss": 2.9,
    }
    write_torch_file(path, value, tensors, lambda _: None)


def run(*arguments: str | Path) -> tuple[float, int]:
    """Run a command to its successful end; returns seconds and its peak resident bytes."""
    started = time.monotonic()
    process = subprocess.Popen(list(map(str, arguments)), cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def convert(*arguments: str | Path) -> tuple[float, int]:
    return run(sys.executable, "-m", "convert", *arguments)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A file of 1 MB and one of 250 MB: what is added is a few blocks (4 MB each) and one transposed matrix (4 MB)."""
    peaks = {}
    for name, layers, vocabulary in (("small", 1, 100), ("large", 12, 50_000)):
        config = ModelConfig(
            vocab_size=vocabulary,
            block_size=64,
            n_layer=layers,
            n_head=8,
            n_embd=512 if name == "large" else 64,
            bias=True,
        )
        write_nanogpt(tmp_path / f"{name}.pt", config)
        run_folder, back, folder = (tmp_path / f"{name}-{kind}" for kind in ("run", "back.pt", "folder"))
        peaks[name] = [
            convert("torch2mlx", tmp_path / f"{name}.pt", "-o", run_folder, "--tokenizer", "none")[1],
            convert("mlx2torch", run_folder, "-o", back)[1],
            convert("mlx2torch", run_folder, "-o", folder, "--to", "transformers")[1],
            convert("diff", run_folder, folder)[1],
        ]
        assert run_convert("diff", tmp_path / f"{name}.pt", back).code == 0
        shutil.rmtree(folder)
    assert (tmp_path / "large.pt").stat().st_size > 240 * MEGABYTE
    for small, large in zip(peaks["small"], peaks["large"], strict=True):
        assert large - small < 48 * MEGABYTE, peaks


def test_views_of_a_storage_hold_one_tensor_at_a_time(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(3 * BLOCK + 5, dtype=torch.float32)
    torch.save(
        {"a": whole, "tail": whole[BLOCK + 1 :], "t": whole[: 4 * (BLOCK // 2)].view(4, -1).t()}, tmp_path / "x.pt"
    )
    file = TorchFile(tmp_path / "x.pt")
    for name, expected in torch.load(tmp_path / "x.pt", weights_only=True).items():
        assert np.array_equal(load(file.tensor(file.value[name], name)), expected.numpy()), name
    file.verify()


@pytest.mark.parametrize("size", [10, 1 << 17])
def test_tee_keeps_the_order_and_the_bytes(size: int) -> None:
    blocks = [bytes([i]) * (size - i) for i in range(9)]
    digest = hashlib.sha256()
    assert list(tee(iter(blocks), digest.update)) == blocks
    assert digest.digest() == hashlib.sha256(b"".join(blocks)).digest()


@pytest.mark.parametrize("size", [10, 1 << 17])
def test_tee_passes_errors_on(size: int) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("hash")

    with pytest.raises(RuntimeError, match="hash"):
        list(tee([bytes(size)] * 3, fail))


def test_what_a_file_cannot_keep_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write-back once, to whoever syncs first: that is the thread beside."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(disk, "BYTES_BETWEEN_SYNCS", 10)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"), disk.create(tmp_path / "x") as file:
        file.write(bytes(MEGABYTE))


def seconds_to_hash(size: int) -> float:
    """Seconds that one core takes for the SHA-256 of so many bytes, without reading them."""
    started, block, digest = time.monotonic(), bytes(4 * BLOCK), hashlib.sha256()
    for _ in range(size // len(block)):
        digest.update(block)
    return time.monotonic() - started


WITHOUT_HASHES = """
import hashlib, runpy, sys
class NoHash:
    def __init__(self, *_): pass
    def update(self, _): pass
    def hexdigest(self): return "0" * 64
hashlib.sha256 = NoHash
runpy.run_module("convert", run_name="__main__", alter_sys=True)
"""
"""`python -m convert` whose SHA-256 is always the same, and costs nothing: what hashing takes."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_gigabytes(tmp_path: Path) -> None:
    """1.56 B parameters in float32: less than 1.5 GB resident, at least half the speed of `cp`, in one run.

    python -m pytest tests/convert/storage/test_streaming.py -m slow -s -p no:xdist
    """
    config = ModelConfig(vocab_size=50257, block_size=1024, n_layer=48, n_head=25, n_embd=1600, bias=True)
    source, copy = tmp_path / "ckpt.pt", tmp_path / "copy"
    write_nanogpt(source, config)
    size = source.stat().st_size
    assert size > 6e9
    print(f"\n{size / 1e9:.2f} GB, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    seconds: dict[str, list[float]] = {}
    peak = 0
    for _ in range(3):
        seconds.setdefault("SHA-256 alone", []).append(seconds_to_hash(size))
        for suffix, start in (("", ["-m", "convert"]), (" without SHA-256", ["-c", WITHOUT_HASHES])):
            for command, src, dst in (("torch2mlx", source, "run"), ("mlx2torch", tmp_path / "run", "back.pt")):
                # A virtual machine gets memory from its host at a tenth of the speed at which it is used again: what is
                # compared reads a file that is in memory, and writes into the memory that a copy before has just freed.
                file = next(src.rglob("model.safetensors")) if src.is_dir() else src
                run("cp", file, copy)
                copy.unlink()
                for name, more in (("cp", ""), ("cp and sync", f" && sync {copy}")):
                    seconds.setdefault(name, []).append(run("sh", "-c", f"cp {file} {copy}{more}")[0])
                    copy.unlink()
                words = (sys.executable, *start, command, str(src), "-o", str(tmp_path / dst), "--tokenizer", "none")
                taken, resident = run(*words)
                seconds.setdefault(command + suffix, []).append(taken)
                peak = max(peak, resident)
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "back.pt").unlink()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name}: {size / 1e9 / median[name]:.2f} GB/s; seconds {', '.join(f'{v:.1f}' for v in values)}")
    print(f"peak resident memory {peak / 1e6:.0f} MB")
    assert peak < 1.5e9
    for command in ("torch2mlx", "mlx2torch"):
        # What is converted is on the disk then; plain cp returns before, and is printed for comparison.
        assert median[command] < 2 * median["cp and sync"]
