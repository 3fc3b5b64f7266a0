"""Codes that make up for one another's rounding: GPTQ (Frantar et al. 2022, "GPTQ", algorithm 1), in numpy.

A matrix W is rounded input by input, and what an input loses is added to the inputs that are still to come, by as much
as both were correlated in a text: so that `W x` changes as little as it can. All of it in float64 from sums that are
float64 too, so that both twins find the same codes.

Shape suffixes: O outputs, I inputs, E experts, K inputs of a group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpt_common.adapting.quantisation import F32, Grid, Quantised, codes_of, packed, rounded_to, scales_and_biases

F64 = npt.NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it (section 3.3, "Cholesky reformulation")."""


def gptq(matrix: F32, moments: F64, grid: Grid, dtype: str = "float32", kept: Quantised | None = None) -> Quantised:
    """A matrix (O, I), or one for each expert (E, O, I), on a grid.

    Args:
        matrix: whole groups to a row.
        moments: (I, I) or (E, I, I), sums of `x x^T` over the inputs that a text gave it; of any scale.
        grid: which.
        dtype: in which scales and biases will be kept.
        kept: a matrix whose scales and biases it gets; otherwise each group has its own.
    """
    if matrix.ndim == 2:
        return _gptq(matrix, moments, grid, dtype, kept)
    experts = range(len(matrix))
    each = [None if kept is None else _expert(kept, e) for e in experts]
    parts = [_gptq(matrix[e], moments[e], grid, dtype, each[e]) for e in experts]
    stacks = ([getattr(part, name) for part in parts] for name in ("words_XW", "scales_XG", "biases_XG"))
    return Quantised(grid, *(np.stack(stack) for stack in stacks))


def _expert(kept: Quantised, number: int) -> Quantised:
    return Quantised(kept.grid, kept.words_XW[number], kept.scales_XG[number], kept.biases_XG[number])


def _gptq(matrix_OI: F32, moments_II: F64, grid: Grid, dtype: str, kept: Quantised | None) -> Quantised:
    outputs, inputs = matrix_OI.shape
    rest_OI = matrix_OI.astype(np.float64)
    spread_II = _spread(moments_II)
    codes_OI = np.empty((outputs, inputs), np.uint8)
    groups = inputs // grid.group_size
    scales_OG, biases_OG = (np.empty((outputs, groups), np.float32) for _ in range(2))
    for group in range(groups):
        first, last = group * grid.group_size, (group + 1) * grid.group_size
        if kept is None:
            # With the scale that will be there: what its rounding loses is made up for too.
            own = scales_and_biases(rest_OI[:, first:last].astype(np.float32), grid)
            scale, bias = (rounded_to(dtype, part) for part in own)
        else:
            scale, bias = kept.scales_XG[:, group], kept.biases_XG[:, group]
        scales_OG[:, group], biases_OG[:, group] = scale, bias
        errors_OK = np.empty((outputs, grid.group_size))
        for i in range(first, last):
            column_O = rest_OI[:, i]
            codes_OI[:, i] = code = codes_of(column_O.astype(np.float32), scale, bias, grid)
            error_O = (column_O - (code * scale + bias)) / spread_II[i, i]
            rest_OI[:, i + 1 : last] -= np.outer(error_O, spread_II[i, i + 1 : last])
            errors_OK[:, i - first] = error_O
        rest_OI[:, last:] -= errors_OK @ spread_II[first:last, last:]
    return Quantised(grid, packed(codes_OI, grid.bits), scales_OG, biases_OG)


def _spread(moments_II: F64) -> F64:
    """The upper Cholesky factor of the inverse: its row i says what is added where when input i is rounded."""
    damped = moments_II.copy()
    diagonal = np.einsum("ii->i", damped)
    diagonal += DAMPING * diagonal.mean() or 1.0  # a matrix that no token reached is rounded as it is
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)
