"""Proof by other people's code: the twins compute what `transformers`' Llama and DeepSeek-V3 do, and give it back.

As in test_independent.py: float32 on the CPU, weights with a standard deviation of 0.2, every option at work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.convert.conftest import done, refused
from tests.convert.formats.continuation import TWINS, Array, greedy, load_model, logits, relative_error

# isort: split
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
import transformers

from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.training.checkpoint import find_checkpoint
from tests.convert.formats.families import (
    CONTEXT,
    DEEPSEEKS,
    LLAMAS,
    VOCABULARY,
    Published,
    deepseek,
    llama,
    loaded_whole,
    save,
)

TOLERANCE = 5e-6
"""Relative L2 of float32 logits."""
PROMPT = "The dog sat"
TOKENS = 64

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers|torch|mlx")]

MODELS = {f"llama: {name}": (llama, options) for name, options in LLAMAS.items()}
MODELS |= {f"deepseek: {name}": (deepseek, options) for name, options in DEEPSEEKS.items()}
MLX_LM_CANNOT = {"deepseek: halves": "rope_layout", "deepseek: one expert per token": "experts_per_token"}


@pytest.fixture(scope="module", params=MODELS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    make, options = MODELS[request.param]
    return save(make(options), tmp_path_factory.mktemp("published"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["published"])


@pytest.fixture
def tokens() -> Array:
    """(2, 96) ids: the whole context, and most of the vocabulary."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, CONTEXT))


def agree(name: str, found: Array, expected: Array) -> None:
    """Assert and print the relative error."""
    assert found.shape == expected.shape
    error = relative_error(found, expected)
    print(f"{name}: {error:.2e}")
    assert error <= TOLERANCE, name


def test_into_the_twins_and_back(published: Published, tokens: Array, converted: Callable[..., Path]) -> None:
    expected = published.logits(tokens)
    run = converted("torch2mlx", published.folder)
    for twin in TWINS:
        agree(f"transformers -> {twin}", logits(twin, load_model(twin, run), tokens), expected)
    folder = converted("mlx2torch", run, "--to", "transformers")
    model = loaded_whole(folder)
    agree("transformers again", Published(model, folder).logits(tokens), expected)
    # There and back again is the same bits.
    before = published.model.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert (folder / "README.md").read_text().strip()


def test_into_mlx_lm(name: str, published: Published, tokens: Array, converted: Callable[..., Path]) -> None:
    run = converted("torch2mlx", published.folder)
    if name in MLX_LM_CANNOT:
        for source, command in ((run, "mlx2torch"), (published.folder, "torch2mlx")):
            assert MLX_LM_CANNOT[name] in refused(command, source, "-o", run.parent / "no", "--to", "mlx-lm")
        assert not (run.parent / "no").exists()
        return
    for source, command in ((run, "mlx2torch"), (published.folder, "torch2mlx")):
        folder = converted(command, source, "--to", "mlx-lm")
        model = mlx_lm.load(str(folder))[0]
        agree(f"mlx-lm ({command})", np.array(model(mx.array(tokens))), published.logits(tokens))


def test_greedy_text_is_the_same_everywhere(name: str, published: Published, converted: Callable[..., Path]) -> None:
    run = converted("torch2mlx", published.folder)
    prompt = load_tokenizer(find_checkpoint(run, prefer="latest")).encode(PROMPT)
    made = {twin: greedy(twin, run, prompt, TOKENS) for twin in TWINS}
    exported = converted("mlx2torch", run, "--to", "transformers")
    for where, folder in (("transformers", published.folder), ("our export in transformers", exported)):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == prompt
        everything = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        made[where] = everything[0, len(prompt) :].tolist()
    if name not in MLX_LM_CANNOT:
        loaded = mlx_lm.load(str(converted("mlx2torch", run, "--to", "mlx-lm")))
        responses = list(mlx_lm.stream_generate(loaded[0], loaded[1], PROMPT, max_tokens=TOKENS))
        made["mlx-lm"] = [response.token for response in responses]
    assert all(ids == made["mlx"] for ids in made.values()), made
    # A model that says one thing for ever would agree with everything.
    assert len(made["mlx"]) == TOKENS
    assert len(set(made["mlx"])) >= 10


# --- what must not pass in silence -----------------------------------------------------------------------------------

MUTANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama: two key heads, tied": {
        "the other rotary layout": {"rope_layout": "interleaved"},
        "another base of the wavelengths": {"rope_theta": 10_010.0},
        "epsilon of the norms": {"norm_eps": 1e-5},
    },
    "deepseek: as published": {
        "the other rotary layout": {"rope_layout": "halves"},
        "gates not normalised": {"router_normalise": False},
        "gates not scaled": {"router_scale": 2.499},
        "softmax for sigmoid": {"router": "softmax"},
        "one expert less": {"experts_per_token": 2},
        "experts of any group": {"n_expert_group": 1, "groups_per_token": 1},
    },
}


@pytest.mark.parametrize("published", MUTANTS, indirect=True)
def test_the_gate_rejects_other_settings(
    name: str, published: Published, tokens: Array, converted: Callable[..., Path]
) -> None:
    run, expected = converted("torch2mlx", published.folder), published.logits(tokens)
    for mutant, changes in MUTANTS[name].items():
        for twin in TWINS:
            error = relative_error(logits(twin, load_model(twin, run, **changes), tokens), expected)
            assert error > 2 * TOLERANCE, (mutant, twin, error)


def _swap_experts(blocks: Any) -> None:
    weight = blocks[1].feed_forward.experts.up_proj.weight
    weight.copy_(weight[[1, 0, *range(2, 8)]].clone())


def _gate_for_up(blocks: Any) -> None:
    experts = blocks[2].feed_forward.experts
    gate = experts.gate_proj.weight.clone()
    experts.gate_proj.weight.copy_(experts.up_proj.weight)
    experts.up_proj.weight.copy_(gate)


def _rope_before_nope(blocks: Any) -> None:
    weight = blocks[0].attention.q_up_proj.weight
    weight.copy_(weight.unflatten(0, (4, 24)).roll(10, dims=1).flatten(0, 1))


def _value_before_nope(blocks: Any) -> None:
    weight = blocks[0].attention.kv_up_proj.weight
    weight.copy_(weight.unflatten(0, (4, 32)).roll(18, dims=1).flatten(0, 1))


def _no_routing_bias(blocks: Any) -> None:
    blocks[1].feed_forward.routing_bias.zero_()


def _halves_as_pairs(blocks: Any) -> None:
    weight = blocks[0].attention.kv_down_proj.weight
    weight[20:] = weight[20:].unflatten(0, (2, 5)).transpose(0, 1).flatten(0, 1).clone()


WRONG = [_swap_experts, _gate_for_up, _rope_before_nope, _value_before_nope, _no_routing_bias, _halves_as_pairs]


@pytest.mark.parametrize("published", ["deepseek: as published"], indirect=True)
def test_the_gate_rejects_misplaced_weights(
    published: Published, tokens: Array, converted: Callable[..., Path]
) -> None:
    run, expected = converted("torch2mlx", published.folder), published.logits(tokens)
    for misplace in WRONG:
        model = load_model("torch", run)
        with torch.no_grad():
            misplace(model.blocks)
        assert relative_error(logits("torch", model, tokens), expected) > 2 * TOLERANCE, misplace.__name__


# --- layouts ---------------------------------------------------------------------------------------------------------


def _sharded(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def _as_in_memory(model: Any, folder: Path) -> None:
    """The state dict of transformers 5: experts stacked, gates over ups in one tensor."""
    state = model.state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    torch.save(state, folder / "pytorch_model.bin")


def _with_extra_layer(model: Any, folder: Path) -> None:
    """As the published model has it: one more layer, for the token after the next one."""
    extra = {f"model.layers.3.{name}.weight": torch.ones(48) for name in ("eh_proj", "enorm", "input_layernorm")}
    torch.save(model.state_dict() | extra, folder / "pytorch_model.bin")


def _old_settings(model: Any, folder: Path) -> None:
    """As transformers 4 wrote them: wavelengths on their own, buffers among the weights."""
    settings = json.loads((folder / "config.json").read_text())
    settings["rope_theta"] = settings.pop("rope_parameters")["rope_theta"]
    settings["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(settings))
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(5) for i in range(3)}
    torch.save(model.state_dict() | buffers, folder / "pytorch_model.bin")


@pytest.mark.parametrize("layout", [_sharded, _as_in_memory, _with_extra_layer, _old_settings])
@pytest.mark.parametrize("published", ["deepseek: as published"], indirect=True)
def test_every_layout_of_a_folder(layout: Callable[[Any, Path], None], published: Published, tmp_path: Path) -> None:
    published.model.config.save_pretrained(tmp_path)
    layout(published.model, tmp_path)
    assert "tensors are equal" in done("diff", tmp_path, published.folder)
