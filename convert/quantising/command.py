"""`python -m convert quantise RUN`: its matrices in a few bits, and a table of what that cost."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from convert.adapters.keeping import floats_of
from convert.contents import finite, with_dtype
from convert.conversion import DTYPES
from convert.destination import beside, check_run_free
from convert.formats import native
from convert.options import ReadOptions, Source, WriteOptions
from convert.quantising.calibrating import (
    CALIBRATION_TOKENS,
    JUDGE_TOKENS,
    SEED,
    Arrays,
    Matrices,
    Moments,
    by_gptq,
    rounded,
    tuned,
    tuning_steps,
    twin_of,
)
from convert.quantising.choosing import choose
from convert.quantising.choosing import lines_of as layer_lines
from convert.quantising.material import Material, material_if_any
from convert.quantising.sensitivity import cheapest, costs
from convert.quantising.table import Row, float_row, row_of
from convert.quantising.table import lines_of as table_lines
from convert.soundness import checked
from convert.storage.grids import as_tensors
from gpt_common.adapting.closeness import Closeness
from gpt_common.adapting.quantisation import Grid, Grids, bits_per_weight, stored
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.files import written_whole
from gpt_common.network.parameters import parameter_shapes
from gpt_common.progress import Progress
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.words import duration, say

FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
ATTEMPTS = 6
"""At bits that keep to --target-loss."""
PROMPT, SPEED_TOKENS = 8, 48
"""Tokens that generation begins with and makes when its speed is measured."""

TUNING_STEPS, TUNING_RATE = 200, 0.03


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Keep a model's matrices in a few bits, in MLX's affine layout, and say what it costs."""

    examples: ClassVar[tuple[str, ...]] = ("runs/FIRST", "runs/FIRST --calibrate dwq", "runs/FIRST --target-loss 0.01")
    src: Source
    """A run of this project, or one of its checkpoints."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder of the quantised run; if not given, beside SRC with -4bit or as many as there are."""
    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    """Of each weight."""
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale and a bias."""
    calibrate: Literal["none", "gptq", "dwq"] = "none"
    """none: round, as mlx-lm does; gptq: codes that make up for one another on a text; dwq: then tune scales too."""
    text: Path | None = None
    """Text to calibrate on, the last tenth to judge by; if not given, the run's own dataset."""
    target_loss: float | None = None
    """Choose the bits of each matrix, whatever --bits says: as few as let the loss rise by no more, nats per token."""
    keep: tuple[str, ...] = ()
    """Layers that stay float, by name or a part of it: head, token_embedding, down_proj, experts, blocks.0."""
    layer_bits: tuple[str, ...] = ()
    """Other bits for some layers, as down_proj=6."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Round the model to it first, and keep in it scales, biases and what stays float."""
    tokens: int = CALIBRATION_TOKENS
    """How many to calibrate on, by GPTQ."""
    steps: int = TUNING_STEPS
    """Of tuning."""
    rate: float = TUNING_RATE
    """The largest of four rates that tuning tries: by how much of its size a scale may move, times the root of the
    divergence."""
    judge_tokens: int = JUDGE_TOKENS
    """How many to judge by; 0: no table."""
    twin: Literal["auto", "torch", "mlx"] = "auto"
    """Which computes; auto: MLX with a GPU, else PyTorch."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    overwrite: bool = False
    """Replace an earlier result."""

    def __post_init__(self) -> None:
        for name in ("tokens", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("rate", "target_loss"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}: it must be above 0")
        tuning = {"steps": self.steps != TUNING_STEPS, "rate": self.rate != TUNING_RATE}
        if self.calibrate != "dwq" and any(tuning.values()):
            name = next(name for name, given in tuning.items() if given)
            raise UserError(f"--{name} is of tuning, which --calibrate dwq does")
        if self.target_loss is not None and self.layer_bits:
            raise UserError("target_loss chooses the bits of each matrix: leave out --layer-bits, or --target-loss")
        if self.judge_tokens < 0:
            raise UserError(f"judge_tokens is {self.judge_tokens}: it must not be negative")


def quantise(command: Quantise) -> Path:
    """Quantise; returns the new run.

    Raises:
        UserError: the source is an adapter or quantised already, no text for what was asked, or the destination is not
            free.
    """
    started = time.monotonic()
    checkpoint = find_checkpoint(command.src, prefer="latest" if command.latest else "best")
    contents = finite(native.read(checkpoint, ReadOptions(optimizer=False)))
    config = checked(contents)
    if contents.grids:
        raise UserError(f"{command.src} is quantised already: quantise the run that it was made from")
    shapes = parameter_shapes(config.model)
    choice = choose(shapes, Grid(command.bits, command.group_size), command.keep, command.layer_bits)
    ending = f"{command.bits}bit" if command.target_loss is None else "quantised"
    destination = command.out or beside(command.src, f"-{ending}")
    check_run_free(destination, command.overwrite, (checkpoint,))
    contents, _ = with_dtype(contents, DTYPES[command.dtype])
    tokenizer, _ = contents.find_tokenizer()
    wants_text = command.calibrate != "none" or command.target_loss is not None
    text = None
    if wants_text or command.judge_tokens:
        text, missing = material_if_any(config, read_manifest(checkpoint), tokenizer, command.text)
        if text is None and wants_text:
            raise UserError(f"calibration wants text, and {missing}: add --text FILE")
        if text is None:
            say(f"note: what this costs was not measured, since {missing}: --text FILE measures it")
    tensors = floats_of(contents)
    quantiser = Quantiser(command, config.model, tensors, text)
    grids, matrices = quantiser.quantised(choice.grids)
    made = dataclasses.replace(
        contents,
        format=f"run in {command.bits} bits" if command.target_loss is None else "run in a few bits",
        words={
            name: part
            for layer, matrix in matrices.items()
            for name, part in as_tensors(layer, matrix, DTYPES[command.dtype]).items()
        },
        grids=grids,
        val_loss=None,  # what was measured was another model
        best_val_loss=None,
    )
    options = WriteOptions(tokenizer=tokenizer, template=contents.find_template())
    with written_whole(destination) as folder:
        native.write(made, folder, options)
    for line in layer_lines(dataclasses.replace(choice, grids=grids)):
        say(line)
    if quantiser.rows and text is not None:
        for line in table_lines(quantiser.rows, text.name, text.floor):
            say(line)
    bits = bits_per_weight(shapes, grids, FLOAT_BITS[command.dtype])
    say(
        f"{destination}: {len(grids)} matrices quantised, {bits:.2f} bits per weight, in "
        f"{duration(time.monotonic() - started)}"
    )
    return destination


class Quantiser:
    """A model on its way to a grid, judged at each step of it.

    Args:
        command: what was asked.
        model: its shape.
        tensors: all of its tensors, float32.
        text: what it is calibrated on and judged by, if there is any.
    """

    def __init__(self, command: Quantise, model: ModelConfig, tensors: Arrays, text: Material | None) -> None:
        self.command, self.model, self.tensors, self.text = command, model, tensors, text
        self.rows: list[Row] = []
        """Of the table."""
        if text is not None:
            self.twin = twin_of(command.twin)
            self.teacher = self.twin.quantised(model, tensors)
            self.judging = text.judging(command.judge_tokens or JUDGE_TOKENS)

    def quantised(self, grids: Grids) -> tuple[Grids, Matrices]:
        """The matrices on their grids, and the grids: these, or as many bits as --target-loss asks for."""
        command = self.command
        moments = self._moments(grids) if command.calibrate != "none" or command.target_loss is not None else {}
        if command.target_loss is None:
            return grids, self._calibrated(grids, moments)
        with Progress() as progress:
            advance = progress.counting("asking each matrix", len(grids))
            found = costs(
                self.twin, self.model, self.teacher, self.tensors, grids, moments, self.judging[:4], lambda: advance(1)
            )
        sizes = {layer: self.tensors[f"{layer}.weight"].size for layer in grids}
        allowed = command.target_loss
        for _ in range(ATTEMPTS):
            chosen = cheapest(found, grids, sizes, allowed)
            self.rows.clear()
            matrices = self._calibrated(chosen, moments)
            closeness = self.rows[-1].closeness if self.rows else self._judge(chosen, matrices)[1]
            if (risen := closeness.student_loss - closeness.teacher_loss) <= command.target_loss:
                return chosen, matrices
            # The matrices cost more together than each alone, or less.
            allowed *= min(0.8, command.target_loss / risen)
        raise UserError(
            f"target_loss {command.target_loss:g}: with 8 bits and groups of {command.group_size} the loss still rises "
            f"by {risen:.4f}: allow more, or take a smaller --group-size"
        )

    def _calibrated(self, grids: Grids, moments: Moments) -> Matrices:
        command = self.command
        matrices: Matrices = rounded(self.tensors, grids, command.dtype)
        self._row("rounded", grids, matrices)
        if command.calibrate != "none":
            with Progress() as progress:
                advance = progress.counting("rounding by GPTQ", len(grids))
                found = {}
                for layer, matrix in by_gptq(self.tensors, grids, moments, command.dtype):
                    found[layer] = matrix
                    advance(1)
            matrices = found
            self._row("gptq", grids, matrices)
        if command.calibrate == "dwq":
            assert self.text is not None
            arrays = stored(self.tensors, matrices)
            new_student = partial(self.twin.quantised, self.model, arrays, grids)
            with Progress() as progress:
                advance = progress.counting("tuning scales and biases", tuning_steps(command.steps))
                matrices = tuned(self.twin, self.teacher, new_student, matrices, self.text, command, lambda: advance(1))
            self._row("dwq", grids, matrices)
        return matrices

    def _moments(self, grids: Grids) -> Moments:
        assert self.text is not None
        return self.twin.input_moments(self.teacher, grids, self.text.enough(SEED, self.command.tokens))

    def _judge(self, grids: Grids, matrices: Matrices) -> tuple[Any, Closeness]:
        """The model with these matrices, and how near it is to the float one."""
        student = self.twin.quantised(self.model, stored(self.tensors, matrices), grids)
        return student, self.twin.compare(self.teacher, student, self.judging)

    def _row(self, name: str, grids: Grids, matrices: Matrices) -> None:
        """Judge a model for the table, if there is to be one."""
        if self.text is None or not self.command.judge_tokens:
            return
        student, closeness = self._judge(grids, matrices)
        shapes, wide = parameter_shapes(self.model), FLOAT_BITS[self.command.dtype]
        prompt = self.judging[0].tokens[0, :PROMPT].tolist()
        if not self.rows:
            speed = self.twin.speed(self.teacher, prompt, SPEED_TOKENS)
            self.rows.append(float_row(shapes, wide, closeness, speed))
        speed = self.twin.speed(student, prompt, SPEED_TOKENS)
        self.rows.append(row_of(name, shapes, grids, wide, closeness, speed))
