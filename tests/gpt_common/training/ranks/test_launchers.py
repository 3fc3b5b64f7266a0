"""What starts ranks: command lines, a ring of our own, and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from gpt_common.training.ranks import launchers
from gpt_common.training.ranks.launchers import check_launcher, launch, launcher, ring, ring_hosts
from tests.twins import hears_hang_ups

RANK = """
import json, os, sys
hosts = json.load(open(os.environ["MLX_HOSTFILE"]))
rank = int(os.environ["MLX_RANK"])
open(f"{sys.argv[1]}/{rank}", "w").write(json.dumps(hosts))
"""


def test_one_rank_needs_no_launcher() -> None:
    assert launcher("torch_gpt", 1) == launcher("mlx_gpt", 1) == [sys.executable]
    assert "--nproc-per-node=4" in launcher("torch_gpt", 4)
    assert launcher("mlx_gpt", 2)[-2:] == ["--", sys.executable]
    assert launcher("mlx_gpt", 2, quiet=True)[1:] == ["-m", "gpt_common.training.ranks.launchers", "2"]


def test_every_rank_of_a_ring_knows_its_number_and_all_addresses(tmp_path: Path) -> None:
    assert ring(3, ["-c", RANK, str(tmp_path)]) == 0
    hosts = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert hosts[0] == hosts[1] == hosts[2]
    assert len({address for (address,) in hosts[0]}) == 3


def test_a_rank_that_fails_ends_the_others() -> None:
    waits = "import os, sys, time; sys.exit(7) if os.environ['MLX_RANK'] == '1' else time.sleep(300)"
    assert ring(2, ["-c", waits]) == 7


SAVES = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open(f"{sys.argv[1]}/saved {os.environ['MLX_RANK']}", "w").close()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
open(f"{sys.argv[1]}/begun {os.environ['MLX_RANK']}", "w").close()
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_ring_that_is_asked_to_end_waits_for_what_its_ranks_save(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt_common.training.ranks.launchers", "2", "-c", SAVES, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hears_hang_ups) as process:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("begun *"))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert sorted(path.name for path in tmp_path.glob("saved *")) == ["saved 0", "saved 1"]
    assert (process.returncode, said) == (128 + signal.SIGTERM, "")


LAUNCHED = {
    "torchrun": {"RANK": "1", "WORLD_SIZE": "2"},
    "mlx.launch": {"MLX_RANK": "1", "MLX_HOSTFILE": '[["10.0.0.1:1"], ["10.0.0.2:2", "10.1.0.2:2"]]'},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    "one of torchrun": {"RANK": "0", "WORLD_SIZE": "1"},
    "one of mlx.launch": {"MLX_RANK": "0", "MLX_HOSTFILE": "\n"},
    "one of MPI": {"PMI_RANK": "0"},
}
"""The environment of a process, by what has started it."""


def started_by(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for environment in LAUNCHED.values() for name in environment}:
        monkeypatch.delenv(name, raising=False)
    for name, value in LAUNCHED[launcher].items():
        if name == "MLX_HOSTFILE":
            (tmp_path / "hosts").write_text(value)
            value = str(tmp_path / "hosts")
        monkeypatch.setenv(name, value)


def test_who_is_in_a_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for each in LAUNCHED:
        started_by(each, tmp_path, monkeypatch)
        found[each] = ring_hosts()
    assert found.pop("mlx.launch") == ["10.0.0.1:1", "10.0.0.2:2"]
    assert len(found.pop("one of mlx.launch")) == 1
    assert not any(found.values())


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_the_other_twins_launcher_is_refused(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process would train a run of its own, and all into one folder."""
    started_by(launcher, tmp_path, monkeypatch)
    refused = {}
    for twin in ("mlx_gpt", "torch_gpt"):
        try:
            check_launcher(f"python -m {twin}.train")
        except UserError as error:
            refused[twin] = str(error)
    if launcher == "torchrun":
        assert refused == {"mlx_gpt": "torchrun starts no ranks of MLX: mlx.launch -n N -- PYTHON -m mlx_gpt.train ..."}
    elif launcher in ("mlx.launch", "mpirun"):
        assert refused == {
            "torch_gpt": f"{launcher} starts no ranks of PyTorch: torchrun --nproc-per-node N -m torch_gpt.train ..."
        }
    else:
        assert refused == {}


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 0)
    first = launchers._free_ports(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        assert launchers._free_ports(2) != first


def test_a_launch_ends_in_time_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(300)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        said = launch("torch_gpt", 1, ["sleeps"], tmp_path / "printed", 3.0)
    assert said == "here ended after 3 s"
