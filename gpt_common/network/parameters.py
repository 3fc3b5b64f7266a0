"""Names and shapes of all tensors of a model and of its optimiser: one source for both twins, convert and the plan."""

from __future__ import annotations

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes
from gpt_common.config import ModelConfig, OptimConfig

Shapes = dict[str, tuple[int, ...]]
NO_ADAPTER = AdapterConfig()


def parameter_shapes(model: ModelConfig) -> Shapes:
    """Shape of every trained tensor by its canonical name, in execution order."""
    V, T, D = model.vocab_size, model.block_size, model.n_embd
    shapes: Shapes = {"token_embedding.weight": (V, D)}
    if model.positions != "rope":
        shapes["position_embedding.weight"] = (T, D)
    for i in range(model.n_layer):
        block = f"blocks.{i}"
        shapes |= _norm(f"{block}.attention_norm", D, model)
        shapes |= _ATTENTION[model.attention](f"{block}.attention", model)
        shapes |= _norm(f"{block}.feed_forward_norm", D, model)
        shapes |= _feed_forward(f"{block}.feed_forward", model, experts=model.has_experts(i))
    if model.final_norm:
        shapes |= _norm("final_norm", D, model)
    if not model.tied_head:
        shapes |= _linear("head", V, D, model.head_bias)
    return shapes


def buffer_shapes(model: ModelConfig) -> Shapes:
    """Shape of every tensor that is saved and moved with the model, but that no gradient trains."""
    if model.balancing != "bias":
        return {}
    layers = [i for i in range(model.n_layer) if model.has_experts(i)]
    return {f"blocks.{i}.feed_forward.routing_bias": (model.n_expert,) for i in layers}


def tensor_shapes(model: ModelConfig) -> Shapes:
    """Shape of everything in a model file: parameters, then buffers."""
    return parameter_shapes(model) | buffer_shapes(model)


def trained_shapes(model: ModelConfig, adapter: AdapterConfig) -> Shapes:
    """Shape of every tensor that a run trains: all parameters, or the adapters and what is trained whole beside them.

    Raises:
        UserError: an adapter for what the model does not have.
    """
    parameters = parameter_shapes(model)
    return adapter_shapes(parameters, adapter) if adapter.adapts else parameters


def saved_shapes(model: ModelConfig, adapter: AdapterConfig) -> Shapes:
    """Shape of everything in a run's model file; beside an adapter the model itself stays in its own checkpoint."""
    return trained_shapes(model, adapter) if adapter.adapts else tensor_shapes(model)


def optimizer_shapes(model: ModelConfig, optim: OptimConfig, adapter: AdapterConfig = NO_ADAPTER) -> Shapes:
    """Shape of everything in an optimiser file: both moments of AdamW, or the momentum of Muon.

    Where the model file holds a mean of the weights (`ema_decay`), the weights that training goes on from are here too.
    """
    shapes: Shapes = {}
    for moment in ("exp_avg", "exp_avg_sq", "momentum"):
        for name, shape in trained_shapes(model, adapter).items():
            if (moment == "momentum") == (optim.optimizer == "muon" and is_block_matrix(name, len(shape))):
                shapes[f"{moment}.{name}"] = shape
    if optim.ema_decay:
        shapes |= {f"weights.{name}": shape for name, shape in trained_shapes(model, adapter).items()}
    return shapes


def is_block_matrix(name: str, dimensions: int) -> bool:
    """Whether Muon updates the tensor: the matrices of the blocks, not embeddings, head, norms and biases."""
    return name.startswith("blocks.") and dimensions >= 2


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int, model: ModelConfig) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (width,)}
    return shapes | ({f"{name}.bias": (width,)} if model.bias and model.norm == "layernorm" else {})


def _qk_norms(name: str, model: ModelConfig) -> Shapes:
    return {f"{name}.{which}_norm.weight": (model.key_size,) for which in ("q", "k")} if model.qk_norm else {}


