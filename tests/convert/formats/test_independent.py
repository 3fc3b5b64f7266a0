"""Proof by other people's code: `transformers`, `mlx_lm` and nanoGPT's way of loading compute what our twins compute.

Weights are random with a standard deviation of 0.2: at GPT-2's own 0.02 most wrong models pass (the two GELUs differ by
4e-6 there, by 2e-3 here). All in float32 on the CPU, which is the strict class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.convert.conftest import run_convert
from tests.convert.formats import nanogpt
from tests.convert.formats.continuation import TWINS, Array, configuration, greedy, load_model, logits, relative_error
from tests.convert.formats.families import Published, loaded_whole, save

# isort: split
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
import transformers

from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.training.checkpoint import find_checkpoint

TOLERANCE = 5e-6
"""Relative L2 of float32 logits."""
PROMPT = "The dog sat"
TOKENS = 64

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers|torch|mlx")]


def published(folder: Path, n_layer: int, n_head: int, n_embd: int, activation: str, vocab_size: int) -> Published:
    """Random weights, saved by `save_pretrained` with a small byte-level tokenizer."""
    config = transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=96, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
        activation_function=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    nanogpt.randomise(model, seed=n_embd, std=0.2)
    return save(model, folder)


SHAPES = {
    "one layer, one head": (1, 1, 24, "gelu_new", 280),
    "three layers": (3, 4, 64, "gelu_new", 280),
    "exact GELU": (2, 2, 48, "gelu", 280),
    "padded vocabulary": (2, 6, 96, "gelu_new", 320),
}


@pytest.fixture(scope="module", params=SHAPES)
def gpt2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(tmp_path_factory.mktemp("published"), *SHAPES[request.param])


@pytest.fixture
def tokens(gpt2: Published) -> Array:
    """(2, 96) ids: the whole context, and the whole vocabulary."""
    return np.random.default_rng(0).integers(0, gpt2.model.config.vocab_size, (2, 96))


def agree(name: str, found: Array, expected: Array) -> None:
    """Assert and print the relative error."""
    assert found.shape == expected.shape
    error = relative_error(found, expected)
    print(f"{name}: {error:.2e}")
    assert error <= TOLERANCE, name


@pytest.mark.parametrize("twin", TWINS)
def test_transformers_into_the_twins(twin: str, gpt2: Published, tokens: Array, converted: Callable[..., Path]) -> None:
    model = load_model(twin, converted("torch2mlx", gpt2.folder))
    agree(f"transformers -> {twin}", logits(twin, model, tokens), gpt2.logits(tokens))


def test_back_into_transformers(gpt2: Published, tokens: Array, converted: Callable[..., Path]) -> None:
    run = converted("torch2mlx", gpt2.folder)
    folder = converted("mlx2torch", run, "--to", "transformers")
    model = loaded_whole(folder)
    found = Published(model, folder).logits(tokens)
    for twin in TWINS:
        agree(f"{twin} -> transformers", found, logits(twin, load_model(twin, run), tokens))
    # There and back again is the same bits.
    before = gpt2.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    text = transformers.AutoTokenizer.from_pretrained(folder)
    assert text.decode(text.encode(PROMPT)) == PROMPT
    assert (folder / "README.md").read_text().strip()


@pytest.mark.parametrize("gpt2", ["three layers", "padded vocabulary"], indirect=True)
def test_into_mlx_lm(gpt2: Published, tokens: Array, converted: Callable[..., Path]) -> None:
    run = converted("torch2mlx", gpt2.folder)
    for source, command in ((run, "mlx2torch"), (gpt2.folder, "torch2mlx")):
        folder = converted(command, source, "--to", "mlx-lm")
        model = mlx_lm.load(str(folder))[0]
        found = np.array(model(mx.array(tokens)))
        agree(f"mlx-lm ({command}) against transformers", found, gpt2.logits(tokens))
        for twin in TWINS:
            expected = logits(twin, load_model(twin, run), tokens)
            agree(f"mlx-lm ({command}) against {twin}", found, expected)


@pytest.mark.parametrize("gpt2", ["three layers"], indirect=True)
def test_mlx_lm_refuses_what_transformers_wrote(gpt2: Published) -> None:
    """Why there is a writer of its own: when this fails, mlx-lm has learnt it."""
    with pytest.raises(TypeError, match="n_ctx"):
        mlx_lm.load(str(gpt2.folder))


@pytest.mark.parametrize("gpt2", ["three layers"], indirect=True)
def test_greedy_text_is_the_same_everywhere(gpt2: Published, converted: Callable[..., Path]) -> None:
    run = converted("torch2mlx", gpt2.folder)
    tokenizer = load_tokenizer(find_checkpoint(run, prefer="latest"))
    prompt = tokenizer.encode(PROMPT)
    made = {twin: greedy(twin, run, prompt, TOKENS) for twin in TWINS}
    texts: dict[str, str | list[str]] = {twin: tokenizer.decode(ids) for twin, ids in made.items()}
    exported = converted("mlx2torch", run, "--to", "transformers")
    for name, folder in (("transformers", gpt2.folder), ("our export in transformers", exported)):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ids = theirs(PROMPT, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == prompt
        everything = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        made[name] = everything[0, len(prompt) :].tolist()
        texts[name] = theirs.decode(made[name])
    for command, source in (("mlx2torch", run), ("torch2mlx", gpt2.folder)):
        name = f"mlx-lm ({command})"
        loaded = mlx_lm.load(str(converted(command, source, "--to", "mlx-lm")))
        responses = list(mlx_lm.stream_generate(loaded[0], loaded[1], PROMPT, max_tokens=TOKENS))
        made[name] = [response.token for response in responses]
        texts[name] = "".join(response.text for response in responses)
    assert all(ids == made["mlx"] for ids in made.values()), made
    assert len(set(texts.values())) == 1, texts
    # A model that says one thing for ever would agree with everything.
    assert len(made["mlx"]) == TOKENS
    assert len(set(made["mlx"])) >= 10


def _sharded(gpt2: Published, folder: Path) -> None:
    gpt2.model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def _masks(gpt2: Published) -> dict[str, torch.Tensor]:
    """The state dict as transformers 4 saved it: the head spelled out, causal masks among the weights."""
    state = dict(gpt2.model.state_dict())
    for layer in range(gpt2.model.config.n_layer):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.uint8).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    assert "lm_head.weight" in state
    return state


def _pickled(gpt2: Published, folder: Path) -> None:
    torch.save(_masks(gpt2), folder / "pytorch_model.bin")


def _pickled_shards(gpt2: Published, folder: Path) -> None:
    state = _masks(gpt2)
    names = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in files.items():
        torch.save({name: state[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _without_prefix(gpt2: Published, folder: Path) -> None:
    """As the original GPT-2 repository has it: the names of GPT2Model."""
    state = {name.removeprefix("transformer."): t for name, t in _masks(gpt2).items() if name != "lm_head.weight"}
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("layout", [_sharded, _pickled, _pickled_shards, _without_prefix], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("gpt2", ["three layers"], indirect=True)
def test_every_layout_of_a_transformers_folder(
    layout: Callable[[Published, Path], None], gpt2: Published, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    folder = tmp_path / "layout"
    folder.mkdir()
    layout(gpt2, folder)
    gpt2.model.config.save_pretrained(folder)
    outcome = run_convert("diff", folder, gpt2.folder)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    tokens = np.arange(96)[None]
    model = load_model("torch", converted("torch2mlx", folder))
    assert relative_error(logits("torch", model, tokens), gpt2.logits(tokens)) <= TOLERANCE


@pytest.mark.parametrize(("activation", "refusing"), [("gelu", "nanogpt"), ("gelu_new", "mlx-lm")])
def test_an_untied_head_survives(
    activation: str, refusing: str, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    config = transformers.GPT2Config(
        vocab_size=65, n_positions=96, n_layer=2, n_head=2, n_embd=32, tie_word_embeddings=False,
        activation_function=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    nanogpt.randomise(model, 3, 0.2)
    model.save_pretrained(tmp_path / "untied")
    tokens = np.arange(65)[None]
    expected = Published(model, tmp_path).logits(tokens)
    run = converted("torch2mlx", tmp_path / "untied")
    for twin in TWINS:
        agree(twin, logits(twin, load_model(twin, run), tokens), expected)
    back = transformers.AutoModelForCausalLM.from_pretrained(converted("mlx2torch", run, "--to", "transformers"))
    agree("transformers again", Published(back.eval(), tmp_path).logits(tokens), expected)
    outcome = run_convert("mlx2torch", run, "-o", tmp_path / refusing, "--to", refusing)
    assert outcome.code == 2
    assert "tie" in outcome.stderr


# --- nanoGPT ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["without bias", "with bias"])
def nanogpt_model(request: pytest.FixtureRequest) -> nanogpt.GPT:
    model = nanogpt.GPT(nanogpt.GPTConfig(96, 65, 3, 4, 64, 0.1, request.param)).eval()
    nanogpt.randomise(model, 5, 0.2)
    return model


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_nanogpt_into_the_twins_and_back(
    prefix: str, nanogpt_model: nanogpt.GPT, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    optimizer = nanogpt_model.configure_optimizers(0.1, 1e-3, (0.9, 0.99))
    torch.save(nanogpt.entries(nanogpt_model, optimizer, 0, prefix), tmp_path / "ckpt.pt")
    tokens = np.random.default_rng(1).integers(0, 65, (2, 96))
    with torch.no_grad():
        expected = nanogpt_model(torch.from_numpy(tokens)).numpy()
    run = converted("torch2mlx", tmp_path / "ckpt.pt")
    for twin in TWINS:
        found = logits(twin, load_model(twin, run), tokens)
        agree(f"nanoGPT -> {twin}", found, expected)
    back = nanogpt.load_for_sampling(converted("mlx2torch", run) / "ckpt.pt")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), nanogpt_model.parameters(), strict=True))
    with torch.no_grad():
        agree("nanoGPT again", back(torch.from_numpy(tokens)).numpy(), expected)


def test_nanogpt_takes_a_run_that_began_here(tmp_path: Path, converted: Callable[..., Path]) -> None:
    """Every key that `sample.py` and `train.py --init_from=resume` read, of the type that they read."""
    from tests.convert.hostile.corpus import native_run

    ckpt = converted("mlx2torch", native_run()(tmp_path)) / "ckpt.pt"
    entries = torch.load(ckpt, weights_only=True)
    assert {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"} <= entries.keys()
    assert entries["model_args"].keys() == set(nanogpt.GPTConfig.__dataclass_fields__)
    assert isinstance(entries["config"], dict)
    assert "transformer.wte.weight" in entries["model"]
    assert torch.equal(entries["model"]["lm_head.weight"], entries["model"]["transformer.wte.weight"])
    nanogpt.load_for_sampling(ckpt)
    model, optimizer, first = nanogpt.resume(ckpt, 0.1, 1e-3, (0.9, 0.99))
    assert first == 3
    state = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    assert len(state) == len(list(model.parameters()))
    assert all(entry["step"] == 3 and (entry["exp_avg"] == 0.5).all() for entry in state)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


# --- what must not pass in silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gpt2", ["three layers"], indirect=True)
def test_the_gate_rejects_wrong_models(gpt2: Published, converted: Callable[..., Path]) -> None:
    run, tokens = converted("torch2mlx", gpt2.folder), np.arange(96)[None]
    expected = gpt2.logits(tokens)
    mutants: dict[str, dict[str, Any]] = {
        "exact for tanh GELU": {"feed_forward": "gelu"},
        "epsilon of the norms": {"norm_eps": 1e-6},
        "twice the heads": {"n_head": 8},
    }
    for name, changes in mutants.items():
        for twin in TWINS:
            error = relative_error(logits(twin, load_model(twin, run, **changes), tokens), expected)
            assert error > 2 * TOLERANCE, (name, twin, error)
    transposed = load_model("torch", run)
    with torch.no_grad():
        weight = transposed.blocks[1].attention.out_proj.weight
        weight.copy_(weight.T.clone())
    assert relative_error(logits("torch", transposed, tokens), expected) > 2 * TOLERANCE


@pytest.mark.parametrize(("gpt2", "target"), [("three layers", "nanogpt"), ("exact GELU", "mlx-lm")], indirect=["gpt2"])
def test_a_target_that_computes_another_gelu_is_refused(
    gpt2: Published, target: str, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    run = converted("torch2mlx", gpt2.folder)
    outcome = run_convert("mlx2torch", run, "-o", tmp_path / "out", "--to", target)
    assert outcome.code == 2
    assert "gelu" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gpt2", ["exact GELU", "three layers"], indirect=True)
def test_the_activation_is_read_and_not_assumed(gpt2: Published, converted: Callable[..., Path]) -> None:
    expected = {"gelu": "gelu", "gelu_new": "gelu_tanh"}[gpt2.model.config.activation_function]
    assert configuration(converted("torch2mlx", gpt2.folder)).model.feed_forward == expected
