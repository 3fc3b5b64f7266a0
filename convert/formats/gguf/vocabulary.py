"""Tokenizers in GGUF files: byte-level BPE as llama.cpp splits, spells and merges it, for words, bytes and characters.

A character vocabulary is such a BPE too: a token is the bytes of a character in GPT-2's letters, and merges join the
bytes of every character that has several, from left to right. UTF-8 tells first bytes from later ones, so no merge
reaches across two characters. Without `eos_token_id` llama.cpp takes token 11 for the end of a text, whatever it is,
so that a vocabulary without an end is given one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.contents import FoundTokenizer
from convert.formats.tokenizer_files import byte_level_bpe, definition_of, ends_of, known_definition, writes_chatml
from convert.storage.gguf_header import Value
from convert.storage.pickles import shown
from gpt_common.data.conversations.written import CHATML, END, TURN, Template
from gpt_common.data.tokenizers import BYTE_LETTERS, END_OF_TEXT, CharTokenizer, ExtendedTokenizer, Tokenizer
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.data.tokenizers.tokenizer import BYTE_OF_LETTER
from gpt_common.errors import UserError

PREFIX = "tokenizer.ggml"
MODEL, NO_MODEL = "gpt2", "none"
TEMPLATE = "tokenizer.chat_template"
OWN_ROWS = "mlx_torch_gpt.vocab_size"
"""How many rows are the model's own, where one was added for the end of a text."""
OWN_TOKENS = "mlx_torch_gpt.tokens"
"""How many tokens are the tokenizer's own, where its end was none of them."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NEVER = BYTE_LETTERS[255]
"""A byte that no UTF-8 has: two of them are the merge of a vocabulary that needs none, for there must be one."""
CHARACTERS = "smollm"
"""The rule by which characters are split. Any would do; with this one llama.cpp keeps a space before a comma, too, when
it makes text of many tokens at once, which with `gpt-2` and `default` it does not."""
UNSAID = "default"
"""What files say that do not know their rule."""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
RULES: dict[str, list[dict[str, Any]]] = {"gpt-2": [BYTE_LEVEL], "smollm": [DIGITS, BYTE_LEVEL]}
"""llama.cpp's names of splitting rules, and the same in a tokenizer.json."""
GIVE = "give another with --tokenizer FILE, or do without with --tokenizer none"


@dataclass
class _Table:
    """Tokens as they are spelled, and what each is."""

    tokens: list[str]
    types: list[int]

    def put(self, number: int, token: str, kind: int) -> None:
        self.tokens[number], self.types[number] = token, kind


def settings_of(tokenizer: Tokenizer | None, rows: int, template: Template | None) -> tuple[dict[str, Value], bool]:
    """What a file says of a tokenizer, and whether the vocabulary needs one more row for the end of a text.

    Args:
        rows: of the model's vocabulary, which may be larger.
        template: of conversations; None: ours, where the tokenizer has its tokens.

    Raises:
        UserError: llama.cpp has no such tokenizer; says what is in the way.
    """
    if tokenizer is None:
        return {f"{PREFIX}.model": NO_MODEL}, False
    ends = ends_of(tokenizer, template)
    added = not ends and tokenizer.vocab_size == rows
    if not ends:
        ends = [tokenizer.vocab_size]
    size = rows + added
    table = _Table([f"[PAD{i}]" for i in range(size)], [UNUSED] * size)
    base = tokenizer.base if isinstance(tokenizer, ExtendedTokenizer) else tokenizer
    rule, merges = _characters(base, table) if isinstance(base, CharTokenizer) else _pieces(base, table)
    for name, number in tokenizer.specials.items():
        table.put(number, name, CONTROL)
    own: dict[str, Value] = {OWN_ROWS: rows} if added else {}
    if ends[0] == tokenizer.vocab_size:
        table.put(ends[0], END_OF_TEXT, CONTROL)
        own[OWN_TOKENS] = tokenizer.vocab_size
    begin = ends[-1]
    if template is not None and template.begin in tokenizer.specials:
        begin = tokenizer.specials[template.begin]
    found: dict[str, Value] = {
        f"{PREFIX}.model": MODEL,
        f"{PREFIX}.pre": rule,
        f"{PREFIX}.tokens": table.tokens,
        f"{PREFIX}.token_type": np.array(table.types, np.int32),
        f"{PREFIX}.merges": merges,
        f"{PREFIX}.bos_token_id": begin,
        f"{PREFIX}.eos_token_id": ends[0],
        f"{PREFIX}.add_bos_token": False,
        f"{PREFIX}.add_eos_token": False,
    }
    if len(ends) > 1:
        found[f"{PREFIX}.eot_token_id"] = ends[0]
    source = template.source if template is not None else CHATML if writes_chatml(tokenizer) else None
    return found | ({} if source is None else {TEMPLATE: source}) | own, added