def _multi_head(name: str, model: ModelConfig) -> Shapes:
    D, HK, bias = model.n_embd, model.n_head * model.key_size, model.has_attention_biases
    shapes = _linear(f"{name}.qkv_proj", 3 * HK, D, bias)
    return shapes | _qk_norms(name, model) | _linear(f"{name}.out_proj", D, HK, bias)


def _grouped_query(name: str, model: ModelConfig) -> Shapes:
    D, HK, bias = model.n_embd, model.n_head * model.key_size, model.has_attention_biases
    GK = (model.n_kv_head or model.n_head) * model.key_size
    shapes = _linear(f"{name}.q_proj", HK, D, bias) | _linear(f"{name}.k_proj", GK, D, bias)
    shapes |= _linear(f"{name}.v_proj", GK, D, bias) | _qk_norms(name, model)
    return shapes | _linear(f"{name}.out_proj", D, HK, bias)


def _latent(name: str, model: ModelConfig) -> Shapes:
    D, H, R, bias = model.n_embd, model.n_head, model.kv_latent, model.has_attention_biases
    if model.q_latent:
        shapes = _linear(f"{name}.q_down_proj", model.q_latent, D, bias)
        shapes |= {f"{name}.q_latent_norm.weight": (model.q_latent,)}
        shapes |= _linear(f"{name}.q_up_proj", H * model.key_size, model.q_latent, False)
    else:
        shapes = _linear(f"{name}.q_proj", H * model.key_size, D, False)
    shapes |= _linear(f"{name}.kv_down_proj", R + model.rope_size, D, bias)
    shapes |= {f"{name}.kv_latent_norm.weight": (R,)}
    shapes |= _linear(f"{name}.kv_up_proj", H * (model.nope_size + model.value_size), R, False)
    return shapes | _linear(f"{name}.out_proj", D, H * model.value_size, bias)


def _latent_per_head(name: str, model: ModelConfig) -> Shapes:
    D, H, R, Q, bias = model.n_embd, model.n_head, model.kv_latent, model.q_latent, model.has_attention_biases
    return {
        **_linear(f"{name}.q_down_proj", Q, D, bias),
        **_linear(f"{name}.q_up_proj", H * model.nope_size, Q, False),
        **_linear(f"{name}.q_rope_proj", H * model.rope_size, Q, False),
        **_linear(f"{name}.kv_down_proj", R, D, bias),
        **_linear(f"{name}.k_up_proj", H * model.nope_size, R, False),
        **_linear(f"{name}.k_rope_proj", H * model.rope_size, D, bias),
        **_linear(f"{name}.v_up_proj", H * model.value_size, R, False),
        **_linear(f"{name}.out_proj", D, H * model.value_size, bias),
    }


_ATTENTION = {
    "multi_head": _multi_head,
    "grouped_query": _grouped_query,
    "latent": _latent,
    "latent_per_head": _latent_per_head,
}


def _swiglu(name: str, width: int, model: ModelConfig) -> Shapes:
    D = model.n_embd
    shapes = _linear(f"{name}.gate_proj", width, D, model.bias) | _linear(f"{name}.up_proj", width, D, model.bias)
    return shapes | _linear(f"{name}.down_proj", D, width, model.bias)


def _feed_forward(name: str, model: ModelConfig, *, experts: bool) -> Shapes:
    D, E, F = model.n_embd, model.n_expert, model.expert_width
    if experts:
        shapes: Shapes = {f"{name}.router.weight": (E, D)}
        for matrix, shape in (("gate_proj", (E, F, D)), ("up_proj", (E, F, D)), ("down_proj", (E, D, F))):
            shapes[f"{name}.experts.{matrix}.weight"] = shape
        if model.n_shared_expert:
            shapes |= _swiglu(f"{name}.shared_experts", model.n_shared_expert * F, model)
        return shapes
    if model.feed_forward in ("swiglu", "moe"):
        return _swiglu(name, model.inner_width, model)
    up = _linear(f"{name}.up_proj", model.inner_width, D, model.bias)
    return up | _linear(f"{name}.down_proj", D, model.inner_width, model.bias)
