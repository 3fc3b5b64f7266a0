"""CustomLLM written a second time, module by module as its document prints it; every expert is a module of its own.

The document gives the tree and nothing else. What it leaves open is decided as in our presets: heads, rotary halves, a
softmax router whose chosen gates sum to one, and that the blocks are called and causal.

Shape suffixes: B batch, T time, D model width, H heads, K head size, N tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_common.config import ModelConfig

TREE = """CustomLLM(
  (token_embeddings): Embedding(49152, 1024)
  (position_embeddings): Embedding(2048, 1024)
  (dropout): Dropout(p=0.1, inplace=False)
  (decoder_layers): ModuleList(
    (0-23): 24 x DecoderLayer(
      (self_attn): MultiHeadLatentAttention(
        (kv_proj_d): Linear(in_features=1024, out_features=256, bias=False)
        (q_proj_d): Linear(in_features=1024, out_features=256, bias=False)
        (k_proj_u): Linear(in_features=256, out_features=512, bias=False)
        (v_proj_u): Linear(in_features=256, out_features=1024, bias=False)
        (q_proj_u): Linear(in_features=256, out_features=512, bias=False)
        (rope_k): Linear(in_features=1024, out_features=512, bias=False)
        (rope_q): Linear(in_features=256, out_features=512, bias=False)
        (o_proj): Linear(in_features=1024, out_features=1024, bias=False)
        (rotary_emb): RotaryEmbedding()
      )
      (mlp): LlamaMLP(
        (shared_experts): ModuleList(
          (0): DeepSeekExpertLayer(
            (gate_proj): Linear(in_features=1024, out_features=1536, bias=False)
            (up_proj): Linear(in_features=1024, out_features=1536, bias=False)
            (down_proj): Linear(in_features=1536, out_features=1024, bias=False)
            (act_fn): SiLU()
          )
        )
        (routed_experts): ModuleList(
          (0-6): 7 x DeepSeekExpertLayer(
            (gate_proj): Linear(in_features=1024, out_features=1536, bias=False)
            (up_proj): Linear(in_features=1024, out_features=1536, bias=False)
            (down_proj): Linear(in_features=1536, out_features=1024, bias=False)
            (act_fn): SiLU()
          )
        )
        (router): Linear(in_features=1024, out_features=7, bias=False)
      )
      (input_norm): CustomRMSNorm()
      (post_attn_norm): CustomRMSNorm()
    )
  )
  (lm_head): Linear(in_features=1024, out_features=49152, bias=True)
)"""
"""What `print(model)` says in the reference document."""


class CustomRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class RotaryEmbedding(nn.Module):
    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x_BTHK: Tensor) -> Tensor:
        T, K = x_BTHK.shape[1], x_BTHK.shape[3]
        waves = self.theta ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
        angles = torch.arange(T, dtype=torch.float64)[:, None, None] * waves
        turned = torch.view_as_complex(torch.stack(x_BTHK.double().chunk(2, dim=-1), dim=-1))
        turned = turned * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1).float()


class MultiHeadLatentAttention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        D, H, Q, R = c.n_embd, c.n_head, c.q_latent, c.kv_latent
        self.heads = H
        self.kv_proj_d = nn.Linear(D, R, bias=False)
        self.q_proj_d = nn.Linear(D, Q, bias=False)
        self.k_proj_u = nn.Linear(R, H * c.nope_size, bias=False)
        self.v_proj_u = nn.Linear(R, H * c.value_size, bias=False)
        self.q_proj_u = nn.Linear(Q, H * c.nope_size, bias=False)
        self.rope_k = nn.Linear(D, H * c.rope_size, bias=False)
        self.rope_q = nn.Linear(Q, H * c.rope_size, bias=False)
        self.o_proj = nn.Linear(H * c.value_size, D, bias=False)
        self.rotary_emb = RotaryEmbedding(c.rope_theta)

    def forward(self, x_BTD: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1))

        latent, q_latent = self.kv_proj_d(x_BTD), self.q_proj_d(x_BTD)
        q = torch.cat([split(self.q_proj_u(q_latent)), self.rotary_emb(split(self.rope_q(q_latent)))], dim=-1)
        k = torch.cat([split(self.k_proj_u(latent)), self.rotary_emb(split(self.rope_k(x_BTD)))], dim=-1)
        scores_BHTT = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
        later = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool).triu(1)
        shares_BHTT = scores_BHTT.masked_fill(later, -torch.inf).softmax(-1)
        return self.o_proj(torch.einsum("bhts,bshk->bthk", shares_BHTT, split(self.v_proj_u(latent))).flatten(-2))


class DeepSeekExpertLayer(nn.Module):
    def __init__(self, D: int, F_: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(D, F_, bias=False)
        self.up_proj = nn.Linear(D, F_, bias=False)
        self.down_proj = nn.Linear(F_, D, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaMLP(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        experts = [DeepSeekExpertLayer(c.n_embd, c.expert_width) for _ in range(c.n_shared_expert + c.n_expert)]
        self.shared_experts = nn.ModuleList(experts[: c.n_shared_expert])
        self.routed_experts = nn.ModuleList(experts[c.n_shared_expert :])
        self.router = nn.Linear(c.n_embd, c.n_expert, bias=False)
        self.chosen = c.experts_per_token

    def forward(self, x_BTD: Tensor) -> Tensor:
        top = self.router(x_BTD).softmax(-1).topk(self.chosen, dim=-1)
        gates_BTE = torch.zeros_like(self.router(x_BTD)).scatter(-1, top.indices, F.normalize(top.values, p=1, dim=-1))
        y_BTD = sum(expert(x_BTD) for expert in self.shared_experts)
        return y_BTD + sum(expert(x_BTD) * gates_BTE[..., e, None] for e, expert in enumerate(self.routed_experts))


class DecoderLayer(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadLatentAttention(c)
        self.mlp = LlamaMLP(c)
        self.input_norm = CustomRMSNorm(c.n_embd, c.norm_eps)
        self.post_attn_norm = CustomRMSNorm(c.n_embd, c.norm_eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_norm(x_BTD))
        return x_BTD + self.mlp(self.post_attn_norm(x_BTD))


class CustomLLM(nn.Module):
    """(B, T) token ids -> (B, T, V) logits."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.token_embeddings = nn.Embedding(c.vocab_size, c.n_embd)
        self.position_embeddings = nn.Embedding(c.block_size, c.n_embd)
        self.dropout = nn.Dropout(c.dropout)
        self.decoder_layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.n_layer))
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=True)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.token_embeddings(tokens_BT) + self.position_embeddings(torch.arange(tokens_BT.shape[1]))
        for layer in self.decoder_layers:
            x_BTD = layer(x_BTD)
        return self.lm_head(x_BTD)
