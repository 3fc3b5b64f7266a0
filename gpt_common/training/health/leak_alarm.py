"""The alarm before the first step that validation text stands in the training text, in whole or in part."""

from __future__ import annotations

from gpt_common.data import Dataset
from gpt_common.data.leakage.validation import WINDOW, Leakage, leakage
from gpt_common.words import share


def leak_alarm(dataset: Dataset) -> str | None:
    """What to say if validation text was found in the training text, more of it than chance puts there."""
    found = leakage(dataset.train, dataset.val, dataset.tokenizer)
    return in_words(found) if found is not None and found.is_leak else None


def in_words(found: Leakage) -> str:
    """`validation text stands in the training text: ...`."""
    return (
        f"validation text stands in the training text: {share(found.share)} of it, in windows of {WINDOW} letters "
        f"without spacing (the training text repeats itself to {share(found.expected)}), and its loss says that much "
        "less of new text"
    )
