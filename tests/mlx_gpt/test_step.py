"""What the step and the evaluation of the MLX twin hand to a GPU: looked at in the graph, or tried on the CPU."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gpt_common.config import ModelConfig, OptimConfig, RunConfig
from gpt_common.data.batches import Batch
from mlx_gpt import kernels
from mlx_gpt.model import GPT
from mlx_gpt.optim import build_optimizer
from mlx_gpt.probe import TrainingProbe
from mlx_gpt.train import TrainStep

CONFIG = RunConfig(model=ModelConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8))


def model_and_step(compiled: bool = False) -> tuple[GPT, TrainStep]:
    model = GPT(CONFIG.model)
    model.initialise(1)
    return model, TrainStep(model, build_optimizer(model, OptimConfig()), CONFIG, compiled)


def batch() -> Batch[Any]:
    ids = np.random.default_rng(0).integers(0, 11, (3, 9)).astype(np.int32)
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy())


def operations(*outputs: Any) -> int:
    """How many operations there are in the graph of some outputs."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return text.getvalue().count("shape=rectangle")


def arrays(of: Batch[Any]) -> tuple[Any, ...]:
    return mx.array(of.tokens), mx.array(of.labels), None, None, None


def test_a_single_micro_step_is_not_gone_over_once_more() -> None:
    _, step = model_and_step()
    (_, loss), gradients = step.loss_and_gradients(*arrays(batch()))
    alone, sums = step.add_gradients(None, None, *arrays(batch()))
    plain = operations(loss, gradients)
    assert plain > 20
    assert operations(alone, sums) == plain
    # Of two micro-steps, the loss and each of the parameters are divided and added.
    count = len(list(step.model.named_parameters()))
    shared, _ = step.add_gradients(None, mx.array(2.0), *arrays(batch()))
    both = operations(*step.add_gradients(sums, mx.array(2.0), *arrays(batch())))
    assert both >= operations(shared) + 2 * count


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_the_compiled_step_is_the_step(micro_steps: int) -> None:
    found = []
    for compiled in (False, True):
        model, step = model_and_step(compiled)
        losses = [float(step([batch()] * micro_steps, number, 1e-2)[0]) for number in range(5)]
        found.append((losses, {name: np.array(value) for name, value in model.named_parameters()}))
    (eager, weights), (fast, others) = found
    assert fast == pytest.approx(eager, abs=2e-6)
    # Steps of 1e-2, whose direction is rounded: a small part of one.
    assert max(np.abs(weights[name] - others[name]).max() for name in weights) <= 1e-4


def test_a_gpu_s_evaluation_is_compiled_and_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, step = model_and_step()
    eager = TrainingProbe(model)
    monkeypatch.setattr(GPT, "device", SimpleNamespace(type=mx.gpu))
    compiled = TrainingProbe(model)
    assert ("gc_func" in repr(compiled.mean_loss), "gc_func" in repr(eager.mean_loss)) == (True, False)
    for number in range(3):
        assert compiled.losses([batch()] * 4) == pytest.approx(eager.losses([batch()] * 4), abs=1e-6)
        assert compiled.loss(batch()) == pytest.approx(eager.loss(batch()), abs=1e-6)
        step([batch()], number, 1e-1)
    assert eager.losses([]) == []


def test_on_a_gpu_the_loss_takes_logits_as_they_are_and_answers_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[mx.Dtype] = []
    fused = mx.fast.cross_entropy

    def watched(logits: mx.array, labels: mx.array) -> mx.array:
        given.append(logits.dtype)
        return fused(logits, labels)

    monkeypatch.setattr(kernels, "on_cpu", lambda: False)
    monkeypatch.setattr(mx.fast, "cross_entropy", watched)
    logits, labels = mx.random.normal((2, 4, 11)).astype(mx.bfloat16), mx.zeros((2, 4), mx.int32)
    assert kernels.cross_entropy(logits, labels).dtype == mx.float32
    assert given == [mx.bfloat16]
