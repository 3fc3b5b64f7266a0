"""Where adapters sit, what their tensors are called, and their values before training.

| tensor           | shape, of a matrix (O, I)  | initial value                                              |
|------------------|----------------------------|------------------------------------------------------------|
| NAME.lora_a      | (R, I), experts: (E, R, I) | uniform in +-1/sqrt(I), keyed by the seed and its name     |
| NAME.lora_b      | (O, R), experts: (E, O, R) | zero: a run begins as the model that it adapts             |
| NAME.magnitude   | (O), DoRA only             | length of each row of the matrix (Liu et al. 2024, eq. 4)  |

LoRA: Hu et al. 2021, section 4.1. The first value of A is peft's and mlx-lm's too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt_common.adapting.configuration import AdapterConfig, pattern
from gpt_common.errors import UserError, nearest
from gpt_common.keyed import keyed_generator

Shapes = Mapping[str, tuple[int, ...]]
ADAPTER_TENSORS = ("lora_a", "lora_b", "magnitude")
"""What the tensors of an adapter are called, behind the name of its layer."""
WHOLE = ("token_embedding", "position_embedding", "final_norm", "head")
"""What may be trained whole."""


@dataclass(frozen=True)
class Placed:
    """One adapter."""

    name: str
    """Of the layer whose matrix it stands beside."""
    shape: tuple[int, ...]
    """Of that matrix: (O, I), or (E, O, I) of experts."""
    rank: int
    alpha: float
    scale: float
    """What its product is multiplied by."""
    number: int
    """Among all adapters, in execution order; dropout has a site for each."""


def placed(shapes: Shapes, config: AdapterConfig) -> list[Placed]:
    """Every adapter, in execution order; none where the configuration has none.

    Args:
        shapes: of the network's parameters by name.

    Raises:
        UserError: a name that no matrix has, more layers than there are, an adapter that cannot sit there.
    """
    if not config.adapts:
        return []
    matrices = _matrices(shapes)
    layers = 1 + max(_layer(name) for name in matrices)
    if config.adapter_layers > layers:
        raise UserError(f"adapter_layers is {config.adapter_layers}, and the model has {layers} blocks")
    first = layers - config.adapter_layers if config.adapter_layers else 0
    for target in config.adapter_targets:
        if target != "all":
            _check_name(target, matrices, "adapter_targets")
    chosen = [name for name in matrices if _layer(name) < 0 or _layer(name) >= first]
    chosen = [name for name in chosen if any(_is_meant(name, target) for target in config.adapter_targets)]
    if not chosen:
        raise UserError(
            f"none of the adapter_targets lies in the last {config.adapter_layers} blocks: take more blocks"
        )
    ranks, alphas = (_by_matrix(field, config, chosen, matrices) for field in ("adapter_ranks", "adapter_alphas"))
    found = []
    for number, name in enumerate(chosen):
        shape, rank = matrices[name], int(ranks.get(name, config.adapter_rank))
        if config.adapter == "dora" and len(shape) == 3:
            raise UserError(f"DoRA has no form for the stacked experts of {name}: take LoRA, or other adapter_targets")
        alpha = alphas.get(name, config.adapter_alpha)
        found.append(Placed(name, shape, rank, alpha, config.scale(rank, alpha), number))
    return found


def check_ranks(shapes: Shapes, config: AdapterConfig) -> None:
    """Refuse a rank that no change of a matrix has: more than its smaller side trains numbers for nothing.

    For an adapter that begins; one from elsewhere may have such ranks, and is taken as it is.

    Raises:
        UserError: names the smallest such matrix, and its largest rank.
    """
    too_high = [one for one in placed(shapes, config) if one.rank > min(one.shape[-2:])]
    if too_high:
        one = min(too_high, key=lambda one: min(one.shape[-2:]))
        outputs, inputs = one.shape[-2:]
        raise UserError(
            f"adapter_rank is {one.rank}, and {one.name} is {outputs} x {inputs}: its rank is at most "
            f"{min(outputs, inputs)} (--adapter-ranks {one.name.rpartition('.')[2]}=N for it alone)"
        )


def trained_whole(shapes: Shapes, config: AdapterConfig) -> list[str]:
    """The tensors of the model itself that a run with an adapter trains.

    Raises:
        UserError: a name that the model does not have, or an adapter beside it.
    """
    found = []
    for name in config.adapter_whole:
        there = [whole for whole in WHOLE if f"{whole}.weight" in shapes]
        if name not in there:
            raise UserError(f"adapter_whole: the model has no {name!r:.80} to train whole: {nearest(name, there)}")
        if any(one.name == name for one in placed(shapes, config)):
            raise UserError(f"{name} is trained whole and has an adapter: leave it out of one of the two")
        found += [tensor for tensor in shapes if tensor.startswith(f"{name}.")]
    return [tensor for tensor in shapes if tensor in found]


def adapter_shapes(shapes: Shapes, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Shape of everything that a run with an adapter trains, and of all that its checkpoints hold."""
    there: dict[str, tuple[int, ...]] = {}
    for one in placed(shapes, config):
        *experts, outputs, inputs = one.shape
        there[f"{one.name}.lora_a"] = (*experts, one.rank, inputs)
        there[f"{one.name}.lora_b"] = (*experts, outputs, one.rank)
        if config.adapter == "dora":
            there[f"{one.name}.magnitude"] = (outputs,)
    return there | {name: tuple(shapes[name]) for name in trained_whole(shapes, config)}


