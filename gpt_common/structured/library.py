"""llguidance, the library that says which tokens a form allows; it comes with the extra `structured`."""

from __future__ import annotations

from typing import Any

from gpt_common.errors import UserError


def llguidance() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "JSON schemas, regular expressions and grammars need llguidance: pip install -e '.[structured]'"
        ) from None
    return llguidance


def limits() -> Any:
    """What a form may cost: its own limits, which end a hostile one in a second or two.

    Its messages tell no more of a form than the place: they are shown to whoever asked.
    """
    return llguidance().LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def in_one_line(text: str) -> str:
    """What the library says of a form that it refuses, without its drawings and its own insides."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "it cannot be followed"
    if lines[0].startswith("panic"):
        return "it is too large"
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    shown = (lines[0].removeprefix("lexer error: ") if not said else said[-1]).replace("<non-verbose/>", "").strip()
    return shown if len(shown) <= 200 else shown[:197] + "..."
