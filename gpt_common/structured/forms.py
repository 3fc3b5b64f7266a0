"""Forms that a text can be held to, and the tokens that one allows as a text grows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.files import parse_json
from gpt_common.structured.library import in_one_line, limits, llguidance
from gpt_common.structured.patterns import class_of, literal_letters
from gpt_common.structured.schemas import Schema, read_schema
from gpt_common.structured.vocabulary import Vocabulary, vocabulary_of

LARGEST = 1 << 18
"""Characters of a form."""
PROBED = 24
"""Tokens that are tried before a form is taken: what is too large says so in the first of them."""
MOST_BLAMED = 200
"""Places of a schema that are compiled by themselves to find the one that is refused."""


NOT_IN_GRAMMARS = {
    r"%json\b": "schemas inside a grammar (%json) are not checked, so they are refused: give the schema alone",
    r"\[[^\]\n]*\btemperature\s*=": "the temperature of a part of a grammar is not heeded: leave it out",
}
"""What llguidance would take, by how it looks, and why it is refused."""
Kind = Literal["json_schema", "regex", "grammar"]


@dataclass(frozen=True)
class Form:
    """What a text must be, from its first character to its last."""

    kind: Kind
    text: str
    """The JSON of a schema; a regular expression as Rust's `regex` has them, without lookaround; a grammar in Lark's
    notation."""
    whitespace: bool = False
    """Of JSON: blanks and line ends are allowed between its parts; otherwise it is written without."""
    name: str = "the form"
    """How errors call it."""


def form_in(path: Path, kind: Kind, *, whitespace: bool = False) -> Form:
    """The form in a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.stat().st_size > 4 * LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: too large for a form")
        return Form(kind, path.read_text(encoding="utf-8-sig"), whitespace, str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"cannot read {path}: {why}") from None


@dataclass(frozen=True)
class CompiledForm:
    """A form for the tokens of one tokenizer; texts that keep to it `begin` here."""

    form: Form
    vocabulary: Vocabulary
    matcher: Any

    def begin(self) -> Constraint:
        """A text that has nothing yet."""
        return Constraint(self.form, self.vocabulary, self.matcher.deep_copy())


def compile_form(form: Form, tokenizer: Tokenizer) -> CompiledForm:
    """A form for the tokens of a tokenizer.

    Raises:
        UserError: llguidance is not installed; the form is wrong, too large, or nothing fits it; it asks for something
            that would not be enforced, or for a character that the vocabulary does not have.
    """
    llguidance()
    if len(form.text) > LARGEST:
        raise UserError(f"{form.name} has {len(form.text):,} characters: {LARGEST:,}, at most")
    try:
        form.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{form.name} is not valid Unicode") from None
    vocabulary = vocabulary_of(tokenizer)
    try:
        matcher = _schema(form, vocabulary) if form.kind == "json_schema" else _written(form, vocabulary)
        compiled = CompiledForm(form, vocabulary, matcher)
        _probe(compiled)
    except UserError as error:
        raise UserError(f"{form.name}: {error}") from None
    return compiled


def _matcher(grammar: str, vocabulary: Vocabulary) -> Any:
    return llguidance().LLMatcher(vocabulary.library, grammar, log_level=0, limits=limits())


def _schema(form: Form, vocabulary: Vocabulary) -> Any:
    try:
        document = parse_json(form.text)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise UserError(f"it is not JSON: {what}") from None
    schema = read_schema(document, vocabulary)

    def compiled(node: Any = None) -> Any:
        options = {"whitespace_flexible": form.whitespace, "json_allowed_escapes": vocabulary.escapes}
        try:
            grammar = llguidance().LLMatcher.grammar_from_json_schema(schema.text(node), overrides=options)
        except ValueError as error:
            raise UserError(f"#: {in_one_line(str(error))}") from None
        return _matcher(grammar, vocabulary)

    matcher = compiled()
    if matcher.is_error():
        where, why = _blamed(schema, compiled) or ("#", matcher.get_error())
        few = (
            "" if vocabulary.characters is None else f" with the {len(vocabulary.characters)} characters of this model"
        )
        said = in_one_line(why)
        if said.startswith("Unsatisfiable schema: "):
            said = said.removeprefix("Unsatisfiable schema: ")
            said = "no text has its pattern, format and length" if said.startswith("Regex is empty") else said
            said = f"nothing fits{few}: {said}"
        elif said.startswith("Unable to determine if regex is empty"):
            said = "the pattern is too large"
        elif said.startswith("oneOf"):
            said = "'oneOf' is enforced only where no value can fit two of its schemas: take 'anyOf'"
        raise UserError(f"{where}: {said}")
    return matcher


