"""Calibration against the truth: what a model says of the next character beside what the grammar says of it.

A model sees no further back than its block, and the truth knows the whole story. Calibration allows for that: of all
places at which a well calibrated model says 30 %, the mean of the true probabilities is 30 %, whatever it does not see.

Shapes: `N` places, `A` characters of the stories, `V` rows of the model's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpt_common.data.stories import ALPHABET, END
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.judging.comparison import WIDE, ratio
from gpt_common.judging.probes.truth import truth
from gpt_common.judging.scoring import Scorer

Doubles = npt.NDArray[np.float64]

EDGES = (0.0, 0.001, 0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99, 0.999, 1.0)
"""Of the bins of predicted probability: narrow at both ends, where most predictions are."""
CONFIDENCE_BINS = 15
"""Bins of equal width for the expected calibration error, as Guo et al. 2017 take them."""
ROWS = 16
"""Windows that are read together."""
MOST_NUMBERS = 1 << 23
"""Logits that are kept: with a large vocabulary fewer places are looked at."""
LARGE = 0.05
"""Logits that are so much too large or too small are named. The divergence that a wrong scale costs grows with its
square: below this it is a few thousandths of a nat, and no temperature is set that finely."""


@dataclass(frozen=True)
class Bin:
    """Predictions of about one probability."""

    predicted: float
    """Mean probability that the model gave."""
    true: float
    """Mean probability that the grammar gives the same characters at the same places."""
    count: int
    """How many predictions, each a place and a character."""


@dataclass(frozen=True)
class Calibration:
    """A model's distributions beside the true ones, over held-out stories."""

    stories: int
    characters: int
    """Places that were looked at."""
    bins: tuple[Bin, ...]
    """Reliability: those with predictions, from the lowest probability up."""
    expected_calibration_error: float
    """Of the likeliest character: mean distance of its probability to the true one, bin by bin."""
    misplaced: float
    """Of all characters: share of the probability that stands in the wrong bin of `bins`."""
    loss: float
    """Cross entropy under the true distribution, nats per character."""
    entropy: float
    """Of the truth: the lowest loss possible, nats per character."""
    divergence: float
    """Kullback-Leibler divergence of the model from the truth, nats per character: loss less entropy."""
    error: float
    """Standard error of the divergence over stories."""
    scale: float
    """How many times too large the logits are: 1 over the factor that makes the divergence least."""
    scale_interval: tuple[float, float]
    """Of 95 %, from how much stories differ."""
    mended: float
    """Divergence with all logits divided by `scale`, nats per character."""
    verdict: str
    """`overconfident`, `underconfident` or `calibrated`."""


def calibration(told: Sequence[str], tokenizer: Tokenizer, scorer: Scorer) -> Calibration:
    """Ask a model with a vocabulary of characters.

    Args:
        told: held-out stories, each with its end.
    """
    stories, predicted_NV = _predictions(told, tokenizer, scorer)
    true_NA = truth("".join(stories), ALPHABET)
    columns = np.array([tokenizer.encode(character)[0] for character in ALPHABET])
    true_NV = np.zeros_like(predicted_NV)
    true_NV[:, columns] = true_NA
    story_N = np.repeat(np.arange(len(stories)), [len(story) for story in stories])
    return compared(predicted_NV, true_NV, story_N)


def compared(logits_NV: Doubles, true_NV: Doubles, story_N: npt.NDArray[np.integer]) -> Calibration:
    """Logits beside true probabilities.

    Args:
        story_N: the number of the story that each place is in: places of one story are not independent.
    """
    log_NV = log_softmax(logits_NV)
    predicted_NV = np.exp(log_NV)
    surprise_NV = -np.log(np.where(true_NV > 0, true_NV, 1.0))
    entropy = float((true_NV * surprise_NV).sum(axis=1).mean())
    loss = _loss(log_NV, true_NV)
    divergence_N = (np.where(true_NV > 0, true_NV * (-log_NV - surprise_NV), 0.0)).sum(axis=1)
    _, number_N = np.unique(story_N, return_inverse=True)
    factor, error = fitted_factor(logits_NV, true_NV, story_N)
    mended = _loss(log_softmax(logits_NV * factor), true_NV)
    low, high = (
        1 / (factor + WIDE * error),
        1 / max(factor - WIDE * error, 1e-6),
    )
    return Calibration(
        stories=int(number_N.max()) + 1,
        characters=len(logits_NV),
        bins=_reliability(predicted_NV, true_NV),
        expected_calibration_error=_expected_error(predicted_NV, true_NV),
        misplaced=_misplaced(predicted_NV, true_NV),
        loss=loss,
        entropy=entropy,
        divergence=float(divergence_N.mean()),
        error=ratio(np.bincount(number_N, divergence_N), np.bincount(number_N)).error,
        scale=1 / factor,
        scale_interval=(low, high),
        mended=mended - entropy,
        verdict="overconfident" if low > 1 + LARGE else "underconfident" if high < 1 - LARGE else "calibrated",
    )


