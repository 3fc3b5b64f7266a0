"""AdamW's state travels: a run that changes framework after 100 steps stays on the curve of the one that did not.

nanoGPT is played by `nanogpt.py`: plain PyTorch, `torch.optim.AdamW`, its parameter groups and its `ckpt.pt`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_common.config import ModelConfig, OptimConfig, RunConfig
from tests.convert.conftest import run_convert
from tests.convert.formats import nanogpt
from tests.convert.formats.continuation import TWINS, Array, Trainer, configuration

TOLERANCE = 1e-5
"""Nats per token, largest difference over 100 losses."""
BETAS, DECAY, CLIP = (0.9, 0.995), 0.2, 0.5
SIZES: nanogpt.Sizes = {"vocab_size": 65, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}


def batches(first: int, last: int) -> list[tuple[Array, Array]]:
    """Inputs and labels (8, 32) of some steps, from a Markov chain over 65 tokens: there is much to learn."""
    generator = np.random.default_rng(7)
    successors = generator.integers(0, 65, size=(65, 4))
    text = [0]
    for choice in generator.integers(0, 4, size=20_000):
        text.append(int(successors[text[-1], choice]))
    tokens = np.array(text, np.int32)
    made = []
    for step in range(first, last):
        offsets = np.random.default_rng(step).integers(0, len(tokens) - 33, size=8)
        windows = tokens[offsets[:, None] + np.arange(33)]
        made.append((np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])))
    return made


def tensors(first: int, last: int) -> Any:
    """The same for PyTorch."""
    return ((torch.from_numpy(x).long(), torch.from_numpy(y).long()) for x, y in batches(first, last))


def largest_difference(found: list[float], expected: list[float]) -> float:
    assert len(found) == len(expected) == 100
    return float(np.abs(np.array(found) - np.array(expected)).max())


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's state after 100 steps, and its losses in the next 100."""

    path: Path
    losses: list[float]


@pytest.fixture(scope="module", params=[False, True], ids=["without bias", "with bias"])
def pytorch_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """nanoGPT trains for 200 steps and saves in the middle, from under torch.compile."""
    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    model = nanogpt.GPT(nanogpt.GPTConfig(**SIZES, bias=request.param))
    nanogpt.randomise(model, 1, 0.02)
    optimizer = model.configure_optimizers(DECAY, 1e-3, BETAS)
    nanogpt.train(model, optimizer, tensors(0, 100), 0, CLIP)
    settings = {"beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": DECAY, "grad_clip": CLIP}
    torch.save(nanogpt.entries(model, optimizer, 100, "_orig_mod.", **settings), path)
    return Run(path, nanogpt.train(model, optimizer, tensors(100, 200), 100, CLIP))


