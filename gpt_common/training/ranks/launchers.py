"""Several processes of a twin on this machine, started as a user would, with a thread each, and ended in time.

As a program, `python -m gpt_common.training.ranks.launchers RANKS -m MODULE ...`, this file starts a ring of MLX's as
mlx.launch does on one machine, and sleeps meanwhile. mlx.launch (0.32.4) does not: its threads ask all the time whether
there is something to pass on, and take a core from ranks that have no more than they need.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import sleep

from gpt_common.errors import UserError, WorkFailed

ROOT = Path(__file__).parents[3]
POLL, GRACE = 0.2, 10.0
"""Seconds between two looks at whether a rank has ended, and that one has to end in when another has failed."""
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MOST = 64
RING_PORTS = range(20_000, 32_000, MOST)
"""Where mlx.launch lets its ring begin: below what systems give to whoever asks for any."""


def launch(twin: str, world: int, module: Sequence[str], printed: Path, seconds: float, *, quiet: bool = False) -> str:
    """Run `-m MODULE ARGUMENTS` on `world` ranks, and wait for its end, which comes after `seconds` at the latest.

    Args:
        printed: a file for what all of it prints.
        quiet: what starts them sleeps meanwhile: for measurements.

    Returns:
        The end of what was printed, in a line. What came of it stands elsewhere: exit codes of launchers say little.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with printed.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*launcher(twin, world, quiet=quiet), "-m", *module],
            env={**os.environ, **THREADS, "PYTHONPATH": path},
            stdin=subprocess.PIPE,  # open, and silent: mlx.launch passes on what it reads
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            output.write(f"\nended after {seconds:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return " ".join(printed.read_text(encoding="utf-8", errors="replace").split())[-300:]


def launcher(twin: str, world: int, *, quiet: bool = False) -> list[str]:
    """What starts `world` ranks of `mlx_gpt` or `torch_gpt`; `-m`, a module and its arguments follow.

    Raises:
        WorkFailed: no ports are free for a ring.
    """
    if world == 1:
        return [sys.executable]
    if twin == "torch_gpt":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    if quiet:
        return [sys.executable, "-m", "gpt_common.training.ranks.launchers", str(world)]
    start = "from mlx._distributed_utils.launch import main; main()"
    ring = ["--backend", "ring", "-n", str(world), "--starting-port", str(_free_ports(world))]
    return [sys.executable, "-c", start, *ring, "--", sys.executable]


def ring_hosts() -> list[str]:
    """HOST:PORT of every rank of the ring that this process was started in, by rank; none where it is in no ring."""
    if "MLX_HOSTFILE" not in os.environ:
        return []
    text = Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8")
    # For a single rank mlx.launch (0.32.4) writes an empty line.
    return [str(addresses[0]) for addresses in json.loads(text)] if text.strip() else ["127.0.0.1:0"]


def check_launcher(program: str) -> None:
    """Refuse what the other twin's launcher has started: every process would train a run of its own.

    Args:
        program: as `python -m mlx_gpt.train`.

    Raises:
        UserError: names the launcher to take.
    """
    by_torchrun = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    by_mlx_launch = "MLX_RANK" in os.environ and len(ring_hosts()) != 1
    others = "mpirun" if os.environ.get("OMPI_COMM_WORLD_SIZE", os.environ.get("PMI_SIZE", "1")) != "1" else ""
    if "mlx_gpt" in program and by_torchrun and not (by_mlx_launch or others):
        raise UserError(f"torchrun starts no ranks of MLX: mlx.launch -n N -- PYTHON -m {program.split()[-1]} ...")
    if "torch_gpt" in program and (by_mlx_launch or others) and not by_torchrun:
        raise UserError(
            f"{others or 'mlx.launch'} starts no ranks of PyTorch: torchrun --nproc-per-node N -m "
            f"{program.split()[-1]} ..."
        )


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on; two who look at once begin apart."""
    places = len(RING_PORTS)
    for turn in range(places):
        first = RING_PORTS[(os.getpid() + turn) % places]
        with contextlib.ExitStack() as bound, contextlib.suppress(OSError):
            for port in range(first, first + count):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise WorkFailed(f"no {count} ports in a row are free between {RING_PORTS.start} and {RING_PORTS.stop}")


def ring(world: int, argv: Sequence[str]) -> int:
    """Start Python with `argv` once for each rank of a ring, and wait; the first that fails ends the others.

    Ctrl-C, or SIGTERM as a program, asks them to end, and waits for what they save.

    Returns:
        The exit code of the first that failed, 0 if none did.
    """
    first = _free_ports(world)
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{first + rank}"] for rank in range(world)]), encoding="utf-8")
        ranks = [
            subprocess.Popen(
                [sys.executable, *argv], env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            )
            for rank in range(world)
        ]
        try:
            while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
                sleep(POLL)
        except KeyboardInterrupt:
            for rank in ranks:
                rank.terminate()  # not by SIGINT: a terminal has sent them one, and a second means at once
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    rank.wait(GRACE)
                rank.kill()
                rank.wait()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = ring(int(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code if code >= 0 else 128 - code)
