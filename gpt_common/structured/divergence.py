"""What a form costs: how far the tokens that it leaves are from what a model would have said."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

AT_ONCE, LARGEST = 32, 1 << 12
"""Tokens whose divergences are found together, and the vocabulary up to which they are: for a small one numpy takes as
long for one token as for many, and rows of a large one would take room."""


class Divergence:
    """KL divergences, nats, of distributions that are cut to some of their tokens from the whole ones, added up.

    Within the cut both have the same proportions, so each is -log of the probability that lies in it.
    """

    def __init__(self) -> None:
        self._settled = 0.0
        self._rows: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]] = []

    def add(self, logits_V: npt.NDArray[np.float32], allowed: npt.NDArray[np.intp]) -> None:
        """One more token.

        Args:
            logits_V: (V,) float32, which nobody may change afterwards.
            allowed: ids of the tokens that are left.
        """
        self._rows.append((logits_V, allowed))
        if len(self._rows) == AT_ONCE or len(logits_V) > LARGEST:
            self._settle()

    @property
    def nats(self) -> float:
        """Their sum."""
        self._settle()
        return self._settled

    def _settle(self) -> None:
        if not self._rows:
            return
        scores_NV = np.stack([logits_V for logits_V, _ in self._rows])
        scores_NV -= scores_NV.max(axis=1, keepdims=True)
        shares_NV = np.exp(scores_NV)
        # Added up in float64: of 50 thousand tokens a cut by a single one is still told.
        whole_N = shares_NV.sum(axis=1, dtype=np.float64).tolist()
        for row, ((_, allowed), whole) in enumerate(zip(self._rows, whole_N, strict=True)):
            if len(allowed) == 1:  # exact however far outside
                self._settled += math.log(whole) - scores_NV.item(row, allowed[0])
                continue
            inside = float(np.add.reduce(shares_NV[row, allowed], dtype=np.float64))
            if inside > 1e-30:
                self._settled += max(0.0, math.log(whole / inside))
            else:  # too far outside for a float32
                scores = scores_NV[row, allowed].astype(np.float64)
                self._settled += math.log(whole) - float(scores.max() + np.log(np.exp(scores - scores.max()).sum()))
        self._rows = []