def fitted_factor(logits_NV: Doubles, true_NV: Doubles, story_N: npt.NDArray[np.integer]) -> tuple[float, float]:
    """The factor on all logits that makes the divergence from the truth least, and its standard error.

    The loss is convex in it. The error is the sandwich estimate, with stories as what is independent.
    """
    factor = 1.0
    for _ in range(50):
        slope_N, curvature_N = _derivatives(logits_NV, true_NV, factor)
        curvature = float(curvature_N.sum())
        if curvature <= 0:  # the same logit everywhere: no factor changes anything
            return 1.0, math.inf
        # At most by half at once: far from the minimum the curvature says little.
        step = float(np.clip(-slope_N.sum() / curvature, -0.5 * factor, factor))
        factor += step
        if abs(step) < 1e-9 * factor or factor > 1e3 or factor < 1e-3:
            break
    slope_N, curvature_N = _derivatives(logits_NV, true_NV, factor)
    by_story = np.bincount(story_N, slope_N)
    return factor, math.sqrt(float(by_story @ by_story)) / float(curvature_N.sum())


def _derivatives(logits_NV: Doubles, true_NV: Doubles, factor: float) -> tuple[Doubles, Doubles]:
    """First and second derivative by the factor of the loss at each place."""
    predicted_NV = np.exp(log_softmax(logits_NV * factor))
    mean_N = (predicted_NV * logits_NV).sum(axis=1)
    slope_N = mean_N - (true_NV * logits_NV).sum(axis=1)
    curvature_N = (predicted_NV * (logits_NV - mean_N[:, None]) ** 2).sum(axis=1)
    return slope_N, curvature_N


def log_softmax(logits_NV: Doubles) -> Doubles:
    """Log probabilities, nats."""
    shifted = logits_NV - logits_NV.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _loss(log_NV: Doubles, true_NV: Doubles) -> float:
    return -float(np.where(true_NV > 0, true_NV * log_NV, 0.0).sum(axis=1).mean())


def _reliability(predicted_NV: Doubles, true_NV: Doubles) -> tuple[Bin, ...]:
    found = []
    for low, high in pairwise(EDGES):
        inside = (predicted_NV >= low) & ((predicted_NV < high) | (high == 1.0))
        if count := int(inside.sum()):
            found.append(Bin(float(predicted_NV[inside].mean()), float(true_NV[inside].mean()), count))
    return tuple(found)


def _misplaced(predicted_NV: Doubles, true_NV: Doubles) -> float:
    bins = _reliability(predicted_NV, true_NV)
    return sum(abs(found.predicted - found.true) * found.count for found in bins) / 2 / len(predicted_NV)


def _expected_error(predicted_NV: Doubles, true_NV: Doubles) -> float:
    places, likeliest_N = np.arange(len(predicted_NV)), predicted_NV.argmax(axis=1)
    confidence_N, true_N = predicted_NV[places, likeliest_N], true_NV[places, likeliest_N]
    bin_N = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bin_N, confidence_N - true_N, minlength=CONFIDENCE_BINS)
    return float(np.abs(gaps).sum()) / len(predicted_NV)


def _predictions(told: Sequence[str], tokenizer: Tokenizer, scorer: Scorer) -> tuple[list[str], Doubles]:
    """As many of the stories as are looked at, and the logits (N, V) of every character of them.

    Windows overlap by half, so that no character but the first few is predicted from less than half a block.
    """
    stories: list[str] = []
    block_size, width, rows = scorer.block_size, scorer.vocab_size, list[Doubles]()
    stride = max(1, block_size // 2)
    for story in told:
        if stories and (sum(map(len, stories)) + len(story)) * width > MOST_NUMBERS:
            break
        stories.append(story)
    ids = np.array(tokenizer.encode(END + "".join(stories)), np.int32)
    first = len(END)  # the place of the first character that is predicted
    starts = range(0, max(1, len(ids) - 1 - block_size + stride), stride)
    whole = [start for start in starts if start + block_size < len(ids)]
    for group in range(0, len(whole), ROWS):
        windows = np.stack([ids[start : start + block_size] for start in whole[group : group + ROWS]])
        for start, said in zip(whole[group : group + ROWS], scorer.logits(windows), strict=True):
            begin = 0 if start == 0 else block_size - stride
            rows.append(said[begin:].astype(np.float64))
    done = sum(map(len, rows))
    if done < len(ids) - 1:  # what no whole window reached
        start = max(0, len(ids) - 1 - block_size)
        said = scorer.logits(ids[None, start:-1])[0]
        rows.append(said[done - start :].astype(np.float64))
    return stories, np.concatenate(rows)[first - 1 :]
