"""A tokenizer with more special tokens than it was made with: those by which a template divides a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_common.data.tokenizers.tokenizer import Tokenizer, check_unicode
from gpt_common.errors import UserError


class ExtendedTokenizer(Tokenizer):
    """Another tokenizer with ids of its own behind the other's; a text is encoded as by that one.

    Args:
        base: the other one.
        names: of the tokens that come behind it, in the order of their ids.

    Raises:
        UserError: no names, or one that is there already.
    """

    def __init__(self, base: Tokenizer, names: Sequence[str]) -> None:
        if not names or len({*names, *base.specials}) != len(names) + len(base.specials) or "" in names:
            raise UserError("special tokens to add must have names, each once, that the tokenizer does not have yet")
        check_unicode("".join(names))
        self.base, self.names = base, tuple(names)
        self.kind = base.kind
        table = dict(base._token_bytes) | {base.vocab_size + i: name.encode() for i, name in enumerate(names)}
        super().__init__(table, {**base._document, "added": list(names)}, base.end_of_text)

    @property
    def specials(self) -> dict[str, int]:
        return self.base.specials | {name: self.base.vocab_size + i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> list[int]:
        return self.base.encode(text)

    def last_cut(self, text: str) -> int:
        return self.base.last_cut(text)


def with_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """`tokenizer` with those of the special tokens `names` that it does not have yet behind its own."""
    missing = [name for name in names if name not in tokenizer.specials]
    if not missing:
        return tokenizer
    base, more = (tokenizer.base, tokenizer.names) if isinstance(tokenizer, ExtendedTokenizer) else (tokenizer, ())
    return ExtendedTokenizer(base, [*more, *missing])
