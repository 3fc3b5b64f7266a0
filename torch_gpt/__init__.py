"""The GPT in PyTorch, the reference: CPU, MPS and CUDA.

In a notebook:

    from torch_gpt import GPT, generate, load, train

    model: GPT = load("runs/stories-cpu")
    print(generate(model, "Once upon a time", max_new_tokens=100))
    train(preset="stories-cpu", max_steps=50)

Importing this changes nothing in the process, and loads no framework before one of the four is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_gpt import train as train
    from torch_gpt.model import GPT as GPT
    from torch_gpt.notebook import generate as generate
    from torch_gpt.notebook import load as load

__all__ = ["GPT", "generate", "load", "train"]

_HOMES = {"GPT": "model", "generate": "notebook", "load": "notebook"}


def __getattr__(name: str) -> Any:
    if name == "train":  # a module that can be called
        return import_module(f"{__name__}.train")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
