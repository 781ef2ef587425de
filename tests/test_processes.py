"""The threads of a process on the CPU: whose number counts, and each process's share of the cores."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from r1zero import processes

OF_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}  # what one process is given
OF_TORCHRUN = {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # what each of two processes is given


def launcher(flags=(), **environment):
    """A parent as psutil shows it. environment: what it was started with."""
    return SimpleNamespace(environ=lambda: environment, cmdline=lambda: ["accelerate", "launch", *flags])


def of_another_user():
    raise psutil.AccessDenied()


# One process has all cores, two share them, a core that is left over is left, and each process has a thread. A number
# that is not the launcher's own stays.
@pytest.mark.parametrize(
    ("environment", "parent", "cores", "expected"),
    [
        pytest.param(OF_ACCELERATE, launcher(), 8, 8, id="one process"),
        pytest.param(OF_TORCHRUN, launcher(), 7, 3, id="two"),
        pytest.param(OF_TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, launcher(), 2, 1, id="more than cores"),
        pytest.param(OF_TORCHRUN, launcher(OMP_NUM_THREADS="1"), 8, 1, id="a user's 1, before the launcher"),
        pytest.param(OF_ACCELERATE, launcher(["--num_cpu_threads_per_process", "1"]), 8, 1, id="a flag"),
        pytest.param(OF_ACCELERATE | {"OMP_NUM_THREADS": "3"}, launcher(), 8, 3, id="a user's 3"),
        pytest.param({"OMP_NUM_THREADS": "1"}, launcher(), 8, 1, id="a user's 1, before python alone"),
        pytest.param(OF_ACCELERATE, None, 8, 1, id="a launcher that has ended"),
        pytest.param(OF_ACCELERATE, SimpleNamespace(environ=of_another_user), 8, 1, id="a launcher of another user"),
    ],
)
def test_processes_share_the_cores_if_nobody_has_chosen(monkeypatch, environment, parent, cores, expected):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads = [int(environment["OMP_NUM_THREADS"])]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(psutil.Process, "parent", lambda process: parent)
    monkeypatch.setattr(processes, "cores", lambda: cores)
    processes.take_threads()
    assert threads[-1] == expected and os.environ["OMP_NUM_THREADS"] == str(expected)
