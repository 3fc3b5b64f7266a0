"""PyTorch at work: our twin, and transformers' GPT-2 as its peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch

from benchmarks.measuring.backends import Backend
from benchmarks.measuring.work import Absent, Batches, gpt2_weights
from benchmarks.readings import Compilation
from gpt_common.commands import SampleSettings
from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from torch_gpt.device import compute_dtype, describe, select_device, synchronise, to_device
from torch_gpt.model import GPT
from torch_gpt.optim import build_optimizer
from torch_gpt.sample import generate
from torch_gpt.train import TrainStep


class TorchWork:
    """Our twin; see `work.Work`."""

    def __init__(self, backend: Backend, config: RunConfig) -> None:
        try:
            self._device = select_device(backend.device)
        except UserError as error:
            raise Absent(str(error)) from None
        self._config = config
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
        self.model: Any = GPT(config.model, self._dtype, config.train.gradient_checkpointing).to(self._device)
        self.model.initialise(config.train.seed)
        self._train_step = TrainStep(self.model, build_optimizer(self.model, config.optim), config, self.compiled)

    def step(self, batches: Batches, step: int, rate: float) -> None:
        self._loss, _ = self._train_step(batches, step, rate)

    def wait(self) -> None:
        synchronise(self._device)

    def force(self) -> float:
        return float(self._loss) + float(next(self.model.parameters()).detach().flatten()[-1])

    def loss(self) -> float:
        return float(self._loss)

    def product(self, n: int) -> Callable[[], None]:
        a, b = (torch.randn(n, n, device=self._device).to(self._dtype) for _ in range(2))
        out = torch.empty_like(a)

        def queue() -> None:
            torch.mm(a, b, out=out)

        return queue

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


class TransformersWork(TorchWork):
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

    def step(self, batches: Batches, step: int, rate: float) -> None:  # noqa: ARG002 (no keyed dropout)
        total = torch.zeros((), device=self._device)
        bf16 = torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")
        for batch in batches:
            there = to_device(batch, self._device)
            with bf16:
                logits = self.model(there.tokens, use_cache=False).logits
            logits_NV, labels_N = logits.float().flatten(0, 1), there.labels.flatten()
            loss = torch.nn.functional.cross_entropy(logits_NV, labels_N) / len(batches)
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.optim.grad_clip or float("inf"))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._loss = total

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        self.model.eval()
        past, fresh = None, torch.tensor([list(prompt)], device=self._device)
        for _ in range(tokens):
            out = self.model(fresh, past_key_values=past, use_cache=True)
            past, token = out.past_key_values, int(np.argmax(out.logits[0, -1].float().cpu().numpy()))
            fresh = torch.tensor([[token]], device=self._device)
            yield token
