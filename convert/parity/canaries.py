"""Canaries: shapes and operations on which released backends computed wrongly, tried on the machine at hand.

Every canary compares one computation with float64 numpy. Most of these faults are silent: a run goes on, and learns
something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.parity.compare import Array, relative
from convert.parity.rungs.operations import long_sums
from convert.parity.twins.backends import open_twin
from convert.parity.twins.twin import Operation, Twin
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.errors import WorkFailed
from gpt_common.files import write_atomically
from gpt_common.keyed import keyed_generator
from gpt_common.machine.backends import Backend

FLOAT32_GATE = 1e-5
BFLOAT16_GATE = 2e-2
TINY = ModelConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=4)


@dataclass(frozen=True)
class Canary:
    """One known fault."""

    name: str
    issue: str
    advice: str
    """What an affected user should do, in a sentence."""
    errors: Callable[[Backend], Iterator[float]]
    """Relative errors; NaN where the result is."""
    gate: float = FLOAT32_GATE
    framework: str | None = None
    """The only framework that has it; None tries both."""


def draw(name: str, *shape: int) -> Array:
    """Standard normal float32 numbers."""
    return keyed_generator(0, "canary", name).standard_normal(shape, np.float32)


def canary_twin(backend: Backend) -> Twin:
    """A twin to compute operations with; its model does not matter."""
    return open_twin(backend, RunConfig(model=TINY), "float32")


def _linear(backend: Backend, x: Array, weight: Array, bias: Array | None = None) -> Iterator[float]:
    """Output and gradients of a linear layer."""
    parameters = (weight,) if bias is None else (weight, bias)
    shape = (*x.shape[:-1], len(weight))
    upstream = draw(f"upstream {shape}", *shape)
    found = canary_twin(backend).operation(Operation("", "linear", (x,), shape, parameters), upstream)
    x64, weight64, upstream64 = (value.astype(np.float64) for value in (x, weight, upstream))
    yield relative(found.output, x64 @ weight64.T + (0 if bias is None else bias))
    yield relative(found.gradients["input 0"], upstream64 @ weight64)
    rows = upstream64.reshape(-1, len(weight)).T @ x64.reshape(-1, x.shape[-1])
    yield relative(found.gradients["parameter 0"], rows)


def _long_sums(backend: Backend) -> Iterator[float]:
    for operation in long_sums():
        yield from _linear(backend, operation.inputs[0], operation.parameters[0])


def _many_tokens(backend: Backend) -> Iterator[float]:
    weight, bias = draw("weight", 48, 16), draw("bias", 48)
    # The fault needs another shape first.
    for batch, length in ((2, 64), (8, 4097), (1, 32776), (9, 8192)):
        yield from _linear(backend, draw(f"{batch} x {length}", batch, length, 16), weight, bias)


def _layer_norm(x: Array) -> Array:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))


def _compiled_layer_norm(backend: Backend) -> Iterator[float]:
    for width in (256, 384, 512, 768, 1024, 2048):
        x = draw(f"rows of {width}", 4, width)
        if backend.framework == "torch":
            import torch
            from torch.nn import functional as F

            compiled = torch.compile(lambda value: F.layer_norm(value, value.shape[-1:]))
            found = compiled(torch.from_numpy(x).to(backend.device)).cpu().numpy()
        else:
            import mlx.core as mx

            fused = mx.compile(lambda value: mx.fast.layer_norm(value, None, None, 1e-5))
            with mx.stream(mx.cpu if backend.device == "cpu" else mx.gpu):
                found = np.array(fused(mx.array(x)))
        yield relative(found, _layer_norm(x))


def _bfloat16_causal_attention(backend: Backend) -> Iterator[float]:
    import torch
    from torch.nn import functional as F

    length = 13  # of which a mask that is made once for four queries is wrong for most
    q, k, v = (torch.from_numpy(draw(name, 1, 2, length, 16)).to(backend.device, torch.bfloat16) for name in "qkv")
    with torch.no_grad():
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True).float().cpu().numpy()
        for end in range(1, length):
            later_k, later_v = k.clone(), v.clone()
            later_k[:, :, end:] += 1
            later_v[:, :, end:] += 1
            again = F.scaled_dot_product_attention(q, later_k, later_v, is_causal=True).float().cpu().numpy()
            yield relative(again[:, :, :end], found[:, :, :end])


def _transposed_state(backend: Backend) -> Iterator[float]:
    import torch

    def state(name: str) -> tuple[torch.Tensor, Array]:
        value = np.abs(draw(name, 6, 4)) + 0.1
        return torch.from_numpy(value).to(backend.device).t(), value.T.astype(np.float64)

    (p, p64), (m, m64), (v, v64), (g, g64) = (state(name) for name in "pmvg")
    m.lerp_(g, 0.1)
    yield relative(m.cpu().numpy(), 0.9 * m64 + 0.1 * g64)
    v.mul_(0.99).addcmul_(g, g, value=0.01)
    yield relative(v.cpu().numpy(), 0.99 * v64 + 0.01 * g64**2)
    p.addcdiv_(g, v, value=-0.5)
    yield relative(p.cpu().numpy(), p64 - 0.5 * g64 / v.cpu().numpy().astype(np.float64))


def _broadcast_sum(backend: Backend) -> Iterator[float]:
    import torch

    a, b = draw("column", 32), draw("row", 64) + 2
    compiled = torch.compile(lambda x, y: (x[:, None] - y[None, :]).sum())
    found = compiled(torch.from_numpy(a).to(backend.device), torch.from_numpy(b).to(backend.device))
    yield relative(np.array([found.item()]), (a[:, None].astype(np.float64) - b[None]).sum(keepdims=True).ravel())


def _compiled_bfloat16(backend: Backend) -> Iterator[float]:
    import torch
    from torch.nn import functional as F

    logits, labels = 8 * draw("logits", 64, 96), np.arange(64) % 96

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.layer_norm(x, x.shape[-1:]), y)

    x = torch.from_numpy(logits).to(backend.device, torch.bfloat16)
    found = torch.compile(loss)(x, torch.from_numpy(labels).to(backend.device))
    scores = _layer_norm(logits)
    exact = np.log(np.exp(scores).sum(-1)) - scores[np.arange(64), labels]
    yield relative(np.array([found.float().item()]), exact.mean(keepdims=True))


def _bfloat16_lerp(backend: Backend) -> Iterator[float]:
    import torch

    start = torch.zeros(16, dtype=torch.bfloat16, device=backend.device)
    found = start.lerp_(torch.ones_like(start), torch.tensor(0.1)).float().cpu().numpy()
    yield relative(found, np.full(16, 0.1))


CANARIES = (
    Canary(
        "sums over 32767 and more terms",
        "pytorch#195163, pytorch#153957: MPS on M1 and M2 adds memory beyond the operands",
        "train with the MLX twin or on the CPU, or keep every dimension that is summed over below 32767",
        _long_sums,
    ),
    Canary(
        "more than 32768 tokens in a batch, after another shape",
        "pytorch#177116: MPS",
        "keep batch size times block size at 32768 or below, and accumulate more micro-steps",
        _many_tokens,
    ),
    Canary(
        "compiled layer norm",
        "pytorch#191976: MPS, widths of 256 to 2048",
        "do not use --compile on this backend, or update PyTorch",
        _compiled_layer_norm,
    ),
    Canary(
        "causal attention in bfloat16, outside of training",
        "pytorch#195910: on MPS three of four positions see later ones",
        "nothing for this project's model, which gives its mask itself; elsewhere, do not trust is_causal",
        _bfloat16_causal_attention,
        gate=BFLOAT16_GATE,
        framework="torch",
    ),
    Canary(
        "optimiser state that is not contiguous",
        "pytorch#118115: MPS",
        "update PyTorch: the optimiser's state would silently stand still",
        _transposed_state,
        framework="torch",
    ),
    Canary(
        "compiled sum of a broadcast",
        "pytorch#170360: MPS returns twice the sum",
        "do not use --compile on this backend, or update PyTorch",
        _broadcast_sum,
        framework="torch",
    ),
    Canary(
        "compiled loss in bfloat16",
        "pytorch#171764: NaN on Apple silicon",
        "do not use --compile together with --dtype bfloat16 on this backend",
        _compiled_bfloat16,
        gate=BFLOAT16_GATE,
        framework="torch",
    ),
    Canary(
        "lerp_ in bfloat16",
        "pytorch#196067: MPS in PyTorch 2.14",
        "nothing for this project's optimisers, whose state is float32; elsewhere, keep it so",
        _bfloat16_lerp,
        gate=BFLOAT16_GATE,
        framework="torch",
    ),
)


def run_canaries(
    backends: Sequence[Backend], canaries: Sequence[Canary] = CANARIES, json_path: Path | None = None
) -> None:
    """Try every canary on every backend, a line each, and say what an affected user should do.

    Args:
        json_path: where to write what was found, also if a canary died.

    Raises:
        WorkFailed: a canary died.
    """
    found: list[dict[str, Any]] = []
    for backend in backends:
        for canary in canaries:
            if canary.framework not in (None, backend.framework):
                continue
            result = {"backend": backend.name, "name": canary.name, "verdict": "not tried", "error": None}
            found.append(result | {"gate": canary.gate})
            try:
                error = float(np.max(list(canary.errors(backend))))  # NaN if any is
            except Exception as failure:
                # A compiler that is not installed is no wrong result.
                reason = str(failure).strip().splitlines()[:1] or [""]
                print(f"{backend.name:<10} {canary.name}: NOT TRIED, {type(failure).__name__}: {reason[0]}", flush=True)
                continue
            died = not error <= canary.gate
            found[-1] |= {"verdict": "wrong" if died else "right", "error": error if math.isfinite(error) else None}
            verdict = f"WRONG: {canary.issue}. What to do: {canary.advice}." if died else "right"
            figures = f"(error {error:.1e}, gate {canary.gate:.0e})"
            print(f"{backend.name:<10} {canary.name}: {verdict} {figures}", flush=True)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_path, json.dumps({"canaries": found}, indent=1) + "\n")
    if dead := sum(result["verdict"] == "wrong" for result in found):
        raise WorkFailed(f"{dead} known backend {'fault is' if dead == 1 else 'faults are'} present on this machine")
