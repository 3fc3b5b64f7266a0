"""The network in PyTorch. The same text in MLX is mlx_gpt/model.py.

What it is built of lies beside it: layers.py, and attention.py and feed_forward.py with one class per kind. The
configuration chooses among them.

Shape suffixes: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids, on_grids
from gpt_common.config import ModelConfig
from gpt_common.data.batches import Batch
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import NO_ADAPTER
from torch_gpt.adapters import Adapters
from torch_gpt.attention import ATTENTION, KVCache, within_examples
from torch_gpt.experts import Routers
from torch_gpt.feed_forward import feed_forward
from torch_gpt.kernels import as_words, cross_entropy
from torch_gpt.layers import NORMS, Angles, Embedding, Linear, Rotary, dropout, restarted
from torch_gpt.quantised import QuantisedLayers

LEAST_WEIGHT = 1e-9
"""Where no position of a batch counts its loss is 0, and not 0 / 0."""


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.dropout_rng = config.dropout_rng
        # Every place that drops something is a site, numbered in execution order: 0 after the embedding, then three in
        # each block, of which attention has the first. A mask depends on the step's key and its site alone, so it is
        # the same in both twins, and again when a block is computed a second time for its gradient.
        self.site = 3 * layer + 1
        norm = NORMS[config.norm]
        self.attention_norm = norm(config.n_embd, config.norm_eps, config.bias)
        self.attention = ATTENTION[config.attention](config, layer)
        self.feed_forward_norm = norm(config.n_embd, config.norm_eps, config.bias)
        self.feed_forward = feed_forward(config, layer)

    def forward(
        self,
        x_BTD: Tensor,
        key: Tensor | None = None,
        cache: KVCache | None = None,
        angles: Angles | None = None,
        sees_B1TT: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # Norms stand before the layers and not after the sum (GPT-2, unlike the first transformer): the sum stays an
        # identity from the loss to the embedding, and deep models train without a long warm-up.
        y_BTD = self.attention(self.attention_norm(x_BTD), key, cache, angles, sees_B1TT)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, key, self.site + 1, self.dropout_rng)
        y_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, key, self.site + 2, self.dropout_rng)


class GPT(nn.Module):
    """Token embedding, positions, blocks, a last norm, and an output layer that may share the embedding.

    Args:
        config: the shape; its `vocab_size` is that of the tokenizer or more, not 0.
        compute_dtype: dtype of activations; parameters stay float32.
        gradient_checkpointing: recompute each block in the backward pass.
        adapter: what is trained in place of the parameters, if not they.
        grids: the layers whose matrices are kept in a few bits.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute_dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        adapter: AdapterConfig = NO_ADAPTER,
        grids: Grids = NOT_QUANTISED,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None  # of a model that was loaded for a notebook
        self.compute_dtype = compute_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        if config.positions != "rope":
            self.position_embedding = Embedding(config.block_size, config.n_embd)
        self.rotary = Rotary(config) if config.positions != "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.routers = Routers(config, self.blocks)
        if config.final_norm:
            self.final_norm = NORMS[config.norm](config.n_embd, config.norm_eps, config.bias)
        # A tied head is the token embedding read backwards: 39 million numbers fewer beside GPT-2's 124.
        if not config.tied_head:
            self.head = Linear(config.n_embd, config.vocab_size, config.head_bias)
        self.adapters = Adapters(self, config, adapter)
        self.quantised = QuantisedLayers(self, grids)

    def forward(
        self,
        tokens_BT: Tensor,
        key: Tensor | None = None,
        caches: list[KVCache] | None = None,
        starts_BT: Tensor | None = None,
    ) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits of the next token, in the compute dtype.

        Args:
            key: dropout key of this micro-step, (2,) words; None drops nothing.
            caches: one per block, from `new_caches`; T new tokens follow what they hold.
            starts_BT: where in its row the example of each token begins; None: one text in a row.
        """
        self.routers.new_pass()
        self.adapters.new_pass(key)
        past = caches[0].length if caches else 0  # how many tokens came before these
        x_BTD = self.token_embedding(tokens_BT, self.compute_dtype)
        T, rotary = tokens_BT.shape[1], self.rotary
        if starts_BT is None:
            positions, sees_B1TT = torch.arange(past, past + T, device=tokens_BT.device), None
            angles = rotary.angles(past, past + T) if rotary is not None else None
        else:
            # Examples that share a row are to each other as if they stood in rows of their own.
            positions, sees_B1TT = restarted(starts_BT), within_examples(starts_BT)
            angles = rotary.angles_at(positions) if rotary is not None else None
        # Attention does not see order. Learned positions are added here; rotary ones turn queries and keys within it.
        if self.config.positions != "rope":
            x_BTD = x_BTD + self.position_embedding(positions, self.compute_dtype)
        x_BTD = dropout(x_BTD, self.config.dropout, key, 0, self.config.dropout_rng)
        for layer, block in enumerate(self.blocks):
            # Either every block's activations are kept for the backward pass, or only its input.
            if self.gradient_checkpointing and caches is None:
                x_BTD = checkpoint(block, x_BTD, key, None, angles, sees_B1TT, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, key, caches[layer] if caches else None, angles, sees_B1TT)
        if self.config.final_norm:
            x_BTD = self.final_norm(x_BTD)
        if self.config.tied_head:
            return self.token_embedding.as_linear(x_BTD)
        return self.head(x_BTD)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def new_caches(self) -> list[KVCache]:
        """Empty key-value caches for generation, one per block."""
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def initialise(self, seed: int) -> None:
        """Set every weight to its initial value, which both twins draw from the same numpy stream; adapters have their
        own `initialise`."""
        # Normal, 0.02; what a layer adds to the residual stream, by 1 / sqrt(2 n_layer) smaller: so many terms add up
        # to about the size of one (gpt_common/network/init.py).
        places = self.state_dict()  # beside an adapter they are no parameters
        with torch.no_grad():
            for name, value in on_grids(initial_weights(self.config, seed), self.quantised.grids):
                places[name].copy_(as_words(torch.from_numpy(value)))


def loss(model: GPT, batch: Batch[Tensor], key: Tensor | None = None) -> Tensor:
    """Mean cross entropy in nats per token, over the positions that count and by their weights."""
    nats_BT = cross_entropy(model(batch.tokens, key, starts_BT=batch.starts), batch.labels)
    if batch.weights is None:
        return nats_BT.mean()
    return (nats_BT * batch.weights).sum() / torch.clamp(batch.weights.sum(), min=LEAST_WEIGHT)


def objective(model: GPT, batch: Batch[Tensor], key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What training minimises, and the loss in it: more is in it only where a penalty keeps experts busy."""
    mean_loss = loss(model, batch, key)
    return model.routers.counted(mean_loss), mean_loss
