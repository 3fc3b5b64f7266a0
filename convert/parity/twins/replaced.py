"""For a while another value in one place: how routers are led, calls are watched, and mutants are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block `owner.name` is `value`; what a class or a base class had there comes back."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def replaced_entry(table: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Within the block `table[name]` is `value`."""
    before = table[name]
    table[name] = value
    try:
        yield
    finally:
        table[name] = before
