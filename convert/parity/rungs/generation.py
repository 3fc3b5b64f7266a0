"""Generation: the key-value cache, greedy text, and sampled text from one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from convert.parity import material
from convert.parity.climb import ORACLE, Climb
from convert.parity.compare import Array, Measurement
from convert.parity.twins.choices import choice_gates, for_cache
from gpt_common.commands import SampleSettings
from gpt_common.keyed import draws
from gpt_common.sampling import shares, window

SAMPLINGS = {
    "temperature 1": SampleSettings(temperature=1.0),
    "temperature 0.8, top-k 20": SampleSettings(temperature=0.8, top_k=20),
    "temperature 0.8, top-p 0.9": SampleSettings(temperature=0.8, top_p=0.9),
}


def rung_generation(climb: Climb) -> Iterator[Measurement]:
    """Logits from the cache equal the full pass's; greedy texts are equal, sampled ones but for draws on an edge."""
    config = climb.config
    tokens = material.batches(config, 1)[0].tokens
    gate = climb.gate("L3")
    twins = climb.twins()
    for state, weights in climb.states().items():
        twins = climb.loaded(weights)
        with twins[ORACLE].choosing() as whole:
            found = {ORACLE: {"logits from the cache": twins.pop(ORACLE).logits(tokens)}}
        own = {ORACLE: for_cache(whole, *tokens.shape)}
        for name, twin in twins.items():
            with twin.choosing(own[ORACLE] or None) as own[name]:
                found[name] = {"logits from the cache": twin.cached_logits(tokens)}
        yield from choice_gates(own, config.model, None, state)
        yield from climb.compare(found, gate, state)

    # The last state is the one that has learnt something, or looks as if.
    prompt = tokens[0, : max(1, config.model.block_size // 4)].tolist()
    for label, settings in {"greedy": SampleSettings(temperature=0), **SAMPLINGS}.items():
        settings = dataclasses.replace(settings, max_new_tokens=climb.tokens)
        texts = {}
        for done, (name, twin) in enumerate(twins.items()):
            climb.progress(f"text, {label}, {name}", done, len(twins))
            texts[name] = twin.generate(prompt, settings, draws(config.train.seed, 0))
        for name in climb.names[1:]:
            between = f"{name} ~ {climb.reference}"
            different = _first_difference(texts[name], texts[climb.reference])
            # Greedy texts have no excuse in float32; with coarser numbers two tokens may tie.
            if different is not None and (label != "greedy" or climb.precision != "strict"):
                different = None if _on_an_edge(climb, name, prompt, texts, different, settings) else different
            same = climb.tokens if different is None else different
            tensor = f"{label}: tokens that differ after {same} equal ones"
            yield Measurement(tensor=tensor, error=float(climb.tokens - same), gate=0, between=between, state=state)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def _seen(prompt: int, position: int, block_size: int) -> int:
    """How many tokens the model sees when it chooses new token `position`: the cache is begun anew when it is full."""
    held, fresh = 0, len(window(range(prompt), block_size))
    for chosen in range(position + 1):
        if held + fresh > block_size:
            held, fresh = 0, len(window(range(prompt + chosen), block_size))
        held, fresh = held + fresh, 1
    return held


def _on_an_edge(
    climb: Climb, name: str, prompt: Sequence[int], texts: dict[str, list[int]], position: int, settings: SampleSettings
) -> bool:
    """Whether the choice at `position` lay so near a boundary between two tokens that rounding decides.

    The boundaries of both backends lie apart by as much as their logits differ, and no more.
    """
    context = [*prompt, *texts[climb.reference][:position]]
    shown = np.array([context[-_seen(len(prompt), position, climb.config.model.block_size) :]], np.int32)
    logits: dict[str, Array] = {n: climb.twins()[n].logits(shown)[0, -1] for n in (name, climb.reference)}
    exact = climb.oracle().logits(shown)[0, -1]
    error = max(float(np.abs(values - exact).max()) for values in logits.values())
    if settings.temperature == 0:
        first, second = np.sort(exact)[::-1][:2]
        return bool(first - second <= 2 * error)
    stream = draws(climb.config.train.seed, 0)
    draw = [next(stream) for _ in range(position + 1)][-1]
    scores = exact / settings.temperature
    # A shift of every logit by at most `error` moves a boundary by at most this.
    reach = 2 * error / settings.temperature
    likeliest = np.sort(scores)[::-1]
    if 0 < settings.top_k < len(scores) and likeliest[settings.top_k - 1] - likeliest[settings.top_k] <= reach:
        return True  # which is the last one that counts
    if settings.top_p < 1:
        weights = np.exp(likeliest[: settings.top_k or None] - likeliest[0])
        if float(np.abs(np.cumsum(weights / weights.sum()) - settings.top_p).min()) <= reach:
            return True
    _, cumulative = shares(scores, settings)
    return float(np.abs(cumulative / cumulative[-1] - draw).min()) <= reach
