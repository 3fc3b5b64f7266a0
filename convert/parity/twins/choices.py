"""What routers choose: near ties, in which rounding decides, are told from choices that must agree.

A router is discontinuous: where two experts' scores tie within rounding, two right twins may send a token to different
experts, and from there on nothing is equal. So numbers are compared given the choices, and choices on their own: in
every pass all twins follow the preferences of one of them, and none may prefer other experts where that one's lead is
clear.

Shape suffixes: N tokens, E experts, G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convert.parity.compare import Array, Measurement, relative
from gpt_common.config import ModelConfig
from gpt_common.keyed import keyed_generator

Choices = list[Array]
"""What routers prefer, (N, E) per call: scores with what balancing adds, before groups and the best are taken."""
CLEAR_LEAD = 10.0
"""A choice must agree wherever it leads by more than this many times the error of the scores, as in L3."""


@dataclass
class Preferences:
    """The calls of a model's routers in order."""

    given: Choices | None = None
    """Choose by these instead; in the same order."""
    own: Choices = field(default_factory=list)
    """What the routers preferred themselves."""
    _last: dict[int, int] = field(default_factory=dict)

    def decide(self, router: Any, own_NE: Array) -> Array:
        """Note what a router prefers; returns what it shall prefer."""
        last = self._last.get(id(router))
        # A block that is recomputed in the backward pass asks its router again, and the answer is the same.
        if last is None or not np.array_equal(self.own[last], own_NE):
            last = self._last[id(router)] = len(self.own)
            self.own.append(own_NE)
        return own_NE if self.given is None else self.given[last]


def routing_bias(model: ModelConfig) -> Array:
    """What balancing adds in L1, (E,): enough to change some choices."""
    bias_E = keyed_generator(0, "routing bias").standard_normal(model.n_expert, np.float32) * np.float32(0.1)
    return np.asarray(bias_E, np.float32)


def chosen(preferred_NE: Array, model: ModelConfig) -> tuple[Array, Array]:
    """Which experts each token goes to, (N, E) booleans, and by how much each choice leads, (N,).

    The lead is the least error of all scores that changes the choice: of two groups, or of two experts.
    """
    exact_NE = preferred_NE.astype(np.float64)
    groups_NGE = exact_NE.reshape(len(exact_NE), model.n_expert_group, -1)
    lead_N = np.full(len(exact_NE), np.inf)
    if model.n_expert_group > 1:
        strength_NG = np.sort(groups_NGE, axis=-1)[..., -2:].sum(axis=-1)
        best_NG, lead_N = _best(strength_NG, model.groups_per_token)
        exact_NE = np.where(best_NG[..., None], groups_NGE, -np.inf).reshape(exact_NE.shape)
        lead_N = lead_N / 2  # a group's strength is the sum of two scores
    best_NE, expert_lead_N = _best(exact_NE, model.experts_per_token)
    return best_NE, np.minimum(lead_N, expert_lead_N)


def _best(scores_NE: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest of each row, and how far they are ahead of the next."""
    order_NE = np.argsort(-scores_NE, axis=-1, kind="stable")
    best_NE = np.zeros(scores_NE.shape, bool)
    np.put_along_axis(best_NE, order_NE[:, :count], True, axis=-1)
    if count >= scores_NE.shape[1]:
        return best_NE, np.full(len(scores_NE), np.inf)
    sorted_NE = np.take_along_axis(scores_NE, order_NE, axis=-1)
    return best_NE, sorted_NE[:, count - 1] - sorted_NE[:, count]


def parted(own: Choices, followed: Choices, model: ModelConfig) -> tuple[int, int]:
    """How many tokens would have gone elsewhere, and how many of them against a clear lead."""
    elsewhere = against = 0
    for own_NE, followed_NE in zip(own, followed, strict=True):
        error = float(np.abs(own_NE.astype(np.float64) - followed_NE).max())
        (mine_NE, _), (theirs_NE, lead_N) = chosen(own_NE, model), chosen(followed_NE, model)
        other_N = (mine_NE != theirs_NE).any(axis=-1)
        elsewhere += int(other_N.sum())
        # NaN is no excuse.
        against += int((other_N & ~(lead_N <= CLEAR_LEAD * error)).sum()) + int(np.isnan(own_NE).any())
    return elsewhere, against


def choice_gates(
    own: Mapping[str, Choices], model: ModelConfig, gate: float | None, state: str = ""
) -> Iterator[Measurement]:
    """Routers prefer alike, and no token goes elsewhere where its experts lead clearly.

    Args:
        own: what the routers of every twin preferred while all followed the first; empty without routers.
        gate: largest relative distance of the preferences: they are scores, and what they are off by excuses a choice.
            None along a trajectory, where other gates bound how far twins drift.
    """
    leader, *others = own
    for name in others:
        if not own[name] or not own[leader]:
            continue
        between = f"{name} ~ {leader}"
        if gate is not None:
            for call, (found, wanted) in enumerate(zip(own[name], own[leader], strict=True)):
                error, tensor = relative(found, wanted), f"preferences of router {call}"
                yield Measurement(tensor=tensor, error=error, gate=gate, between=between, state=state)
        elsewhere, against = parted(own[name], own[leader], model)
        tensor = f"experts chosen against a clear lead ({elsewhere} near ties)"
        yield Measurement(tensor=tensor, error=float(against), gate=0.0, between=between, state=state)


def for_cache(followed: Choices, batch: int, length: int) -> Choices:
    """The preferences of a whole pass in the order in which `Twin.cached_logits` asks for them."""
    half = max(1, length // 2)
    parts = itertools.pairwise([0, *range(half, length + 1)])
    return [
        preferred.reshape(batch, length, -1)[:, start:end].reshape(batch * (end - start), -1)
        for start, end in parts
        for preferred in followed
    ]