def names_of_ends(tokenizer: Tokenizer, template: Template | None) -> list[str]:
    """Names of the tokens at which a text ends, as a file has them."""
    names = {number: name for name, number in tokenizer.specials.items()}
    return [names[end] for end in ends_of(tokenizer, template)] or [END_OF_TEXT]


def _characters(base: CharTokenizer, table: _Table) -> tuple[str, list[str]]:
    merges: dict[str, None] = {}
    for number, character in enumerate(base.characters):
        letters = [BYTE_LETTERS[byte] for byte in character.encode()]
        table.put(number, "".join(letters), NORMAL)
        for i in range(1, len(letters)):
            merges["".join(letters[:i]) + " " + letters[i]] = None
    return CHARACTERS, list(merges) or [f"{NEVER} {NEVER}"]


def _pieces(base: Tokenizer, table: _Table) -> tuple[str, list[str]]:
    definition = definition_of(base, base.vocab_size)
    rule = _rule(definition)
    model = definition["model"]
    for token, number in model["vocab"].items():
        table.put(number, token, NORMAL)
    for token in definition["added_tokens"]:
        table.put(token["id"], token["content"], CONTROL if token["special"] else USER_DEFINED)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(len(merge) != 2 or " " in "".join(merge) for merge in merges):
        raise UserError("a merge of the tokenizer is not of two byte-level pieces, and GGUF cannot spell it")
    return rule, [" ".join(merge) for merge in merges] or [f"{NEVER} {NEVER}"]


def _rule(definition: Mapping[str, Any]) -> str:
    """What llama.cpp calls the rule by which a tokenizer splits text.

    Raises:
        UserError: it has none that does the same.
    """
    splitter = definition.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    if definition.get("normalizer") is None and not definition["model"].get("ignore_merges"):
        for name, rule in RULES.items():
            if [_computed(step) for step in steps] == [_computed(step) for step in rule]:
                return name
    raise UserError(
        f"the tokenizer splits text by a rule that is not one of {', '.join(RULES)}, and llama.cpp would take another: "
        "choose another --to, or train one with --tokenizer bpe, which has GPT-2's rule"
    )


def _computed(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step of splitting without what changes no token."""
    usual = {"use_regex": True} if step.get("type") == "ByteLevel" else {}
    return usual | {key: value for key, value in step.items() if key != "trim_offsets"}


def read(path: Path, settings: Mapping[str, Value]) -> FoundTokenizer:
    """The tokenizer in a file's settings.

    Raises:
        UserError: of a kind that is not known here, or damaged.
    """
    model = settings.get(f"{PREFIX}.model", NO_MODEL)
    if model in (NO_MODEL, "no_vocab"):
        return None, ("no tokenizer: the file has none",)
    rule = settings.get(f"{PREFIX}.pre", UNSAID)
    if model != MODEL or not isinstance(rule, str) or rule not in (*RULES, UNSAID):
        said = f"of kind {shown(model)}" if model != MODEL else f"split by the rule {shown(rule)}"
        known = ", ".join((*RULES, "characters"))
        raise UserError(f"{path}: its tokens are {said}, and only {MODEL} with {known} is read: {GIVE}")
    tokens, types = _tokens(path, settings)
    if (characters := _read_characters(tokens, types)) is not None:
        return characters, ()
    if rule == UNSAID:
        raise UserError(f"{path}: it does not say how its tokenizer splits text ({PREFIX}.pre is {UNSAID}): {GIVE}")
    merges = settings.get(f"{PREFIX}.merges")
    if not isinstance(merges, list):
        raise UserError(f"{path}: its tokenizer has no {PREFIX}.merges: {GIVE}")
    try:
        return _read_pieces(settings, rule, tokens, types, [merge.split(" ") for merge in merges]), ()
    except (KeyError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{path}: its tokenizer cannot be read ({str(error)[:200]}): {GIVE}") from None


def _tokens(path: Path, settings: Mapping[str, Value]) -> tuple[list[str], list[int]]:
    """Tokens and their types, without rows that are no token of the model's own."""
    tokens = settings.get(f"{PREFIX}.tokens")
    types = settings.get(f"{PREFIX}.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{path}: its tokenizer has no {PREFIX}.tokens: {GIVE}")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if not isinstance(types, np.ndarray) or types.size != len(tokens) or types.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {PREFIX}.token_type does not say for each of {len(tokens):,} tokens what it is: {GIVE}"
        )
    kinds: list[int] = types.tolist()
    for key in ("eos", "eot"):  # older files say of no token that it is one of control
        end = settings.get(f"{PREFIX}.{key}_token_id")
        if type(end) is int and end < len(kinds):
            kinds[end] = CONTROL
    own = settings.get(OWN_TOKENS, len(tokens))
    if type(own) is not int or not 1 <= own <= len(tokens):
        raise UserError(f"{path}: {OWN_TOKENS} is {shown(own)}, and there are {len(tokens):,} tokens: {GIVE}")
    return tokens[:own], kinds[:own]


