"""Parameter names, shapes and initial weights: one source for both twins.

Initial weights are drawn by numpy, keyed by the seed and the tensor's name, so both twins start from identical
bytes on every machine, and adding a layer changes no other layer's weights.

| tensor                                  | shape (out, in)        | initial value                           |
|-----------------------------------------|------------------------|-----------------------------------------|
| token_embedding, position_embedding     | (V, D), (T, D)         | normal, std 0.02                        |
| qkv_proj, up_proj, untied head          | (3D, D) (4D, D) (V, D) | normal, std 0.02                        |
| out_proj, down_proj (feed the residual) | (D, D), (D, 4D)        | normal, std 0.02 / sqrt(2 n_layer)      |
| norms                                   | (D,)                   | one                                     |
| biases                                  | (out,)                 | zero                                    |

The residual scaling is GPT-2's (Radford et al. 2019, section 2.3), as in nanoGPT.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig

INIT_STD = 0.02


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its canonical name, in execution order."""
    V, T, D = model.vocab_size, model.block_size, model.n_embd
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (V, D), "position_embedding.weight": (T, D)}

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (D,)
        if model.bias:
            shapes[f"{name}.bias"] = (D,)

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for i in range(model.n_layer):
        norm(f"blocks.{i}.attention_norm")
        linear(f"blocks.{i}.attention.qkv_proj", 3 * D, D, model.bias)
        linear(f"blocks.{i}.attention.out_proj", D, D, model.bias)
        norm(f"blocks.{i}.feed_forward_norm")
        linear(f"blocks.{i}.feed_forward.up_proj", 4 * D, D, model.bias)
        linear(f"blocks.{i}.feed_forward.down_proj", D, 4 * D, model.bias)
    norm("final_norm")
    if not model.tied_head:
        linear("head", V, D, model.head_bias)
    return shapes


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


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream depends on `key` alone: Philox keyed with the key's SHA-256."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
