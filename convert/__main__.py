"""Move weights and optimiser state in and out, and prove that nothing changed: `python -m convert COMMAND`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from gpt_common.cli import parse
from gpt_common.errors import Stopped, UserError, nearest, run_main
from gpt_common.manual import HELP_WORDS

COMMANDS = {
    "import": "bring in a model or adapter as a run: file, folder, hf:OWNER/NAME",
    "export": "write a run for nanoGPT, transformers, mlx-lm, peft or llama.cpp",
    "torch2mlx": "as import, beside the source; with --to mlx-lm straight there",
    "mlx2torch": "as export, with --to nanogpt where nothing else is said",
    "inspect": "what a checkpoint is: configuration, tensors, dtypes, hashes",
    "fuse": "merge a run's adapter into its base, as a whole model",
    "quantise": "keep a run's matrices in a few bits, calibrated on local text",
    "diff": "compare two checkpoints tensor by tensor; exit 1 if they differ",
    "parity": "does the MLX twin compute what the PyTorch twin computes?",
}


def main(argv: Sequence[str]) -> None:
    """Run one command; each loads only what it needs."""
    if not argv or argv[0] in HELP_WORDS:
        lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
        print("\n".join(["usage: python -m convert COMMAND ...", "", *lines, "", "Each has a --help of its own."]))
        if not argv:
            raise UserError("which command? " + ", ".join(COMMANDS))
        return
    name, rest = argv[0], argv[1:]
    prog = f"python -m convert {name}"
    match name:
        case "import" | "export" | "torch2mlx" | "mlx2torch":
            from convert import conversion

            kinds: dict[str, type[conversion.Command]] = {
                "import": conversion.Import,
                "export": conversion.Export,
                "torch2mlx": conversion.Torch2mlx,
                "mlx2torch": conversion.Mlx2torch,
            }
            conversion.convert(parse(kinds[name], rest, prog=prog))
        case "inspect":
            from convert.inspection import Inspect, inspect

            inspect(parse(Inspect, rest, prog=prog))
        case "fuse":
            from convert.adapters.fuse import Fuse, fuse

            fuse(parse(Fuse, rest, prog=prog))
        case "quantise":
            from convert.quantising.command import Quantise, quantise

            quantise(parse(Quantise, rest, prog=prog))
        case "diff":
            from convert.difference import Diff, diff

            diff(parse(Diff, rest, prog=prog))
        case "parity":
            from convert.parity.command import main as parity

            parity(rest)
        case _:
            raise UserError(f"unknown command '{name}': {nearest(name, COMMANDS)}")


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


if __name__ == "__main__":
    # As with Ctrl-C, what is half-written is removed.
    signal.signal(signal.SIGTERM, _stop)
    run_main(main, sys.argv[1:])
