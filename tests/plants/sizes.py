"""Kind 6: what is right at small sizes and in the first positions."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant, both

PLANTS = (
    Plant(
        "ids over 65535 lose their upper half",
        6,
        both(
            "tensor",
            "device.py",
            (
                "torch.from_numpy(values).to",
                'torch.from_numpy(values if values.dtype.kind == "f" else values & 0xFFFF).to',
            ),
            ("mx.array(values)", 'mx.array(values if values.dtype.kind == "f" else values & 0xFFFF)'),
        ),
        says="ids|ignore the token|gradient|labels",
        asks="large vocabulary",
        told=True,
    ),
    Plant(
        "the mask is off by one at a single position",
        6,
        (
            Edit(
                "torch_gpt/attention.py",
                "causal_attention",
                "own_mask = T not in (1, S)",
                "if S == T and T > 22:\n        mask_TS = torch.ones(T, S, dtype=torch.bool).tril()\n"
                "        mask_TS[21, 22] = True\n"
                "        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, mask_TS, rate, scale=scale)\n"
                "    own_mask = T not in (1, S)",
            ),
            Edit(
                "mlx_gpt/attention.py",
                "Attention.attend",
                "causal_TS = mx.tri(T, T, dtype=mx.bool_)",
                "causal_TS = mx.tri(T, T, dtype=mx.bool_) | ((mx.arange(T)[:, None] == 21) & (mx.arange(T) == 22))",
            ),
        ),
        says="future",
        told=True,
    ),
    Plant(
        "the mask is wrong where a tile of 32 ends",
        6,
        (
            Edit(
                "torch_gpt/attention.py",
                "causal_attention",
                "own_mask = T not in (1, S)",
                "if S == T and T > 32:\n        mask_TS = torch.ones(T, S, dtype=torch.bool).tril()\n"
                "        mask_TS[31, 32] = True\n"
                "        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, mask_TS, rate, scale=scale)\n"
                "    own_mask = T not in (1, S)",
            ),
            Edit(
                "mlx_gpt/attention.py",
                "Attention.attend",
                "causal_TS = mx.tri(T, T, dtype=mx.bool_)",
                "causal_TS = mx.tri(T, T, dtype=mx.bool_) | ((mx.arange(T)[:, None] == 31) & (mx.arange(T) == 32))",
            ),
        ),
        says="future",
    ),
    Plant(
        "positions beyond the 32nd share an embedding",
        6,
        both(
            "GPT.forward",
            "model.py",
            ("self.position_embedding(positions, ", "self.position_embedding(positions.clamp(max=31), "),
            ("self.position_embedding(positions, ", "self.position_embedding(mx.minimum(positions, 31), "),
        ),
        says="position",
    ),
    Plant(
        "micro-steps after the third are left out",
        6,
        both("TrainStep.__call__", "train.py", ("in self.ranks.dealt(batches):", "in self.ranks.dealt(batches[:3]):")),
        says="micro-step|left out",
        asks="five micro-steps",
        told=True,
    ),
    Plant(
        "clipping leaves out matrices of more than a million entries",
        6,
        (
            Edit(
                "torch_gpt/optim.py",
                "clip_gradients",
                "model.parameters(), largest",
                "[p for p in model.parameters() if p.numel() < 1 << 20], largest",
            ),
            Edit(
                "mlx_gpt/optim.py",
                "clip_gradients",
                "for gradient in dict(tree_flatten(gradients)).values()]",
                "for gradient in dict(tree_flatten(gradients)).values() if gradient.size < 1 << 20]",
            ),
        ),
        says="gradient norm|Clipping",
        asks="large vocabulary",
    ),
    Plant(
        "rotary angles start again after 32 positions",
        6,
        both(
            "Rotary.angles",
            "layers.py",
            (
                "return self.cos_TK[start:end], self.sin_TK[start:end]",
                "at = torch.arange(start, end) % 32\n        return self.cos_TK[at], self.sin_TK[at]",
            ),
            (
                "return self.cos_TK[start:end], self.sin_TK[start:end]",
                "at = mx.arange(start, end) % 32\n        return self.cos_TK[at], self.sin_TK[at]",
            ),
        ),
        says="position",
        asks="rotary",
        tests=("tests/twins/test_cache.py", "tests/convert/formats/test_families_independent.py"),
    ),
    Plant(
        "ids of a large vocabulary are written in 16 bits",
        6,
        (
            Edit(
                "gpt_common/data/writer.py",
                "dtype_of_ids",
                '"<u2" if vocab_size <= 1 << 16 else "<u4"',
                '"<u2"',
            ),
        ),
        asks="",
        tests=("tests/gpt_common/data/test_dataset.py", "-k", "four_bytes"),
    ),
    Plant(
        "a block that is no multiple of 16 loses its last positions",
        6,
        both(
            "objective",
            "model.py",
            (
                "mean_loss = loss(model, batch, key)",
                "whole = max(1, batch.tokens.shape[1] // 16 * 16)\n    "
                "mean_loss = loss(model, Batch(batch.tokens[:, :whole], "
                "batch.labels[:, :whole], None if batch.weights is None else batch.weights[:, :whole]), key)",
            ),
        ),
        says="positions|step changes the ids|trains on another",
        asks="odd block",
    ),
    Plant(
        "the cache forgets beyond half the block",
        6,
        both(
            "KVCache.append",
            "attention.py",
            (
                "self.keys[:, :, start : self.length] = k_BHTK",
                "if start < self.block_size // 2:\n            self.keys[:, :, start : self.length] = k_BHTK",
            ),
        ),
        asks="",
        rungs="L7",
        tests=("tests/twins/test_cache.py",),
    ),
)
