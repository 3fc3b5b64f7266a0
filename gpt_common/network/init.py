"""Initial weights: one source for both twins.

Initial weights are drawn by numpy, keyed by the seed and the tensor's name, so both twins start from identical
bytes on every machine, and adding a layer changes no other layer's weights.

| tensor                                        | shape                        | initial value                     |
|-----------------------------------------------|------------------------------|-----------------------------------|
| token_embedding, position_embedding           | (V, D), (T, D)               | normal, std 0.02                  |
| every other matrix, (out, in)                 | see below                    | normal, std 0.02                  |
| stacked matrices of experts, (expert, out, in)| see below                    | normal, std 0.02                  |
| out_proj, down_proj (feed the residual)       | (D, H K), (D, F)             | normal, std 0.02 / sqrt(2 n_layer)|
| norms                                         | (D,), or the width they norm | one                               |
| biases                                        | (out,)                       | zero                              |
| routing_bias (no gradient: a buffer)          | (E,)                         | zero                              |

The residual scaling is GPT-2's (Radford et al. 2019, section 2.3), as in nanoGPT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes

INIT_STD = 0.02


def initial_weights(model: ModelConfig, seed: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and initial value of every parameter, one at a time so that memory holds one tensor."""
    for name, shape in parameter_shapes(model).items():
        if name.endswith(".bias"):
            yield name, np.zeros(shape, np.float32)
        elif "norm" in name:
            yield name, np.ones(shape, np.float32)
        else:
            std = INIT_STD
            if name.endswith(("out_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * model.n_layer)
            yield name, keyed_generator(seed, name).standard_normal(shape, np.float32) * np.float32(std)
