"""What stands behind `train(preset="stories-cpu", max_steps=50)` in a notebook."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def flags(**fields: Any) -> list[str]:
    """Keyword arguments as a command line has them: `max_steps=50, bias=True` is `--max-steps 50 --bias`."""
    words: list[str] = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


class CallableModule(ModuleType):
    """A module that is called as its `main`, with fields for flags; what `main` returns.

    `python -m mlx_gpt.train` needs a module of that name, `from mlx_gpt import train` shall give a function, and Python
    gives the module, from the moment that it has been imported. So the module is the function.
    """

    def __call__(self, **fields: Any) -> Any:
        """`train(preset="stories-cpu", max_steps=50)`: every flag of `--help-all` is a field; returns the run's folder.

        Raises:
            UserError: what the command would end with, exit code 2.
            WorkFailed: what it would end with, exit code 1.
        """
        return self.main(flags(**fields))
