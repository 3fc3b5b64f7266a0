"""PyTorch at work: our twin, and as its peers transformers' GPT-2 and nanoGPT."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.measuring.backends import Backend
from benchmarks.measuring.work import Absent, Batcher, Batches, Refused, gpt2_weights, weight_bytes
from benchmarks.readings import Compilation
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.commands import SampleSettings
from gpt_common.config import RunConfig
from gpt_common.data.batches import Batch
from gpt_common.errors import UserError
from gpt_common.machine.provenance import git_state
from torch_gpt.device import compute_dtype, describe, select_device, synchronise, to_device
from torch_gpt.model import GPT, loss
from torch_gpt.optim import build_optimizer
from torch_gpt.sample import generate
from torch_gpt.train import TrainStep

LARGEST_DIFFERENCE = 1e-5
"""Nats per token by which nanoGPT's loss of the first batch may be another than ours, from the same weights."""


class TorchWork:
    """Our twin; see `work.Work`."""

    def __init__(self, backend: Backend, config: RunConfig, grids: Grids = NOT_QUANTISED) -> None:
        try:
            self._device = select_device(backend.device)
        except UserError as error:
            raise Absent(str(error)) from None
        self._config, self._grids = config, grids
        self._source = Path(backend.source)
        dtype = compute_dtype(config.train, self._device)
        self.compiled = backend.compiled
        self.device = self._device.type
        self.description = describe(self._device) + (", torch.compile" if backend.compiled else "")
        self.dtype = str(dtype).removeprefix("torch.")
        self.notes: list[str] = []
        self._dtype = dtype
        self._loss = torch.zeros(())
        self.build()

    def build(self) -> None:
        """Model and optimiser."""
        config = self._config
        checkpointing = config.train.gradient_checkpointing
        self.model: Any = GPT(config.model, self._dtype, checkpointing, config.adapter, self._grids).to(self._device)
        self.model.initialise(config.train.seed)
        self.model.adapters.initialise(self.model, config.train.seed)  # often there are none
        self._train_step = TrainStep(self.model, build_optimizer(self.model, config.optim), config, self.compiled)

    def step(self, batches: Batches, step: int, rate: float) -> None:
        self._loss, _ = self._train_step(batches, step, rate)

    def wait(self) -> None:
        synchronise(self._device)

    def force(self) -> float:
        updated = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return float(self._loss) + float(updated.detach().flatten()[-1])

    def loss(self) -> float:
        return float(self._loss)

    def product(self, n: int) -> Callable[[], None]:
        a, b = (torch.randn(n, n, device=self._device).to(self._dtype) for _ in range(2))
        out = torch.empty_like(a)

        def queue() -> None:
            torch.mm(a, b, out=out)

        return queue

    def weight_bytes(self) -> int:
        return weight_bytes({name: tensor.nbytes for name, tensor in _held(self.model)}, self._config)

    def memory(self) -> dict[str, int | None]:
        if self.device == "cuda":
            reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
            return {"peak": torch.cuda.max_memory_allocated(), "cache": reserved - allocated}
        if self.device == "mps":
            driver, current = torch.mps.driver_allocated_memory(), torch.mps.current_allocated_memory()
            return {"peak": driver, "cache": driver - current}
        return {"peak": None, "cache": None}

    def compilation(self) -> Compilation | None:
        if not self.compiled:
            return None
        from torch._dynamo.utils import calculate_time_spent, counters

        # One frame compiled is one graph if nothing breaks it and nothing is compiled again.
        breaks = sum(counters["graph_break"].values())
        frames = counters["frames"]["ok"]
        return Compilation(
            seconds=round(calculate_time_spent().get("total_wall_time", 0.0), 3),
            graphs=counters["stats"]["unique_graphs"],
            graph_breaks=breaks,
            recompiles=max(0, frames - 1 - breaks),
        )

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        return generate(self.model, prompt, SampleSettings(max_new_tokens=tokens, temperature=0), repeat(0.0))


class PeerWork(TorchWork):
    """Somebody else's model in a step of its own: forward, backward, clip, AdamW, zero, as their trainers write it."""

    _optimizer: torch.optim.Optimizer

    def step(self, batches: Batches, step: int, rate: float) -> None:  # noqa: ARG002 (no keyed dropout)
        total = torch.zeros((), device=self._device)
        bf16 = torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")
        for batch in batches:
            with bf16:
                mean_loss = self._mean_loss(to_device(batch, self._device)) / len(batches)
            mean_loss.backward()
            total = total + mean_loss.detach()
        if self._config.optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.optim.grad_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._loss = total

    def _mean_loss(self, batch: Batch[torch.Tensor]) -> torch.Tensor:
        """The peer's loss of a batch, nats per token."""
        raise NotImplementedError


