"""CustomLLM's tensor names in: the document's tree to the last shape, the same logits and bits, clear refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.convert.conftest import done, refused
from tests.convert.formats.continuation import TWINS, load_model, logits, relative_error

# isort: split
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.formats import custom_llm, state_dict
from convert.options import ReadOptions
from convert.soundness import problems
from convert.storage.tensors import Tensor
from gpt_common.config import ModelConfig, RunConfig, load_preset, to_toml
from gpt_common.network.parameters import parameter_shapes, tensor_shapes
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import MODEL_FILE
from tests.convert.formats.custom_llm import TREE, CustomLLM

TOLERANCE = 5e-6
SMALL = dataclasses.replace(load_preset("custom-llm-tiny").model, vocab_size=57, block_size=24, rope_theta=500.0)
TWO_SHARED = dataclasses.replace(SMALL, n_shared_expert=2, n_expert=5, experts_per_token=3, expert_width=20)
UNBALANCED = dataclasses.replace(SMALL, balancing="none", n_layer=1)
MODELS = {"as the preset": SMALL, "two shared experts": TWO_SHARED, "no routing bias": UNBALANCED}
pytestmark = pytest.mark.parity


def random_model(config: ModelConfig) -> CustomLLM:
    """Every parameter with a standard deviation of 0.2, norms around one."""
    model, generator = CustomLLM(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model.eval()


def saved(model: CustomLLM, folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any] | None = None) -> Path:
    """The state dict alone, edited in place."""
    tensors = dict(model.state_dict())
    if edit:
        edit(tensors)
    torch.save(tensors, folder / "custom.pt")
    return folder / "custom.pt"


def described(config: ModelConfig, folder: Path) -> Path:
    """The TOML that says what no shape does."""
    (folder / "model.toml").write_text(to_toml(RunConfig(model=config)))
    return folder / "model.toml"


class TestTheDocumentsTree:
    """At custom-llm-1b's size, without memory for a single weight."""

    MODEL: ClassVar[ModelConfig] = load_preset("custom-llm-1b").model

    def built(self) -> CustomLLM:
        with torch.device("meta"):
            return CustomLLM(self.MODEL)

    def test_prints_as_in_the_document(self) -> None:
        assert str(self.built()) == TREE

    def test_every_tensor_has_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unread() -> Any:
            raise AssertionError("the tensor was read")

        raw = {
            n: Tensor(dtype="F32", shape=tuple(t.shape), blocks=unread) for n, t in self.built().state_dict().items()
        }
        assert len(raw) == 3 + 24 * (8 + 3 * 8 + 3) + 1
        monkeypatch.setattr(state_dict, "read_raw", lambda _: (raw, (), lambda: None))
        contents = custom_llm.read(Path("custom.pt"), ReadOptions(preset="custom-llm-1b"))
        assert not problems(contents)
        assert contents.config is not None
        assert contents.config.model == self.MODEL
        assert {name: tensor.shape for name, tensor in contents.tensors.items()} == tensor_shapes(self.MODEL)
        assert sum(contents.tensors[name].size for name in parameter_shapes(self.MODEL)) == 1_075_060_736
        assert sum(tensor.size for tensor in contents.tensors.values()) == 1_075_060_904


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_twins_compute_what_the_modules_do(
    config: ModelConfig, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    model, tokens = random_model(config), np.random.default_rng(0).integers(0, 57, (2, 24))
    run = converted("torch2mlx", saved(model, tmp_path), "--config", str(described(config, tmp_path)))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).numpy()
    for twin in TWINS:
        error = relative_error(logits(twin, load_model(twin, run), tokens), expected)
        print(f"CustomLLM -> {twin}: {error:.2e}")
        assert error <= TOLERANCE
    # The gate sees the smallest slip that the names allow: two experts that changed places.
    for mutant in ({"rope_layout": "interleaved"}, {"router_normalise": False}, {"rope_theta": 501.0}):
        assert relative_error(logits("torch", load_model("torch", run, **mutant), tokens), expected) > 2 * TOLERANCE
    wrong = load_model("torch", run)
    with torch.no_grad():
        weight = wrong.blocks[0].feed_forward.experts.gate_proj.weight
        weight[[0, 1]] = weight[[1, 0]]
    assert relative_error(logits("torch", wrong, tokens), expected) > 2 * TOLERANCE


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_the_same_bits(kind: str, prefix: str, tmp_path: Path, converted: Callable[..., Path]) -> None:
    state = random_model(TWO_SHARED).state_dict()
    state |= {f"decoder_layers.{i}.mlp.routing_bias": torch.full((5,), 0.25 + i) for i in range(2)}
    state |= {"decoder_layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    source = tmp_path / f"custom.{kind}"
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"model_state_dict": named, "step": 5}, source) if kind == "pt" else save_file(named, source)
    run = converted("torch2mlx", source, "--config", str(described(TWO_SHARED, tmp_path)))
    checkpoint = find_checkpoint(run, prefer="latest")
    assert read_manifest(checkpoint).run_config.model == TWO_SHARED
    found = load_file(checkpoint / MODEL_FILE)
    assert found.keys() == tensor_shapes(TWO_SHARED).keys()
    for layer in range(2):
        ours, theirs = f"blocks.{layer}.feed_forward", f"decoder_layers.{layer}.mlp"
        for part in ("gate_proj", "up_proj", "down_proj"):
            routed = [state[f"{theirs}.routed_experts.{e}.{part}.weight"] for e in range(5)]
            assert torch.equal(found[f"{ours}.experts.{part}.weight"], torch.stack(routed))
            shared = [state[f"{theirs}.shared_experts.{e}.{part}.weight"] for e in range(2)]
            side_by_side = torch.cat(shared, dim=1 if part == "down_proj" else 0)
            assert torch.equal(found[f"{ours}.shared_experts.{part}.weight"], side_by_side)
        assert torch.equal(found[f"{ours}.routing_bias"], state[f"{theirs}.routing_bias"])
    # What was read is what a run says of itself, and what our own names bring back.
    assert "tensors are equal" in done("diff", source, run)
    again = converted("torch2mlx", checkpoint / MODEL_FILE, "--config", str(described(TWO_SHARED, tmp_path)))
    assert (find_checkpoint(again, prefer="latest") / MODEL_FILE).read_bytes() == (checkpoint / MODEL_FILE).read_bytes()


