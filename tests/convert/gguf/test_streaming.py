"""Memory does not grow with the model, either way; by hand, the speed of six gigabytes beside that of `cp`."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from gpt_common.config import ModelConfig
from tests.convert.storage.test_streaming import MEGABYTE, convert, run, write_nanogpt


def model(layers: int, vocabulary: int, width: int, heads: int = 8, context: int = 64) -> ModelConfig:
    """A GPT-2 with biases."""
    return ModelConfig(vocab_size=vocabulary, block_size=context, n_layer=layers, n_head=heads, n_embd=width, bias=True)


def native(place: Path, config: ModelConfig) -> Path:
    """A run of any size that was never in memory."""
    write_nanogpt(place / "ckpt.pt", config)
    convert("torch2mlx", place / "ckpt.pt", "-o", place / "run", "--tokenizer", "none")
    (place / "ckpt.pt").unlink()
    return place / "run"


def export(source: Path, out: Path, *flags: str) -> tuple[float, int]:
    """Seconds and bytes at the peak. The GELU of nanoGPT is another one: what is measured does not care."""
    return convert("export", source, "--to", "gguf", "-o", out, "--other-gelu", "--tokenizer", "none", *flags)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1 MB and 250 MB: what is added is a few blocks, packed and not."""
    peaks = {}
    for name, config in (("small", model(1, 100, 64)), ("large", model(12, 50_000, 512))):
        place = tmp_path / name
        place.mkdir()
        source = native(place, config)
        peaks[name] = [
            export(source, place / "f32.gguf")[1],
            export(source, place / "q8.gguf", "--dtype", "q8_0")[1],
            convert("import", place / "f32.gguf", "-o", place / "back")[1],
            convert("import", place / "q8.gguf", "-o", place / "back8")[1],
        ]
    assert (tmp_path / "large" / "f32.gguf").stat().st_size > 240 * MEGABYTE
    for small, large in zip(peaks["small"], peaks["large"], strict=True):
        assert large - small < 48 * MEGABYTE, peaks


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_six_gigabytes(tmp_path: Path) -> None:
    """1.56 B parameters: less than 500 MB resident, at least half the speed of `cp`.

    python -m pytest tests/convert/gguf/test_streaming.py -m slow -s -p no:xdist
    """
    source = native(tmp_path, model(48, 50257, 1600, heads=25, context=1024))
    weights, out, copy = next(source.rglob("model.safetensors")), tmp_path / "x.gguf", tmp_path / "copy"
    size = weights.stat().st_size
    assert size > 6e9
    print(f"\n{size / 1e9:.2f} GB, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for _ in range(3):
        for name, more in (("cp", ""), ("cp and sync", f" && sync {copy}")):
            seconds.setdefault(name, []).append(run("sh", "-c", f"cp {weights} {copy}{more}")[0])
            copy.unlink()
        taken, peaks["float32"] = export(source, out)
        seconds.setdefault("float32", []).append(taken)
        out.unlink()
    for dtype in ("float16", "q8_0", "q4_0"):
        taken, peaks[dtype] = export(source, out, "--dtype", dtype)
        seconds[dtype] = [taken]
        print(f"{dtype}: {out.stat().st_size / 1e9:.2f} GB")
        if dtype == "q8_0":
            taken, peaks["q8_0 read"] = convert("import", out, "-o", tmp_path / "back")
            seconds["q8_0 read"] = [taken]
        out.unlink()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name}: {size / 1e9 / median[name]:.2f} GB/s; seconds {', '.join(f'{v:.1f}' for v in values)}")
    for name, peak in peaks.items():
        print(f"{name}: peak resident memory {peak / 1e6:.0f} MB")
    assert max(peaks.values()) < 500e6
    # What is exported is on the disk then, as after a sync.
    assert median["float32"] < 2 * median["cp and sync"]
