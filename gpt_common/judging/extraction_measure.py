"""`evaluate --extract`: JSON out of texts, held to a schema and free, behind several numbers of solved examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.judging.extraction import (
    KEPT_FOR_SHOTS,
    SHOTS,
    Example,
    Extraction,
    extract,
    lines_of,
    longest_prompt,
    read_examples,
)
from gpt_common.judging.measure import Asked
from gpt_common.judging.scoring import Scorer
from gpt_common.progress import Progress
from gpt_common.structured import Form, compile_form, form_in


@dataclass(frozen=True)
class ExtractionResult:
    """The figures of every number of examples, free and held."""

    rows: list[Extraction]
    too_long: dict[int, int]
    """By number of examples that do not fit: the tokens that they and a question have."""
    block_size: int

    def lines(self) -> Iterator[str]:
        """A line for each, and one for each number of examples that does not fit."""
        yield from lines_of(self.rows)
        for shots, tokens in self.too_long.items():
            yield f"  {shots:>5}  do not fit: {tokens} tokens with a question, the block holds {self.block_size}"

    def as_json(self) -> dict[str, Any]:
        """The same figures."""
        return {"rows": [asdict(row) for row in self.rows], "too_long": self.too_long, "block_size": self.block_size}

    def against(self, other: ExtractionResult) -> Iterator[str]:
        """Row by row."""
        theirs = {(row.shots, row.held): row for row in other.rows}
        for row in self.rows:
            if (beside := theirs.get((row.shots, row.held))) is not None:
                how = "held" if row.held else "free"
                yield (
                    f"  {row.shots:>5}  {how}: exact {row.exact - beside.exact:+d} of {row.asked}, "
                    f"field F1 {row.f1 - beside.f1:+.3f}"
                )


class ExtractionMeasure:
    """Asks for JSON.

    Args:
        file: of examples; the first of them are shown and never asked.
        schema: file of the schema that the answers should fit.
        shots: how many examples are shown, as `0,1,4`.
    """

    name = "extraction"

    def __init__(self, file: Path, schema: Path, shots: str) -> None:
        self.file, self.schema = file, schema
        try:
            self.shots = sorted({int(number) for number in shots.split(",")}) if shots else list(SHOTS)
        except ValueError:
            raise UserError(f"--shots {shots}: numbers of examples belong there, as 0,1,4") from None
        if not 0 <= self.shots[0] <= self.shots[-1] <= KEPT_FOR_SHOTS:
            raise UserError(f"--shots {shots}: from 0 to {KEPT_FOR_SHOTS} examples can be shown")
        self.examples: list[Example] = []

    @property
    def about(self) -> str:
        """The name of the examples' file."""
        return self.file.name

    def prepare(self, asked: Asked) -> None:
        """Read the examples, and hold the vocabulary against the schema."""
        self.examples = self.examples or read_examples(self.file)
        compile_form(self._form(), asked.source.tokenizer)

    def ask(self, scorer: Scorer, asked: Asked) -> ExtractionResult:
        """Ask for all of it, for each number of examples twice."""
        tokenizer, schema = asked.source.tokenizer, self._form().text
        rows, too_long = list[Extraction](), dict[int, int]()
        with Progress() as progress:
            for number, (shots, held) in enumerate((shots, held) for shots in self.shots for held in (False, True)):
                progress("asking", number, 2 * len(self.shots))
                longest = longest_prompt(self.examples, tokenizer, shots)
                if longest >= scorer.block_size:
                    too_long[shots] = longest
                    continue
                rows.append(
                    extract(self.examples, scorer.batch, tokenizer, scorer.block_size, schema, shots=shots, held=held)
                )
        return ExtractionResult(rows, too_long, scorer.block_size)

    def _form(self) -> Form:
        return form_in(self.schema, "json_schema", whitespace=True)