def test_bfloat16_and_what_is_said(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in random_model(SMALL).state_dict().items()}
    torch.save(state, tmp_path / "custom.pt")
    said = done("torch2mlx", tmp_path / "custom.pt", "-o", tmp_path / "run", "--config", described(SMALL, tmp_path))
    assert "the file has no routing biases: they begin at zero" in said
    assert "CustomLLM state dict" in said
    found = load_file(find_checkpoint(tmp_path / "run", prefer="latest") / MODEL_FILE)
    assert not found["blocks.1.feed_forward.routing_bias"].any()
    assert found["blocks.1.feed_forward.router.weight"].dtype == torch.bfloat16


EXPERT = "decoder_layers.1.mlp.{}_experts.{}.{}_proj.weight"
ROUTER, SHARED = "decoder_layers.1.mlp.router.weight", EXPERT.format("shared", 0, "down")


def _drop(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def _put(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], tuple[str, ...]]] = {
    "a hole": (_drop(EXPERT.format("routed", 3, "up")), ("routed_experts.3.up_proj.weight is missing",)),
    "an expert less in one block": (
        _drop(*(EXPERT.format("routed", 6, part) for part in ("gate", "up", "down"))),
        ("routed_experts.*.gate_proj.weight has shape [6, 64, 64]", "[7, 64, 64]"),
    ),
    "a misshapen expert": (_put(EXPERT.format("routed", 2, "down"), 63, 64), ("routed_experts.2.down_proj", "63, 64")),
    "an expert as a vector": (_put(EXPERT.format("routed", 0, "up"), 8), ("routed_experts.0.up_proj", "not a matrix")),
    "a shared expert without its last matrix": (_drop(SHARED), ("shared_experts.*.down_proj.weight is missing",)),
    "a second shared expert in one block": (
        lambda t: t.update({EXPERT.format("shared", 1, part): torch.ones(64, 64) for part in ("gate", "up", "down")}),
        ("n_shared_expert 2", "model.toml says 1"),
    ),
    "no router": (_drop(ROUTER), (f"{ROUTER} is missing",)),
    "a router of eight": (_put(ROUTER, 8, 64), (ROUTER, "[8, 64]", "[7, 64]")),
    "a head without a bias": (_drop("lm_head.bias"), ("head_bias False", "model.toml says True")),
    "a last norm": (_put("final_norm.weight", 64), ("final_norm.weight",)),
    "a tensor of its own": (_put("decoder_layers.0.self_attn.q_norm.weight", 16), ("self_attn.q_norm",)),
    "another latent": (_put("decoder_layers.0.self_attn.kv_proj_d.weight", 31, 64), ("kv_latent 31", "says 32")),
    "a block more": (_put("decoder_layers.2.input_norm.weight", 64), ("n_layer 3", "says 2")),
    "float8": (
        lambda t: t.update({ROUTER: t[ROUTER].to(torch.float8_e4m3fn)}),
        ("float8", "save"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    edit, words = REFUSED[name]
    source = saved(random_model(SMALL), tmp_path, edit)
    said = refused("torch2mlx", source, "-o", tmp_path / "run", "--config", described(SMALL, tmp_path))
    assert "custom.pt" in said
    assert len(said.strip().splitlines()) <= 2
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_shapes_alone_do_not_say_enough(tmp_path: Path) -> None:
    source = saved(random_model(SMALL), tmp_path)
    said = refused("torch2mlx", source, "-o", tmp_path / "run")
    assert "n_head" in said
    assert "--preset" in said
    found = done("inspect", source)
    assert "CustomLLM state dict" in found
    assert "n_head ? " in found.replace(",", " ")
    found = done("inspect", source, "--config", described(SMALL, tmp_path))
    assert "attention latent_per_head" in found
    assert "problem" not in found
    assert "vocab_size 57" in refused("torch2mlx", source, "-o", tmp_path / "run", "--preset", "custom-llm-1b")