@pytest.fixture(scope="module", params=TWINS)
def twin_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One of our twins trains for 200 steps and saves in the middle."""
    optim = OptimConfig(beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, grad_clip=CLIP)
    trainer = Trainer(request.param, RunConfig(model=ModelConfig(**SIZES, bias=True), optim=optim))
    trainer.train(batches(0, 100), nanogpt.learning_rate)
    path = trainer.save(tmp_path_factory.mktemp(request.param) / "run")
    return Run(path, trainer.train(batches(100, 200), nanogpt.learning_rate))


def continued_in_twin(
    twin: str, run: Path, mutate: Callable[[dict[str, Any], int], int] | None = None, /, **optim: Any
) -> list[float]:
    """100 more steps from a converted run, with the hyper-parameters that came along."""
    config = configuration(run)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **optim))
    trainer = Trainer(twin, config, run, mutate)
    assert trainer.done == 100
    return trainer.train(batches(100, 200), nanogpt.learning_rate)


def continued_in_nanogpt(path: Path) -> list[float]:
    """100 more steps from a converted `ckpt.pt`, the way `train.py --init_from=resume` begins."""
    model, optimizer, first = nanogpt.resume(path, DECAY, 1e-3, BETAS)
    assert first == 100
    return nanogpt.train(model, optimizer, tensors(100, 200), first, CLIP)


@pytest.mark.parity
@pytest.mark.parametrize("twin", TWINS)
def test_what_nanogpt_began_continues_in_a_twin(twin: str, pytorch_run: Run, converted: Callable[..., Path]) -> None:
    losses = continued_in_twin(twin, converted("torch2mlx", pytorch_run.path))
    worst = largest_difference(losses, pytorch_run.losses)
    print(f"nanoGPT -> {twin}: losses differ by at most {worst:.1e}")
    assert worst <= TOLERANCE, worst


@pytest.mark.parity
def test_what_a_twin_began_continues_in_nanogpt(twin_run: Run, converted: Callable[..., Path]) -> None:
    ckpt = converted("mlx2torch", twin_run.path) / "ckpt.pt"
    worst = largest_difference(continued_in_nanogpt(ckpt), twin_run.losses)
    print(f"twin -> nanoGPT: losses differ by at most {worst:.1e}")
    assert worst <= TOLERANCE, worst


@pytest.mark.parity
def test_to_a_twin_and_back_changes_no_bit(pytorch_run: Run, converted: Callable[..., Path]) -> None:
    back = converted("mlx2torch", converted("torch2mlx", pytorch_run.path)) / "ckpt.pt"
    before, after = (torch.load(path, weights_only=True) for path in (pytorch_run.path, back))
    for name, tensor in after["model"].items():
        assert torch.equal(tensor, before["model"][f"_orig_mod.{name}"]), name
    assert before["optimizer"]["state"].keys() == after["optimizer"]["state"].keys()
    for index, state in before["optimizer"]["state"].items():
        for key, tensor in state.items():
            assert torch.equal(after["optimizer"]["state"][index][key], tensor), (index, key)
    for key in ("lr", "betas", "eps", "weight_decay", "params", "amsgrad", "maximize"):
        for old, new in zip(before["optimizer"]["param_groups"], after["optimizer"]["param_groups"], strict=True):
            # The learning rate of a group is what its schedule last set: the trainer sets it before every step.
            assert key == "lr" or new[key] == old[key], key
    assert (after["iter_num"], after["best_val_loss"]) == (100, 2.5)


@pytest.mark.parity
@pytest.mark.parametrize("pytorch_run", [True], ids=["with bias"], indirect=True)
def test_hyperparameters_come_from_the_optimiser_itself(
    pytorch_run: Run, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    """A checkpoint without nanoGPT's `config`, or with one that says otherwise: PyTorch continues with its groups'."""
    entries = torch.load(pytorch_run.path, weights_only=True)
    for number, config in enumerate(({}, {"beta2": 0.9, "weight_decay": 0.0, "learning_rate": 1.0})):
        entries["config"] = config
        torch.save(entries, tmp_path / f"{number}.pt")
        run = converted("torch2mlx", tmp_path / f"{number}.pt")
        optim = configuration(run).optim
        assert ((optim.beta1, optim.beta2), optim.weight_decay, optim.adam_eps) == (BETAS, DECAY, 1e-8)
        losses = continued_in_twin("torch", run, grad_clip=CLIP)
        assert largest_difference(losses, pytorch_run.losses) <= TOLERANCE


def _swap_moments(moments: dict[str, Any], step: int) -> int:
    for name in [name for name in moments if name.startswith("exp_avg.")]:
        squared = name.replace("exp_avg.", "exp_avg_sq.")
        # Absolute values: a negative second moment would be NaN at once.
        moments[name], moments[squared] = moments[squared], abs(moments[name])
    return step


def _swap_layers(moments: dict[str, Any], step: int) -> int:
    """Two tensors of one shape in the wrong order: what a group in another order looks like where shapes agree."""
    for moment in ("exp_avg", "exp_avg_sq"):
        one, other = (f"{moment}.blocks.{i}.attention.qkv_proj.weight" for i in (0, 1))
        moments[one], moments[other] = moments[other], moments[one]
    return step


def _forget(moments: dict[str, Any], step: int) -> int:
    moments.update({name: tensor * 0 for name, tensor in moments.items()})
    return step


MUTANTS: dict[str, Callable[[dict[str, Any], int], int]] = {
    "the step is not transferred": lambda _, step: step * 0,
    "the step is off by one": lambda _, step: step - 1,
    "the moments are swapped": _swap_moments,
    "the order within a group is wrong": _swap_layers,
    "the moments are not transferred": _forget,
}


@pytest.mark.parity
@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("pytorch_run", [True], ids=["with bias"], indirect=True)
def test_a_wrong_transfer_leaves_the_curve(mutant: str, pytorch_run: Run, converted: Callable[..., Path]) -> None:
    losses = continued_in_twin("torch", converted("torch2mlx", pytorch_run.path), MUTANTS[mutant])
    assert largest_difference(losses, pytorch_run.losses) > 2 * TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize(
    "setting", [{"beta2": 0.99}, {"weight_decay": 0.1}, {"grad_clip": 1.0}, {"adam_eps": 1e-6}], ids=str
)
@pytest.mark.parametrize("pytorch_run", [True], ids=["with bias"], indirect=True)
def test_a_hyperparameter_that_did_not_travel_leaves_the_curve(
    setting: dict[str, float], pytorch_run: Run, converted: Callable[..., Path]
) -> None:
    losses = continued_in_twin("torch", converted("torch2mlx", pytorch_run.path), **setting)
    assert largest_difference(losses, pytorch_run.losses) > 2 * TOLERANCE


def _lose_step(optimizer: dict[str, Any]) -> None:
    for state in optimizer["state"].values():
        state["step"] = torch.zeros(())


def _swap_in_nanogpt(optimizer: dict[str, Any]) -> None:
    for state in optimizer["state"].values():
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"].abs()


def _swap_indices(optimizer: dict[str, Any]) -> None:
    """`h.0.attn.c_attn.weight` and `h.1.attn.c_attn.weight`: the third and the seventh of the decayed tensors."""
    state = optimizer["state"]
    state[2], state[6] = state[6], state[2]


@pytest.mark.parity
@pytest.mark.parametrize("mutate", [_lose_step, _swap_in_nanogpt, _swap_indices], ids=lambda f: f.__name__)
@pytest.mark.parametrize("twin_run", ["torch"], indirect=True)
def test_a_wrong_transfer_back_leaves_the_curve(
    mutate: Callable[[dict[str, Any]], None], twin_run: Run, converted: Callable[..., Path]
) -> None:
    ckpt = converted("mlx2torch", twin_run.path) / "ckpt.pt"
    entries = torch.load(ckpt, weights_only=True)
    mutate(entries["optimizer"])
    torch.save(entries, ckpt)
    assert largest_difference(continued_in_nanogpt(ckpt), twin_run.losses) > 2 * TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("twin_run", ["torch"], indirect=True)
def test_groups_in_the_wrong_order_do_not_load(twin_run: Run, converted: Callable[..., Path]) -> None:
    ckpt = converted("mlx2torch", twin_run.path) / "ckpt.pt"
    entries = torch.load(ckpt, weights_only=True)
    entries["optimizer"]["param_groups"].reverse()
    torch.save(entries, ckpt)
    with pytest.raises(ValueError, match="parameter group"):
        continued_in_nanogpt(ckpt)


@pytest.mark.parametrize("pytorch_run", [True], ids=["with bias"], indirect=True)
def test_more_updates_than_iterations_are_refused(pytorch_run: Run, tmp_path: Path) -> None:
    """One of the two numbers is wrong; to take either would move the schedule or the bias correction in silence."""
    entries = copy.deepcopy(torch.load(pytorch_run.path, weights_only=True))
    entries["iter_num"] = 99
    torch.save(entries, tmp_path / "ckpt.pt")
    outcome = run_convert("torch2mlx", tmp_path / "ckpt.pt", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "99" in outcome.stderr
    assert "100" in outcome.stderr
