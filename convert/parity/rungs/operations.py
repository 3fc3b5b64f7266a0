"""L0, bytes, and L1, operations: what does not need a whole model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from convert.parity import material
from convert.parity.climb import ORACLE, Climb
from convert.parity.compare import Array, Arrays, Measurement
from convert.parity.twins.twin import LayerPass, Operation
from gpt_common.config import ModelConfig
from gpt_common.keyed import dropout_key, keyed_generator
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import buffer_shapes
from gpt_common.training.checkpoint import validate
from gpt_common.training.manifest import OPTIMIZER_FILE, Hashes, tensor_hashes

LONG_SUMS = (32766, 32767, 32768, 50257, 50304)
"""Lengths around 2**15, and GPT-2's vocabulary with and without padding: where sums went wrong on MPS (pytorch#195163).
Both other dimensions are at least 16, as that bug needs."""
LARGE_VOCABULARY = 49_152
"""SmolLM2's."""

_MIXTURE = ModelConfig(n_embd=48, feed_forward="moe", n_expert=8, experts_per_token=2, expert_width=16)
ROUTERS = {
    "softmax": _MIXTURE,
    "sigmoid, groups, bias": dataclasses.replace(
        _MIXTURE, router="sigmoid", n_expert_group=4, groups_per_token=2, balancing="bias", router_scale=2.5
    ),
    "not renormalised": dataclasses.replace(_MIXTURE, router_normalise=False, n_expert=7),
}
"""What a router can do, in as few as will do."""


def rung_bytes(climb: Climb) -> Iterator[Measurement]:
    """The same initial bytes; a checkpoint from one twin to the other and back loses none, moments included."""
    config = climb.config
    twins = climb.twins()
    wanted = dict(initial_weights(config.model, config.train.seed))
    zeros = {name: np.zeros(shape, np.float32) for name, shape in buffer_shapes(config.model).items()}
    for name, twin in twins.items():
        twin.initialise(config.train.seed)
        yield from _identical(twin.weights() | twin.buffers(), wanted | zeros, f"{name} ~ numpy", "initial ")
    with tempfile.TemporaryDirectory() as folder:
        first = climb.reference
        for other in climb.names[1:]:
            for one, two in ((first, other), (other, first)):
                twins[one].set_weights(climb.start())
                twins[one].step(material.batches(config, 0), 0, config.optim.learning_rate)
                saved = [twins[one].save(Path(folder) / "a", 1)]
                for twin, target in ((twins[two], "b"), (twins[one], "c")):
                    twin.restore(saved[-1])
                    saved.append(twin.save(Path(folder) / target, 1))
                before = validate(saved[0]).tensors
                for after in saved[1:]:
                    yield from _same_hashes(validate(after).tensors, before, f"{one} > {two} > {one}")
                yield from _same_hashes(
                    {OPTIMIZER_FILE: tensor_hashes(saved[-1] / OPTIMIZER_FILE)}, before, f"{one} > {two} > {one}"
                )


def _identical(found: Arrays, wanted: Arrays, between: str, prefix: str) -> Iterator[Measurement]:
    for name in sorted(found.keys() | wanted.keys()):
        a, b = found.get(name), wanted.get(name)
        same = a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
        yield Measurement(tensor=prefix + name, error=0.0 if same else 1.0, gate=0.0, between=between)


def _same_hashes(found: Hashes, wanted: Hashes, between: str) -> Iterator[Measurement]:
    for file, hashes in found.items():
        for name in sorted(hashes.keys() | wanted[file].keys()):
            same = hashes.get(name) == wanted[file].get(name)
            yield Measurement(tensor=name, error=0.0 if same else 1.0, gate=0.0, between=between)