def _read_characters(tokens: Sequence[str], types: Sequence[int]) -> Tokenizer | None:
    """A vocabulary of characters, if it is one."""
    characters, names = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL:
            names.append(token)
        elif kind == NORMAL:
            if names or not all(letter in BYTE_OF_LETTER for letter in token):
                return None
            character = bytes([BYTE_OF_LETTER[letter] for letter in token]).decode("utf-8", "replace")
            if len(character) != 1 or character == "\ufffd":
                return None
            characters.append(character)
    has_end = names[:1] == [END_OF_TEXT]
    try:
        return with_tokens(CharTokenizer("".join(characters), end_of_text=has_end), names[has_end:])
    except UserError:
        return None


def _read_pieces(
    settings: Mapping[str, Value], rule: str, tokens: Sequence[str], types: Sequence[int], merges: list[list[str]]
) -> Tokenizer:
    entries = [(token, i) for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED]
    vocabulary = dict(entries)
    if len(vocabulary) < len(entries):
        raise ValueError("a token stands in it twice")
    special = [(token, i) for token, i in entries if types[i] == CONTROL]
    # What conversations added to a vocabulary of ours stands behind it, and says so in the template.
    behind: list[str] = []
    if settings.get(TEMPLATE) == CHATML:
        last = max(i for _, i in entries if types[i] != CONTROL)
        behind = [token for token, i in special if i > last and token != END_OF_TEXT]
        behind = behind if {TURN, END} <= set(behind) else []
    kept = {token: i for token, i in entries if token not in behind}
    definition = byte_level_bpe(kept, merges)
    added = definition["added_tokens"][:0]
    for token, i in entries:
        if token in kept and types[i] in (CONTROL, USER_DEFINED):
            added.append(_added(token, i, special=types[i] == CONTROL))
    steps = RULES[rule]
    splitter = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    # To the letter as `train_bpe` leaves it, so that a tokenizer of ours comes back as the same one.
    definition |= {"added_tokens": added, "pre_tokenizer": splitter, "post_processor": None}
    definition["decoder"] = {**BYTE_LEVEL, "add_prefix_space": True}
    definition["model"] |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    return with_tokens(known_definition(definition), behind)


def _added(name: str, number: int, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": number, "content": name, **flags}


def template_in(settings: Mapping[str, Value]) -> Template | None:
    """The template of conversations that a file has, if it is another than ours."""
    source, tokens = settings.get(TEMPLATE), settings.get(f"{PREFIX}.tokens")
    if not isinstance(source, str) or source == CHATML or not isinstance(tokens, list):
        return None

    def name(key: str) -> str:
        number = settings.get(f"{PREFIX}.{key}_token_id")
        return tokens[number] if type(number) is int and number < len(tokens) else ""

    return Template(source, "the GGUF file", begin=name("bos"), end=name("eos"))
