"""One token per character."""

from __future__ import annotations

from typing import Any

from gpt_common.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer, check_unicode
from gpt_common.errors import UserError


class CharTokenizer(Tokenizer):
    """One id per character, in the order of `characters`.

    Args:
        end_of_text: one more id, the last, ends a document. No text has it: not even <|endoftext|> is read as it.

    Raises:
        UserError: no characters, or one of them twice, or half a surrogate pair.
    """

    kind = "char"

    def __init__(self, characters: str, *, end_of_text: bool = False) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise UserError("a character vocabulary needs at least one character, and each of them once")
        check_unicode(characters)
        document: dict[str, Any] = {"kind": self.kind, "characters": characters}
        table = {i: c.encode() for i, c in enumerate(characters)}
        if end_of_text:
            document["end_of_text"] = True
            table[len(characters)] = END_OF_TEXT.encode()
        super().__init__(table, document, len(characters) if end_of_text else None)
        self.characters = characters
        self._ids = {c: i for i, c in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError:
            position = next(i for i, c in enumerate(text) if c not in self._ids)
            shown = self.characters if len(self.characters) <= 100 else self.characters[:100] + "..."
            raise UserError(
                f"character {text[position]!r} at position {position} is not one of the {len(self.characters)} in the "
                f"vocabulary: {shown!r}"
            ) from None

    def last_cut(self, text: str) -> int:
        return len(text)
