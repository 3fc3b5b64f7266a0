"""Extraction from the worlds of `stories-qa`: questions whose answers are JSON, and the schema that all of them fit."""

from __future__ import annotations

import json
from itertools import count as counting
from pathlib import Path
from typing import Any

from gpt_common.data.conversations.stories_qa import Question, write_questions
from gpt_common.data.stories import WORDS
from gpt_common.errors import UserError
from gpt_common.files import write_atomically

EXAMPLES_FILE, SCHEMA_FILE = "extract.jsonl", "schema.json"
MOST = 100_000
SEED = 30_000
"""Of the questions: other ones than a dataset has, and than its judge asks."""


def write_extraction(folder: Path, count: int, *, seed: int = SEED, overwrite: bool = False) -> tuple[Path, Path]:
    """Write `extract.jsonl` and `schema.json`, the same for the same arguments; returns their paths.

    The worlds are held out: no training on `stories-qa` has seen them.

    Raises:
        UserError: too few or too many; the files are there already; the folder cannot be written.
    """
    if not 1 <= count <= MOST:
        raise UserError(f"count is {count}: it must be from 1 to {MOST:,}")
    paths = folder / EXAMPLES_FILE, folder / SCHEMA_FILE
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already: take another --out, or --overwrite")
    lines = [json.dumps(_line(question), ensure_ascii=False) for question in questions(count, seed)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(paths[0], "\n".join(lines) + "\n")
        write_atomically(paths[1], json.dumps(schema(), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return paths


def questions(count: int, seed: int = SEED) -> list[Question]:
    """So many questions about held-out worlds that ask for JSON."""
    found: list[Question] = []
    for part in counting():
        found += [question for question in write_questions(seed + part, "val", 2 * count) if question.as_json]
        if len(found) >= count:
            break
    return found[:count]


def _line(question: Question) -> dict[str, Any]:
    answers = [json.loads(answer) for answer in question.answers]
    return {"prompt": question.prompt, **({"answer": answers[0]} if len(answers) == 1 else {"answers": answers})}


def schema() -> dict[str, Any]:
    """Of an answer: who has a thing, where something is, which animal somebody is, or which animals there are."""
    animals, names, spots = ([*WORDS[kind]] for kind in ("animal", "name", "spot"))

    def one(name: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}

    of_a_thing, of_a_name = {"enum": [*names, *spots]}, {"enum": [*(f"a {animal}" for animal in animals), *spots]}
    several = {"type": "array", "items": {"enum": animals}, "minItems": 2, "maxItems": 3}
    return {
        "anyOf": [
            *(one(thing, of_a_thing) for thing in WORDS["thing"]),
            *(one(name, of_a_name) for name in names),
            one("animals", several),
        ]
    }