def _blamed(schema: Schema, compiled: Any) -> tuple[str, str] | None:
    """The innermost place that is refused by itself, and why."""
    for where, node in schema.places[:MOST_BLAMED]:
        alone = compiled(node)
        if alone.is_error():
            return where, alone.get_error()
    return None


def _written(form: Form, vocabulary: Vocabulary) -> Any:
    """A regular expression or a grammar."""
    library, characters = llguidance(), vocabulary.characters
    if form.kind == "grammar":
        for said, why in NOT_IN_GRAMMARS.items():
            if re.search(said, form.text):
                raise UserError(why)
        _check_letters("".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', form.text)).replace("\\", ""), vocabulary)
        grammar = library.LLMatcher.grammar_from_lark(form.text)
    elif characters is None:
        grammar = library.LLMatcher.grammar_from_regex(form.text)
    else:
        # What it could begin and the vocabulary cannot end is cut off.
        _check_letters(literal_letters(form.text), vocabulary)
        alone = _matcher(library.LLMatcher.grammar_from_regex(form.text), vocabulary)
        if alone.is_error():
            raise UserError(in_one_line(alone.get_error()))
        said = library.regex_to_lark(form.text, "").replace("\n", r"\n")
        writable = library.regex_to_lark(class_of(characters) + "*", "")
        grammar = library.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: /{said}/ & /{writable}/")
    matcher = _matcher(grammar, vocabulary)
    if matcher.is_error():
        raise UserError(in_one_line(matcher.get_error()))
    return matcher


def _check_letters(letters: str, vocabulary: Vocabulary) -> None:
    letter = vocabulary.lacking(letters)
    if letter is not None:
        raise UserError(f"the vocabulary of this model cannot write {letter!r}")


def _probe(compiled: CompiledForm) -> None:
    """Refuse what goes wrong in its first tokens."""
    tried = compiled.begin()
    if tried.closed and not tried.stuck:
        raise UserError("it has room for the empty text alone")
    for _ in range(PROBED):
        if tried.closed:
            break
        allowed = tried.allowed
        # One that is neither first nor last: those are often what ends a text.
        tried.take(int(allowed[len(allowed) // 2]))
    if tried.stuck:
        raise UserError(tried.stuck)


@dataclass
class Constraint:
    """A form as one text goes through it.

    Args:
        matcher: of llguidance, at the beginning.
    """

    form: Form
    vocabulary: Vocabulary
    matcher: Any
    allowed: npt.NDArray[np.intp] = field(init=False)
    """Ids of the tokens that may come next, ascending; tokens that end a text among them where it may end."""
    complete: bool = field(init=False, default=False)
    """The text as it is fits the form."""
    closed: bool = field(init=False, default=False)
    """Nothing can follow: it is complete, was ended, or is stuck."""
    stuck: str | None = field(init=False, default=None)
    """Why the form cannot be followed any further, and the text is not complete."""
    _forced: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._look_ahead()

    @property
    def forced(self) -> int | None:
        """The token that must come next, where the form leaves no choice of text."""
        return self._forced[0] if self._forced else None

    def take(self, token: int) -> None:
        """Go on behind a token that is allowed."""
        if token in self.vocabulary.ends:
            self.closed = True
            return
        self._forced = self._forced[1:]
        if not self.matcher.consume_token(token):
            self._fail(self.matcher.get_error())
            return
        self._look_ahead()

    def _look_ahead(self) -> None:
        matcher = self.matcher
        self.complete = matcher.is_accepting()
        if matcher.is_error():
            self._fail(matcher.get_error())
        elif matcher.is_stopped():
            self.closed = True
        elif self._forced:
            self.allowed = np.array(self._forced[:1])
        elif forced := matcher.compute_ff_tokens():
            # The text is certain, and so is how the tokenizer would cut it.
            self._forced, self.allowed = forced, np.array(forced[:1])
        else:
            self.allowed = self.vocabulary.listed(matcher.compute_bitmask(), complete=self.complete)
            if matcher.is_error() or not len(self.allowed):
                self.closed = self.complete
                if not self.complete:
                    self._fail(matcher.get_error() if matcher.is_error() else "")

    def _fail(self, why: str) -> None:
        self.closed, self.complete, self.allowed = True, False, np.array([], np.intp)
        none_left = not why or why.startswith("NoExtension")
        said = "no token of the vocabulary can follow" if none_left else in_one_line(why)
        self.stuck = f"the form cannot be followed here: {said}"