def operations() -> Iterator[Operation]:
    """The building blocks on inputs of the size that they meet in a model, and the canary shapes."""

    def draw(name: str, *shape: int, std: float = 1.0) -> Array:
        return keyed_generator(0, "operation", name).standard_normal(shape, np.float32) * np.float32(std)

    x, weight, bias = draw("x", 4, 16, 48), draw("weight", 80, 48, std=0.2), draw("bias", 80, std=0.2)
    yield Operation("linear", "linear", (x,), (4, 16, 80), (weight,))
    yield Operation("linear with bias", "linear", (x,), (4, 16, 80), (weight, bias))
    # A small input, so that the constant under the root shows.
    small, scale, shift = draw("small", 4, 16, 48, std=0.05), 1 + draw("scale", 48, std=0.2), draw("shift", 48)
    yield Operation("layer norm", "layer_norm", (small,), (4, 16, 48), (scale,))
    yield Operation("layer norm with bias", "layer_norm", (small,), (4, 16, 48), (scale, shift))
    yield Operation("gelu", "gelu", (draw("gelu", 4, 16, 192, std=2.0),), (4, 16, 192))
    yield Operation("gelu_tanh", "gelu_tanh", (draw("gelu", 4, 16, 192, std=2.0),), (4, 16, 192))
    ids = keyed_generator(0, "ids").integers(0, 96, (4, 16)).astype(np.int32)
    yield Operation("embedding", "embedding", (), (4, 16, 48), (draw("table", 96, 48),), ids)
    for name, length in (("attention", 32), ("attention, odd length", 37)):
        qkv = tuple(draw(f"{name} {part}", 2, 3, length, 16) for part in "qkv")
        yield Operation(name, "attention", qkv, (2, 3, length, 16))
    yield Operation("softmax", "softmax", (draw("scores", 4, 16, 48, std=3.0),), (4, 16, 48))
    yield Operation("cross entropy", "cross_entropy", (draw("logits", 4, 16, 96, std=3.0),), (), integers=ids)
    # Few likely tokens and very many others, which add up: what is small beside a sum must not be lost.
    many, ids = draw("many logits", 2, 8, LARGE_VOCABULARY, std=3.0), ids[:2, :8] * (LARGE_VOCABULARY // 96)
    yield Operation("cross entropy, large vocabulary", "cross_entropy", (many,), (), integers=ids)
    yield from family_operations(draw)
    key = dropout_key(0, 0)
    yield Operation("dropout", "dropout", (x,), x.shape, integers=key)
    yield Operation("dropout, odd size", "dropout", (draw("odd", 3, 5, 7),), (3, 5, 7), integers=key)
    yield from long_sums()


def family_operations(draw: Callable[..., Array]) -> Iterator[Operation]:
    """What Llama's, DeepSeek's and CustomLLM's layers are made of, and Muon's iteration."""
    x, scale = draw("small", 4, 16, 48, std=0.05), 1 + draw("scale", 48, std=0.2)
    yield Operation("rms norm", "rms_norm", (x,), x.shape, (scale,))
    heads = draw("heads", 2, 3, 32, 16)
    for layout in ("halves", "interleaved"):
        model = ModelConfig(positions="rope", rope_layout=layout, head_size=16, block_size=32)
        yield Operation(f"rotary, {layout}", "rotary", (heads,), heads.shape, model=model)
    gate, up = draw("gate", 4, 16, 96, std=2.0), draw("up", 4, 16, 96)
    yield Operation("silu product", "silu_product", (gate, up), gate.shape)
    yield Operation("relu2", "relu2", (gate,), gate.shape)
    for name, kv_heads, value_size in (("grouped queries", 2, 16), ("wide values", 6, 24)):
        q, k = draw(f"{name} q", 2, 6, 32, 16), draw(f"{name} k", 2, kv_heads, 32, 16)
        v = draw(f"{name} v", 2, kv_heads, 32, value_size)
        yield Operation(f"attention, {name}", "attention", (q, k, v), (2, 6, 32, value_size))
    x_MD, weight_EFD = draw("rows", 96, 48), draw("experts", 6, 80, 48, std=0.2)
    # Expert 2 gets no row.
    expert_M = np.sort(np.array([0, 1, 3, 4, 5, 5], np.int32)[keyed_generator(0, "rows").integers(0, 6, 96)])
    yield Operation("grouped product", "stacked_linear", (x_MD,), (96, 80), (weight_EFD,), expert_M)
    for name, model in ROUTERS.items():
        router_ED = draw(f"router {name}", model.n_expert, 48, std=0.2)
        yield Operation(f"router, {name}", "router", (x_MD,), (97, model.n_expert), (router_ED,), model=model)
    for name, shape in (("wide", (16, 48)), ("tall", (48, 16)), ("stack", (4, 24, 16))):
        matrix = draw(f"matrix {name}", *shape)
        yield Operation(f"Newton-Schulz, {name}", "orthogonal", (), shape, (matrix,), trained_through=False)


def long_sums() -> Iterator[Operation]:
    """Sums over K terms forward (a long input) and backward (a large vocabulary), in two and three dimensions."""
    for length in LONG_SUMS:
        generator = keyed_generator(0, "long sum", length)
        wide, narrow = (generator.standard_normal((16, length), np.float32) for _ in range(2))
        last = generator.standard_normal((2, 8, 16), np.float32)
        name = f"sum over {length}"
        yield Operation(f"{name}, 2-D", "linear", (wide,), (16, 16), (narrow,), long_sum=True)
        yield Operation(f"{name}, 3-D", "linear", (wide.reshape(2, 8, length),), (2, 8, 16), (narrow,), long_sum=True)
        head = np.ascontiguousarray(narrow.T)
        yield Operation(f"head of {length}", "linear", (last,), (2, 8, length), (head,), long_sum=True)


def rung_operations(climb: Climb) -> Iterator[Measurement]:
    """Every building block, forward and backward, including the shapes on which backends are known to fail."""
    todo = [operation for operation in operations() if climb.long_sums or not operation.long_sum]
    for done, operation in enumerate(todo):
        climb.progress("operations", done, len(todo))
        upstream = keyed_generator(0, "upstream", operation.name).standard_normal(operation.output, np.float32)
        upstream = climb.rounded(np.asarray(upstream, np.float32))
        operation = dataclasses.replace(operation, inputs=tuple(climb.rounded(x) for x in operation.inputs))
        twins = {ORACLE: climb.oracle(), **climb.twins()}
        found = {name: _named(operation, twin.operation(operation, upstream)) for name, twin in twins.items()}
        gate = climb.gate("L1 long sums" if operation.long_sum else "L1")
        # A reference BLAS adds one product after the other: 11 times PyTorch's error at 50,000, within the gate for it.
        yield from climb.compare(found, gate, ratio=not operation.long_sum)


def _named(operation: Operation, result: LayerPass) -> Arrays:
    gradients = result.gradients if operation.trained_through else {}
    named = {f"{operation.name}: gradient of {part}": value for part, value in gradients.items()}
    return {f"{operation.name}: output": result.output} | named
