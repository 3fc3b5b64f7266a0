"""Wrong twins of the newer families: rotary positions, shared key heads, latents, experts, Muon."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from convert.parity.mutants.climb import FAMILIES, FAR, Change, Changes, mutants, wrap
from convert.parity.twins.replaced import replaced, replaced_entry
from mlx_gpt import attention, experts, layers, optim
from mlx_gpt.attention import GroupedQueryAttention, LatentAttention
from mlx_gpt.experts import Experts, MixtureOfExperts
from mlx_gpt.feed_forward import SwiGLU
from mlx_gpt.layers import Linear, StackedLinear


def _with(owner: Any, method: str, **values: Callable[[Any], Any]) -> Change:
    """While `method` runs, attributes of its object are what `values` make of the object."""

    def make(right: Any) -> Any:
        @functools.wraps(right)
        def wrong(self: Any, *args: Any) -> Any:
            before = {name: getattr(self, name) for name in values}
            changed = {name: value(self) for name, value in values.items()}
            try:
                for name, value in changed.items():
                    setattr(self, name, value)
                return right(self, *args)
            finally:
                for name, value in before.items():
                    setattr(self, name, value)

        return wrong

    return wrap(owner, method, make)


def _routed(**fields: Any) -> Change:
    """A router that takes its configuration to be another."""
    return _with(MixtureOfExperts, "route", config=lambda self: dataclasses.replace(self.config, **fields))


def _late_norm(self: Any) -> Callable[[Any, Any], Any]:
    """Rotate first, then normalise: queries are asked for before keys."""
    norms, rotate = iter((self.q_norm, self.k_norm)), self.rotate
    return lambda x, angles: next(norms)(rotate(x, angles))


def _shared_in_turn(x: Any, heads: int) -> Any:
    """Key heads for `heads` query heads: query head h asks key head h modulo their number."""
    return mx.tile(x, (1, heads // x.shape[1], 1, 1))


def _turned(x: Any, heads: int, by: int) -> Any:
    """(B, T, H K) with the last `by` numbers of every head moved to its front."""
    return mx.roll(x.reshape(*x.shape[:2], heads, -1), by, -1).reshape(x.shape)


def _muon(wrong: Callable[[Any, Any, Any, Any, Any], Any]) -> Change:
    """Change what Muon makes of a matrix, and leave AdamW alone."""

    def make(right: Any) -> Any:
        def apply(self: Any, gradient: Any, parameter: Any, state: Any) -> Any:
            if "momentum" not in state:
                return right(self, gradient, parameter, state)
            return wrong(partial(right, self), self, gradient, parameter, state)

        return apply

    return wrap(optim.Muon, "apply_single", make)


def _plain_momentum(_: Any, self: Any, gradient: Any, parameter: Any, state: Any) -> Any:
    m = state["momentum"] = state["momentum"] + (1 - self.momentum) * (gradient - state["momentum"])
    scale = 0.2 * math.sqrt(max(parameter.shape))
    return parameter * self.state["decay"] - optim.orthogonal(m) * (self.state["rate"] * scale)


def _unscaled(right: Any, self: Any, gradient: Any, parameter: Any, state: Any) -> Any:
    kept = parameter * self.state["decay"]
    return kept + (right(gradient, parameter, state) - kept) / (0.2 * math.sqrt(max(parameter.shape)))


def _everywhere(right: Any) -> Any:
    """Every matrix goes where the orthogonal part of its first moment points."""

    def wrong(self: Any, gradient: Any, parameter: Any, state: Any) -> Any:
        y = right(self, gradient, parameter, state)
        if parameter.ndim < 2:
            return y
        scale = 0.2 * math.sqrt(max(parameter.shape))
        return parameter * self.state["decay"] - optim.orthogonal(state["m"]) * (self.state["rate"] * scale)

    return wrong


def _towards_the_busy(right: Any) -> Any:
    """Balancing with the opposite sign."""

    def wrong(self: Any) -> None:
        before = getattr(self, "routing_bias", None)
        right(self)
        if before is not None:
            self.routing_bias = 2 * before - self.routing_bias

    return wrong


LLAMA: Changes = {
    # ---- rotary positions
    ("L1", "halves rotated as if interleaved"): lambda: replaced_entry(
        layers.ROTATIONS, "halves", layers.rotate_interleaved
    ),
    ("L1", "interleaved rotated as halves"): lambda: replaced_entry(
        layers.ROTATIONS, "interleaved", layers.rotate_halves
    ),
    ("L1", "rotary base off by a hundredth"): lambda: wrap(
        layers, "rotary_tables", lambda f: lambda c: f(dataclasses.replace(c, rope_theta=1.01 * c.rope_theta))
    ),
    ("G", "rotation restarts in the cache"): lambda: wrap(
        layers.Rotary, "angles", lambda f: lambda self, start, end: f(self, 0, end - start)
    ),
    ("S", f"rotation begins again at position {FAR}"): lambda: wrap(
        layers.Rotary,
        "angles",
        lambda f: (
            lambda self, start, end: tuple(
                mx.concatenate([table[:FAR], table[: max(0, end - FAR)]])[:end] if start == 0 else table
                for table in f(self, start, end)
            )
        ),
    ),
    # ---- norms, grouped queries, SwiGLU
    ("L1", "RMS norm takes the mean off"): lambda: wrap(
        mx.fast, "rms_norm", lambda f: lambda x, weight, eps: f(x - x.mean(axis=-1, keepdims=True), weight, eps)
    ),
    ("L1", "RMS norm eps 1e-6"): lambda: wrap(
        mx.fast, "rms_norm", lambda f: lambda x, weight, eps: f(x, weight, eps / 10)
    ),
    ("L1", "key heads shared in turn"): lambda: wrap(
        attention,
        "causal_attention",
        lambda f: lambda q, k, v, scale: f(q, _shared_in_turn(k, q.shape[1]), _shared_in_turn(v, q.shape[1]), scale),
    ),
    ("L2", "key heads shared in turn under dropout"): lambda: wrap(
        mx, "repeat", lambda _: lambda x, times, axis: _shared_in_turn(x, times * x.shape[axis])
    ),
    ("L2", "queries and keys not normalised"): lambda: _with(
        GroupedQueryAttention, "__call__", q_norm=lambda _: None, k_norm=lambda _: None
    ),
    ("L2", "queries and keys normalised after they rotate"): lambda: _with(
        GroupedQueryAttention, "__call__", rotate=_late_norm, q_norm=lambda _: None, k_norm=lambda _: None
    ),
    ("L2", "gate and up swapped"): lambda: _with(
        SwiGLU, "__call__", gate_proj=lambda self: self.up_proj, up_proj=lambda self: self.gate_proj
    ),
}

DEEPSEEK: Changes = {
    # ---- latents
    ("L2", "latent not normalised"): lambda: _with(LatentAttention, "__call__", kv_latent_norm=lambda _: lambda x: x),
    ("L2", "latent's norm with the model's epsilon"): lambda: wrap(attention, "LATENT_NORM_EPS", lambda eps: 10 * eps),
    ("L2", "rotary key for the first head only"): lambda: wrap(
        mx,
        "repeat",
        lambda f: (
            lambda x, times, axis: (
                f(x, times, axis) * (mx.arange(times) == 0)[:, None, None] if x.shape[axis] == 1 else f(x, times, axis)
            )
        ),
    ),
    ("L2", "rotary part from the wrong end of the query"): lambda: wrap(
        LatentAttention, "queries", lambda f: lambda self, x: _turned(f(self, x), self.n_head, self.rope)
    ),
    ("G", "the cache absorbs the values' projection into the queries"): lambda: wrap(
        Linear, "rows_of_heads", lambda f: lambda self, x: mx.roll(f(self, x), FAMILIES["deepseek"].nope_size, 1)
    ),
    # ---- experts
    ("L1", "gates not renormalised"): lambda: _routed(router_normalise=False),
    ("L1", "gates not scaled"): lambda: _routed(router_scale=1.0),
    ("L1", "balancing's bias in the gates"): lambda: _with(
        MixtureOfExperts,
        "route",
        score=lambda self: lambda x, right=self.score: right(x) + getattr(self, "routing_bias", 0),
        choice=lambda self: self.unbiased,
    ),
    ("L1", "softmax for sigmoid"): lambda: replaced_entry(experts.SCORES, "sigmoid", experts.SCORES["softmax"]),
    ("L1", "groups ignored"): lambda: wrap(experts, "best_groups", lambda _: experts.all_groups),
    ("L1", "two experts' weights swapped"): lambda: wrap(
        StackedLinear,
        "__call__",
        lambda f: lambda self, x, expert: f(self, x, mx.where(expert < 2, 1 - expert, expert)),
    ),
    ("L2", "experts' answers not weighted"): lambda: wrap(
        Experts, "__call__", lambda f: lambda self, x, gates, experts: f(self, x, 0 * gates + 1, experts)
    ),
    ("L2", "shared expert left out"): lambda: _with(
        MixtureOfExperts, "__call__", config=lambda self: dataclasses.replace(self.config, n_shared_expert=0)
    ),
    ("L6b", "balancing towards the busy"): lambda: wrap(MixtureOfExperts, "balance", _towards_the_busy),
    # ---- Muon
    ("L1", "Newton-Schulz by the cubic iteration"): lambda: replaced(optim, "NEWTON_SCHULZ", (1.5, -0.5, 0.0)),
    ("L1", "experts made orthogonal together"): lambda: wrap(
        optim, "orthogonal", lambda f: lambda x: f(x.reshape(-1, x.shape[-1])).reshape(x.shape)
    ),
    ("L6a", "Muon without Nesterov's step"): lambda: _muon(_plain_momentum),
    ("L6a", "Muon's update not scaled to the shape"): lambda: _muon(_unscaled),
    ("L6a", "Muon at the embedding too"): lambda: wrap(optim.AdamW, "apply_single", _everywhere),
}

CUSTOM_LLM: Changes = {
    ("G", "the cache's scores without their rotary part"): lambda: wrap(
        attention.Attention,
        "attend_latents",
        lambda f: lambda self, q, q_rope, latent, k_rope, *rest: f(self, q, 0 * q_rope, latent, k_rope, *rest),
    ),
    ("L5", "auxiliary loss left out"): lambda: wrap(
        experts.Routers, "counted", lambda f: lambda self, loss: (f(self, loss), loss)[1]
    ),
}

FAMILY_MUTANTS = (*mutants("llama", LLAMA), *mutants("deepseek", DEEPSEEK), *mutants("custom-llm", CUSTOM_LLM))
