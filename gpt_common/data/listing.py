"""What `python -m gpt_common.data` shows: progress, the result of a preparation, the table of corpora."""

from __future__ import annotations

from pathlib import Path

from gpt_common.data.catalogue import prepared_names
from gpt_common.data.dataset import BUILT_INS, PREPARABLE, Dataset, prepare_command, read_meta
from gpt_common.data.writer import SPLITS
from gpt_common.errors import UserError


def summary(dataset: Dataset, data_dir: Path, model: str = "") -> str:
    """What was made, and the command that trains on it.

    Args:
        model: the run whose tokenizer it has, if it was made for one.
    """
    tokenizer = dataset.tokenizer
    preset = {"shakespeare_char": "shakespeare-char", "shakespeare": "shakespeare-bpe"}.get(dataset.name)
    flags = f"--preset {preset}" if preset else f"--dataset {dataset.name}"
    flags += "" if data_dir == Path("data") else f" --data-dir {data_dir}"
    flags = f"--init-from {model} {flags}" if model else flags
    width = len(f"{len(dataset.train):,}")
    documents = ""
    if dataset.separator is not None and dataset.documents:
        documents = (
            f"  documents  {sum(dataset.documents):>{width},}, an end-of-text token for each {dataset.separator!r} "
            "(--separator none: ordinary text)\n"
        )
    return (
        f"{data_dir / dataset.name}\n"
        f"  train      {len(dataset.train):>{width},} tokens\n"
        f"  val        {len(dataset.val):>{width},} tokens\n"
        f"  tokenizer  {tokenizer.kind}, vocabulary of {tokenizer.vocab_size:,}\n"
        f"{documents}"
        f"  unigram    {dataset.unigram_entropy:.3f} nats/token: the loss of a model that only counts\n"
        f"train on it, with mlx_gpt or torch_gpt:\n"
        f"  python -m mlx_gpt.train {flags}"
    )


def print_corpora(data_dir: Path) -> None:
    """The table of `list`: built-in, prepared and preparable corpora."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, overflow="fold")
    for heading in ("train", "val", "vocabulary", "size"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    prepared, commands = prepared_names(data_dir), []
    for name in dict.fromkeys([*BUILT_INS, *prepared, *PREPARABLE]):
        if name in prepared:
            row = _row(data_dir / name)
            if row[-1] == "damaged":
                commands.append(prepare_command(name, data_dir, overwrite=True))
        elif name in BUILT_INS:
            row = ["", "", "", "", "made at first use"]
        else:
            row = ["", "", "", "", "not prepared"]
            commands.append(prepare_command(name, data_dir))
        table.add_row(name, *row)
    print(f"corpora in {data_dir}, in tokens:")
    Console().print(table)
    for command in commands:
        print(command)


def _row(folder: Path) -> list[str]:
    """What the table says of a prepared corpus; it is not opened, so only a broken sidecar or a lost file shows."""
    try:
        meta = read_meta(folder)
        tokens = [f"{meta['splits'][split]['tokens']:,}" for split in SPLITS]
        size = sum((folder / f"{split}.bin").stat().st_size for split in SPLITS)
        vocabulary = f"{meta['tokenizer']['kind']} {meta['tokenizer']['vocab_size']:,}"
        return [*tokens, vocabulary, f"{size / 1e6:,.1f} MB", "built-in" if folder.name in BUILT_INS else "prepared"]
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return ["", "", "", "", "damaged"]
