"""What starts ranks: command lines, a ring of our own, and its end."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from gpt_common.training.ranks import launchers
from gpt_common.training.ranks.launchers import launch, launcher, ring

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
