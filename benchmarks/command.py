"""What `benchmarks/run.py` takes on its command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gpt_common.config import RunConfig
from gpt_common.errors import UserError

if TYPE_CHECKING:
    from gpt_common.adapting.quantisation import Grid


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure training on the backends present here, one process each, and compare them.

    Backends: mlx (its GPU, or its CPU where there is none), mlx-cpu, mlx-cpu-compiled, mps, mps-compiled, cpu,
    cpu-compiled, cuda, cuda-compiled; mlx-bf16, mps-bf16 and so on train in bfloat16. Every field of a configuration
    is a flag too. The default shape is nanoGPT's for Shakespeare by characters: the large one on a GPU, the small one
    on a CPU; dtype auto means float32, so that all other rows compute the same.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--backends mps,mlx,cpu",
        "--preset gpt2 --bits 4 --generation",
        "--compare A.json B.json",
    )
    backends: str = "mlx,mps,cpu"
    """What to measure, with commas: mlx, mlx-cpu, mps, cpu, cuda, with -compiled or -bf16; what is absent becomes a row
    that says why."""
    peers: str = ""
    """Other people's implementations with the same work and weights: transformers, mlx-lm, nanogpt."""
    nanogpt_path: Path | None = None
    """Your clone of nanoGPT, for --peers nanogpt: its own model, optimiser and step are measured, in float32."""
    preset: str | None = None
    """Measure the shape of this preset."""
    config: Path | None = None
    """Measure the shape in this TOML file."""
    out: Path = Path("results")
    """Folder of the result: JSON, plots, page."""
    rounds: int = 6
    """Processes per backend. With fewer than 6 nothing is claimed."""
    seconds: float = 1.5
    """Length of each of the two series in a process."""
    cooldown: float = 1.0
    """Seconds of rest before each process; a Mac that is hot rests until it is not."""
    parity: bool = True
    """Ask the parity ladder first, up to its gradients; what does not pass is not timed. Without, rows are marked
    unverified."""
    threads: int | None = None
    """Threads of every process on the CPU; left out, as many as each framework takes."""
    sweep: str | None = None
    """Measure several values of a field: n_layer=2,4,8 (or n_embd, block_size, batch_size, ...)."""
    sustained: bool = False
    """Also train for minutes without a pause: whether the speed holds."""
    sustained_minutes: float = 10.0
    """How long."""
    generation: bool = False
    """Also measure prompt processing and generated tokens per second."""
    bits: Literal[2, 3, 4, 5, 6, 8] | None = None
    """Also measure each backend with quantised matrices, where a step of every row trains adapters; LoRA if --adapter
    says nothing else."""
    group_size: Literal[32, 64, 128] | None = None
    """With --bits: weights that share a scale and a bias, 64 if not given."""
    overhead: bool = False
    """Also measure what the trainer around the step costs: data, logging, progress."""
    energy: bool = True
    """Measure energy, where a source is found."""
    compare: tuple[Path, Path] | None = None
    """Measure nothing: compare two results of the same work, of two machines or versions."""
    run: RunConfig = field(default_factory=RunConfig)
    """The configuration; every field is a flag."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"rounds is {self.rounds}: it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads is {self.threads}: it must be at least 1")
        for name in ("seconds", "sustained_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.cooldown < 0:
            raise UserError(f"cooldown is {self.cooldown}: it must not be negative")
        if self.bits is None:
            if self.group_size is not None:
                raise UserError("--group-size is of quantised matrices: add --bits, as in --bits 4")
            return
        if self.peers:
            raise UserError("--bits: peers have no adapters here: leave --peers out; studies/adapters.py times theirs")
        if self.overhead:
            raise UserError("--bits: the trainer's loop is set beside steps of whole models: leave --overhead out")

    @property
    def grid(self) -> Grid | None:
        """That of the quantised rows; None without."""
        from benchmarks.grids import GROUP_SIZE  # with numpy, which help does without
        from gpt_common.adapting.quantisation import Grid

        return None if self.bits is None else Grid(self.bits, self.group_size or GROUP_SIZE)
