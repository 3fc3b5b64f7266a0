"""A trained model as `sample` takes it up: command line, checkpoint with its tokenizer, and the text printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_common.cli import parse
from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import TextStream, Tokenizer, default_prompt, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.sampling import Batch, Continuation, continue_together, encode_prompt
from gpt_common.structured import CompiledForm, Form, compile_form, form_in
from gpt_common.training.checkpoint import described, find_checkpoint
from gpt_common.training.folder import newest_run
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest
from gpt_common.training.pretrained import local_run
from gpt_common.words import one_line, printable

AT_ONCE = 8
"""Samples that are made together."""


def parse_sampling(argv: Sequence[str], *, prog: str) -> tuple[Path, SampleCommand]:
    """The sampling command line: the checkpoint or run folder, if not the newest run is meant, then flags."""
    words = list(argv)
    command = parse(SampleCommand, words[1:] if words and not words[0].startswith("-") else words, prog=f"{prog} CKPT")
    if words and not words[0].startswith("-"):
        return Path(words[0]), command
    run = newest_run()
    print(f"sampling from the newest run, {one_line(str(run))}", file=sys.stderr)
    return run, command


@dataclass(frozen=True)
class Source:
    """What a sample command needs of a checkpoint, before a framework is asked."""

    checkpoint: Path
    model: ModelConfig
    tokenizer: Tokenizer
    prompt: str


def open_source(path: Path, *, latest: bool) -> Source:
    """The checkpoint that `path` means, with its shape and tokenizer; `hf:OWNER/NAME` is brought in first.

    Raises:
        UserError: no checkpoint there, a damaged one, or one without a tokenizer.
    """
    checkpoint = find_checkpoint(local_run(path), prefer="latest" if latest else "best")
    manifest = described(checkpoint)
    if not (checkpoint / TOKENIZER_FILE).exists():
        raise UserError(f"{checkpoint} has no {TOKENIZER_FILE}: copy in the one that the model was trained with")
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_FILE)
    _check_tokenizer(checkpoint, tokenizer, manifest)
    prompt = manifest.prompt or default_prompt(tokenizer)
    return Source(checkpoint, manifest.run_config.model, tokenizer, prompt)


def _check_tokenizer(checkpoint: Path, tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Refuse a tokenizer that the model was not trained with: its ids would mean other text, or lie outside."""
    path, rows = checkpoint / TOKENIZER_FILE, manifest.run_config.model.vocab_size
    remedy = "copy in the one that the model was trained with"
    if manifest.tokenizer and manifest.tokenizer["fingerprint"] != tokenizer.fingerprint:
        theirs = f"{manifest.tokenizer['kind']}, {manifest.tokenizer['vocab_size']} entries"
        ours = f"{tokenizer.kind}, {tokenizer.vocab_size} entries"
        raise UserError(f"{path} is another tokenizer ({ours}) than the model's ({theirs}): {remedy}")
    if tokenizer.vocab_size > rows:
        raise UserError(f"{path} has {tokenizer.vocab_size} entries, and the model {rows}: {remedy}")


def print_samples(command: SampleCommand, source: Source, batch: Batch) -> None:
    """Write every sample to standard output, in order: the first that is not finished as it is made, the others, made
    at the same time, when it is their turn.

    What a form cost is told on standard error at the end, and which samples do not have it.

    Raises:
        UserError: a prompt with a character outside the vocabulary, or longer than the block; a form that cannot be
            kept to.
    """
    tokenizer = source.tokenizer
    form = _asked_form(command, tokenizer)
    if command.prompt is None:
        # The dataset's own, cut to a block too short for it.
        prompt = tokenizer.encode_written(source.prompt)[: source.model.block_size]
    else:
        prompt = encode_prompt(command.prompt, tokenizer, source.model.block_size)
    # What the model says comes out of a file, its vocabulary: it must not steer a terminal.
    shown_as = _json_shown if command.json_schema is not None else printable
    text = printable(tokenizer.decode(prompt))
    samples = range(command.num_samples)
    made: list[Continuation] = []
    ends = {tokenizer.end_of_text} if form is None else {tokenizer.end_of_text, *tokenizer.ends}
    streams: dict[int, TextStream] = {}  # of the samples that have said something
    unseen: dict[int, str] = {}  # what was said and not written yet
    ended: set[int] = set()
    shown = 0  # the sample that is being written

    def begin(sample: int) -> None:
        if command.num_samples > 1:
            print(f"--- sample {sample + 1} of {command.num_samples} (seed {command.seed})")
        sys.stdout.write(text)

    def sequence(sample: int) -> Continuation:
        constraint = None if form is None else form.begin()
        made.append(Continuation(list(prompt), command, draws(command.seed, sample), constraint))
        return made[-1]

    begin(0)
    for sample, token in continue_together(batch, map(sequence, samples), AT_ONCE, lambda _, token: token in ends):
        if token is None:
            ended.add(sample)
            rest = streams[sample].finish() if sample in streams else ""
            unseen[sample] = f"{unseen.get(sample, '')}{rest}\n"
        elif token not in ends:
            piece = streams.setdefault(sample, TextStream(tokenizer)).push(token)
            unseen[sample] = unseen.get(sample, "") + shown_as(piece)
        while shown in unseen:
            sys.stdout.write(unseen.pop(shown))
            sys.stdout.flush()
            if shown not in ended:
                break
            if shown not in streams:
                print("the model ended the document at once: give it a --prompt, or another --seed", file=sys.stderr)
            shown += 1
            if shown < command.num_samples:
                begin(shown)
    if form is not None:
        _tell_of_form(made)


def _asked_form(command: SampleCommand, tokenizer: Tokenizer) -> CompiledForm | None:
    """The form that a command asks for, if any."""
    if command.json_schema is not None:
        form = form_in(command.json_schema, "json_schema", whitespace=command.json_whitespace)
    elif command.grammar is not None:
        form = form_in(command.grammar, "grammar")
    elif command.regex is not None:
        form = Form("regex", command.regex, name="--regex")
    else:
        return None
    return compile_form(form, tokenizer)


def _json_shown(text: str) -> str:
    """`printable` for a piece of JSON, which stays what it says: in JSON's own escapes."""
    return "".join(c if c == "\n" or printable(c) in (c, " " * 4) else json.dumps(c)[1:-1] for c in text)


def _tell_of_form(made: Sequence[Continuation]) -> None:
    """Say on standard error which samples have their form, and what it cost."""
    complete, tokens, forced = 0, sum(one.made for one in made), sum(one.forced for one in made)
    for number, one in enumerate(made, 1):
        assert one.constraint is not None
        complete += one.constraint.complete
        if not one.constraint.complete:
            which = f"sample {number}: " if len(made) > 1 else ""
            why = one.constraint.stuck or f"it ran out of its {one.made} tokens before the form was complete"
            print(f"{which}{printable(why)}", file=sys.stderr)
    nats = sum(one.divergence.nats for one in made)
    print(
        f"form: {complete} of {len(made)} complete; it left no choice about {forced} of {tokens} tokens, and cost "
        f"{nats / max(1, tokens):.3f} nats per token (KL divergence from the model's own next tokens)",
        file=sys.stderr,
    )