class TransformersWork(PeerWork):
    """transformers' GPT-2, with the same weights, batches, loss and optimiser."""

    def build(self) -> None:
        try:
            import transformers
        except ImportError as error:
            raise Absent(f"transformers cannot be imported ({error}): pip install transformers") from None
        model, config = self._config.model, self._config
        if model.head_bias or not model.tied_head or (model.dropout and model.dropout_rng == "shared"):
            raise Absent("transformers' GPT-2 has no untied head, head bias or shared dropout masks")
        settings = transformers.GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.block_size,
            n_embd=model.n_embd,
            n_layer=model.n_layer,
            n_head=model.n_head,
            activation_function="gelu" if model.feed_forward == "gelu" else "gelu_new",
            layer_norm_epsilon=model.norm_eps,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = transformers.GPT2LMHeadModel(settings)
        self.description = f"transformers {transformers.__version__}, {self.description}"
        if not model.bias:
            self.notes.append("has biases, which start at zero and are trained")
        weights = {name: torch.from_numpy(array) for name, array in gpt2_weights(config, conv1d=True)}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        unknown = [name for name in missing if not name.endswith((".bias", "lm_head.weight"))]
        if unknown or unexpected:
            raise Absent(f"transformers' GPT-2 has other weights: {', '.join([*unknown, *unexpected])}")
        self.model.to(self._device).train()
        if config.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self._optimizer = build_optimizer(self.model, config.optim)

    def _mean_loss(self, batch: Batch[torch.Tensor]) -> torch.Tensor:
        logits_BTV = self.model(batch.tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), batch.labels.flatten())

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        self.model.eval()
        past, fresh = None, torch.tensor([list(prompt)], device=self._device)
        for _ in range(tokens):
            out = self.model(fresh, past_key_values=past, use_cache=True)
            past, token = out.past_key_values, int(np.argmax(out.logits[0, -1].float().cpu().numpy()))
            fresh = torch.tensor([[token]], device=self._device)
            yield token


class NanoGptWork(PeerWork):
    """nanoGPT's own model, loss and optimiser, eager and in float32, with our weights and batches."""

    def build(self) -> None:
        theirs, config, file = load_nanogpt(self._source), self._config, self._source / "model.py"
        fields = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
        optim = config.optim
        try:
            settings = theirs.GPTConfig(**{name: getattr(config.model, name) for name in fields})
            self.model = theirs.GPT(settings)
            weights = {name: torch.from_numpy(array) for name, array in gpt2_weights(config)}
            missing, unexpected = self.model.load_state_dict(weights, strict=False)
            self.model.to(self._device).train()
            betas = (optim.beta1, optim.beta2)
            # By their train.py, "cuda" or "cpu", to which MPS belongs: it decides about AdamW's fused form.
            kind = "cuda" if self.device == "cuda" else "cpu"
            self._optimizer = self.model.configure_optimizers(optim.weight_decay, optim.learning_rate, betas, kind)
            differs = self._difference()
            self.model.load_state_dict(weights, strict=False)
        except Exception as error:
            raise Refused(f"--nanogpt-path: {file} fails: {type(error).__name__}: {_first_line(error)}") from None
        # The head is the embedding, and where attention is not fused its mask is a buffer.
        buffers = dict(self.model.named_buffers())
        unset = [name for name in missing if name != "lm_head.weight" and name not in buffers]
        if unset or unexpected:
            raise Refused(f"--nanogpt-path: the model of {file} has other weights: {', '.join([*unset, *unexpected])}")
        # Not `>`: a NaN agrees with nothing.
        if not differs <= LARGEST_DIFFERENCE:
            raise Refused(
                f"--nanogpt-path: the loss of {file} is {differs:.1e} off ours, with the same weights and batch: at "
                f"most {LARGEST_DIFFERENCE:g} is rounding, so it does other work"
            )
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        which = git_state(self._source) or f"no clone, model.py's SHA-256 {digest}"
        self.description = f"nanoGPT ({which}), {self.description}"
        self.notes.append(f"nanoGPT: {which}; first loss within {LARGEST_DIFFERENCE:g} of ours")

    def _mean_loss(self, batch: Batch[torch.Tensor]) -> torch.Tensor:
        mean_loss: torch.Tensor = self.model(batch.tokens, batch.labels)[1]
        return mean_loss

    @torch.no_grad()
    def _difference(self) -> float:
        """How far its loss of the first batch is from ours, nothing dropped, nats per token; changes its weights.

        Looked at twice. From 0.02, where training begins, a small model hardly feels what attention does: at 1 over the
        root of the width every product is about as large as its input, and so is what a fault in it changes.
        """
        ours = GPT(self._config.model).to(self._device)
        ours.initialise(self._config.train.seed)
        batch = to_device(Batcher(self._config).take(1)[0][1][0], self._device)
        self.model.eval()
        differences = []
        for factor in (1.0, 1 / (0.02 * self._config.model.n_embd**0.5)):
            for weight in [*ours.parameters(), *self.model.parameters()]:
                if weight.ndim >= 2:
                    weight.mul_(factor)
            differences.append(abs(float(self._mean_loss(batch)) - float(loss(ours, batch))))
        self.model.train()
        return float(np.max(differences))

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        self.model.eval()
        context = torch.tensor([list(prompt)], device=self._device)
        for _ in range(tokens):
            context = self.model.generate(context, 1, top_k=1)  # of one candidate it draws that one
            yield int(context[0, -1])


def load_nanogpt(folder: Path) -> ModuleType:
    """model.py of a clone of nanoGPT as a module.

    Raises:
        Refused: it cannot be imported.
    """
    file = folder / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refused(f"--nanogpt-path: {file} fails: {type(error).__name__}: {_first_line(error)}") from None
    return module


def _held(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that is saved with a model, once: a tied head is the embedding."""
    saved = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return ((name, tensor) for name, tensor in named if name in saved)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
