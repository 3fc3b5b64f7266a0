"""`python benchmarks/studies/preparing.py`: how fast a text becomes token ids, beside `datasets.map`, text by text.

Both take the same parquet file of built-in stories, one to a row, and the same byte-level BPE; both work on one core,
and end in the same ids on the disk, which is looked at first. Ours is `prepare --hub` as it is, with --workers 1, but
that the file is there already: shards that a kill leaves, splits, hashes and all. Theirs is the least that a person
writes: `load_dataset`, a batched `map` with `Tokenizer.encode_batch`, and its column written to one file. What
`datasets` keeps between two runs is thrown away.

A round starts both in processes of their own, and they take turns, A B B A; its ratio is the geometric mean of the
turns'. What is printed is the median of the rounds, their range, and a 95 % interval of their mean
(benchmarks/report/pairs.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.report.pairs import MINIMUM_ROUNDS
from benchmarks.studies.turns import Proof, Proofs, measure, proven, ratios_of, work_on_request
from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed, run_main

PROG = "python benchmarks/studies/preparing.py"
SIDES = ("ours", "datasets")
AIM = 1.5
"""Our tokens per second over theirs, at least."""
SEED = 1337
TEXT, TOKENIZER, IDS = "train.parquet", "tokenizer.json", "ids.bin"
LEARNT = 2_000_000
"""Characters that the vocabulary is made of."""
ONE = 1e-6
"""Seconds of a turn: what is begun is done to the end, so it is one corpus."""
AT_ONCE = 1000
"""Rows of a batch: what `datasets.map` takes if not told otherwise."""


@dataclass(frozen=True, kw_only=True)
class PreparingStudy:
    """Measure how fast text becomes token ids, beside datasets.map with the same tokenizer, in turns."""

    megabytes: int = 20
    """Text to encode."""
    vocabulary: int = 4096
    """Entries of the BPE that is made of the text, at most."""
    tokenizer: Path | None = None
    """Somebody's tokenizer.json instead."""
    rounds: int = MINIMUM_ROUNDS
    """Rounds; each gives one ratio."""
    json: Path | None = None
    """Also write the figures here."""
    side: str | None = None
    """For this program's own use: work as long as the standard input says."""
    folder: Path = Path()
    """For its own use: where the text lies."""

    def __post_init__(self) -> None:
        for name in ("megabytes", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")


def check_packages() -> None:
    """Raise a UserError that names what is missing."""
    for package, where in (("datasets", "datasets"), ("pyarrow", "-e '.[hub]'")):
        if find_spec(package) is None:
            raise UserError(f"this compares with Hugging Face's datasets and needs {package}: pip install {where}")


def write_corpus(folder: Path, command: PreparingStudy) -> None:
    """Stories in a file of parquet, one to a row, and the tokenizer."""
    import pyarrow
    import pyarrow.parquet

    from gpt_common.data.stories import write_story
    from gpt_common.data.tokenizers import load_tokenizer, train_bpe_on
    from gpt_common.keyed import keyed_generator

    rng, stories, size = keyed_generator("preparing", SEED), list[str](), 0
    while size < command.megabytes * 10**6:
        stories.append(write_story(rng).text)
        size += len(stories[-1])
    pyarrow.parquet.write_table(pyarrow.table({"text": stories}), folder / TEXT)
    learnt = stories[: 1 + LEARNT // len(stories[0])]
    made = load_tokenizer(command.tokenizer) if command.tokenizer else train_bpe_on(learnt, command.vocabulary)
    made.save(folder / TOKENIZER)


def ours(folder: Path) -> Path:
    """`prepare --hub`, of a file that is here already; returns the dataset's folder."""
    from gpt_common.data.corpora import hub
    from gpt_common.data.corpora.repository import Described

    answers: dict[str, Callable[..., Any]] = {
        "describe": lambda _: Described("0" * 40, [TEXT], []),
        "fetch": lambda *_: (folder / TEXT, "sha256:none"),
    }
    for name, answer in answers.items():  # instead of a hub: this process prepares nothing else
        setattr(hub, name, answer)
    hub.prepare_hub(
        "built-in/stories", "mine", folder / "data", str(folder / TOKENIZER), workers=1, overwrite=True,
        on_progress=lambda *_: None,
    )  # fmt: skip
    return folder / "data" / "mine"


def datasets(folder: Path) -> Path:
    """What a person writes with `datasets`; returns the file of ids."""
    from tokenizers import Tokenizer

    from gpt_common.data.tokenizers import load_tokenizer

    theirs = Tokenizer.from_str(json.dumps(json.loads((folder / TOKENIZER).read_text())["tokenizer"]))
    made = load_tokenizer(folder / TOKENIZER)
    assert made.end_of_text is not None
    end, kind = made.end_of_text, "uint16" if made.vocab_size <= 1 << 16 else "uint32"

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = theirs.encode_batch(batch["text"], add_special_tokens=False)
        return {"ids": [[*encoding.ids, end] for encoding in found]}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        load_dataset = import_module("datasets").load_dataset
        texts = load_dataset("parquet", data_files={"train": str(folder / TEXT)}, split="train", cache_dir=cache)
        encoded = texts.map(encode, batched=True, batch_size=AT_ONCE, num_proc=None, remove_columns=texts.column_names)
        with (folder / IDS).open("wb") as file:
            for table in encoded.with_format("arrow").iter(AT_ONCE):
                file.write(table["ids"].combine_chunks().flatten().to_numpy().astype(kind).tobytes())
    return folder / IDS


PREPARE: dict[str, Callable[[Path], Path]] = {"ours": ours, "datasets": datasets}


def proof_of(path: Path) -> Proof:
    """How many bytes of ids there are, and the beginning of their SHA-256; of a dataset training before validation."""
    files = [path / "train.bin", path / "val.bin"] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return [float(sum(file.stat().st_size for file in files)), float(int(digest.hexdigest()[:12], 16))]


def compare(proofs: Proofs, side: str) -> float:
    """0 if a side has the same ids as the first one.

    Raises:
        WorkFailed: it has others.
    """
    first = next(iter(proofs))
    if proofs[side] != proofs[first]:
        raise WorkFailed(f"{side} makes other ids than {first}: no figure is given")
    return 0.0


def work_as(side: str, folder: Path) -> None:
    """Show the ids, and prepare again as often as asked to."""
    for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import pyarrow

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    if side == "datasets":
        import_module("datasets").disable_progress_bars()
    print(json.dumps(proof_of(PREPARE[side](folder))), flush=True)
    work_on_request(lambda: PREPARE[side](folder))


def start(folder: Path, proofs: Proofs, side: str) -> subprocess.Popen[str]:
    """A side that has shown that its ids are the same; see `turns.proven`."""
    return proven(__file__, side, [f"--folder={folder}"], 1, proofs, compare)


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(PreparingStudy, argv, prog=PROG)
    check_packages()
    if command.side is not None:
        work_as(command.side, command.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_corpus(folder, command)
        seconds, _ = measure(SIDES, partial(start, folder), compare, command.rounds, ONE)
        # datasets' file holds nothing but ids.
        size = (folder / IDS).stat().st_size
        from gpt_common.data.dataset import read_meta

        tokens = sum(split["tokens"] for split in read_meta(folder / "data" / "mine")["splits"].values())
    found = ratios_of(seconds["datasets"], seconds["ours"])
    print(f"{command.megabytes} MB of stories, {tokens:,} tokens, the same {size:,} bytes, one core")
    for side in SIDES:
        print(f"  {side:9} {tokens / statistics.median(seconds[side]) / 1e6:6.3f} million tokens/s")
    spread = f"{min(found['ratios']):.3f} .. {max(found['ratios']):.3f}"
    interval = "{:.3f} .. {:.3f}".format(*found["interval"]) if found["interval"] else "-"
    met = "met" if found["median"] >= AIM else "not met"
    print(f"{'ours / datasets':16} {found['median']:6.3f}, {spread}, 95 % {interval}; at least {AIM}: {met}")
    if command.json is not None:
        command.json.write_text(json.dumps({"seconds": seconds, "tokens": tokens, "ratio": found}, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