def initial_adapters(
    shapes: Shapes, config: AdapterConfig, seed: int, base: Callable[[str], npt.NDArray[np.float32]]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and initial value of every adapter's tensors, one at a time.

    Args:
        base: the frozen matrix of a layer's name.

    Raises:
        UserError: DoRA beside a row of zeros, which has no direction.
    """
    for one in placed(shapes, config):
        *experts, outputs, inputs = one.shape
        name, bound = f"{one.name}.lora_a", np.float32(1 / math.sqrt(inputs))
        drawn = keyed_generator(seed, name).random((*experts, one.rank, inputs), np.float32)
        yield name, (2 * drawn - 1) * bound
        yield f"{one.name}.lora_b", np.zeros((*experts, outputs, one.rank), np.float32)
        if config.adapter == "dora":
            lengths = row_lengths(base(one.name))
            if not lengths.all():
                raise UserError(
                    f"row {int(lengths.argmin())} of {one.name} is zero in the base, and DoRA stretches rows: take "
                    "LoRA, or other adapter_targets"
                )
            yield f"{one.name}.magnitude", lengths


def row_lengths(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Length of each row of a matrix (O, I): (O), summed in float64."""
    lengths: npt.NDArray[np.float32] = np.sqrt(np.square(matrix, dtype=np.float64).sum(axis=-1)).astype(np.float32)
    return lengths


def block_of(name: str, blocks: int) -> int:
    """Number of the block of a tensor; -1 of what comes before the first, `blocks` of what comes behind the last."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return -1 if "embedding" in name else blocks


def _matrices(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shape of every layer that an adapter can stand beside, by name."""
    return {
        name.removesuffix(".weight"): tuple(shape)
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) >= 2 and "embedding" not in name
    }


def _layer(name: str) -> int:
    """Number of the block that a layer is in; -1 outside."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _is_meant(name: str, target: str) -> bool:
    """Whether a target means a layer. `all` leaves out the head and routers: neither peft nor mlx-lm adapts them."""
    if target == "all":
        return _layer(name) >= 0 and not name.endswith(".router")
    return name == target or name.endswith(f".{target}")


def _check_name(target: str, matrices: Mapping[str, tuple[int, ...]], field: str) -> None:
    if any(_is_meant(name, target) for name in matrices):
        return
    ends = {".".join(name.split(".")[-1 - target.count(".") :]) for name in matrices}
    hint = nearest(target, ends) if len(target) < 200 else "names are shorter"
    raise UserError(f"{field}: no matrix of this model is called {target!r:.80}: {hint}")


def _by_matrix(
    field: str, config: AdapterConfig, chosen: list[str], matrices: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """A number by layer, for those that have one of their own; a longer name goes before a shorter one."""
    found: dict[str, float] = {}
    for target, value in sorted(pattern(field, getattr(config, field)).items(), key=lambda entry: len(entry[0])):
        _check_name(target, matrices, field)
        if not any(_is_meant(name, target) for name in chosen):
            raise UserError(
                f"{field}: {target!r:.80} has no adapter: name it among the adapter_targets, or leave it out"
            )
        found |= {name: value for name in chosen if _is_meant(name, target)}
    return found
