"""What each field of ModelConfig touches, declared once; a new field is entered here.

tests/architecture/test_fields.py sees to it that every field is here, that what is said of it is true, and that the
lists that depend on it (differences of checkpoints, random configurations, mutants) leave none out.
"""

from __future__ import annotations

CHANGES: dict[str, tuple[str, ...]] = {
    # Names or shapes of tensors.
    "tensors": (
        "vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "norm", "final_norm", "positions",
        "attention", "attention_bias", "n_kv_head", "head_size", "qk_norm", "kv_latent", "q_latent", "nope_size",
        "rope_size", "value_size", "feed_forward", "feed_forward_width", "n_dense_layer", "n_expert",
        "n_shared_expert", "expert_width", "balancing", "tied_head", "head_bias",
    ),
    # Logits that equal tensors give.
    "logits": (
        "n_head", "feed_forward", "norm", "norm_eps", "final_norm", "tied_head", "positions", "rope_theta",
        "rope_layout", "attention", "n_kv_head", "qk_norm", "nope_size", "rope_size", "experts_per_token",
        "n_expert_group", "groups_per_token", "router", "router_normalise", "router_scale",
    ),
    # What a training step makes of equal tensors, by its gradient or by balancing, where the logits are equal too.
    "training": ("balancing", "balancing_rate", "dropout", "dropout_rng"),
    # Arithmetic or memory at equal tensors.
    "cost": ("block_size", "n_head", "norm", "positions", "feed_forward", "experts_per_token", "dropout"),
}  # fmt: skip
