"""The threads of a process on the CPU: whose number counts, and each process's share of the cores."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from r1zero import processes

OF_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}  # what one process is given
OF_TORCHRUN = {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # what each of two processes is given
LAUNCHER = ["python", "accelerate", "launch", "train_countdown.py"]


@pytest.fixture
def start(monkeypatch):
    """Gives this process an environment, a parent, and a number of cores; the threads that torch then has."""
    before = torch.get_num_threads()

    def run(environment, parent, cores=8):
        torch.set_num_threads(1)
        for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(psutil.Process, "parent", lambda process: parent)
        monkeypatch.setattr(processes, "cores", lambda: cores)
        processes.take_threads()
        return torch.get_num_threads()

    yield run
    torch.set_num_threads(before)


def launcher(environment=None, command=LAUNCHER):
    """A parent as psutil shows it. environment: what it was started with."""
    return SimpleNamespace(environ=lambda: environment or {}, cmdline=lambda: command)


def of_another_user():
    raise psutil.AccessDenied()


# One process has all cores, two share them, a core that is left over is left, and each process has a thread
@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [(OF_ACCELERATE, 8, 8), (OF_TORCHRUN, 7, 3), (OF_TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, 2, 1)],
)
def test_processes_share_the_cores_if_nobody_has_chosen(start, environment, cores, expected):
    assert start(environment, launcher(), cores) == expected
    assert os.environ["OMP_NUM_THREADS"] == str(expected)  # for what this process starts


@pytest.mark.parametrize(
    ("environment", "parent"),
    [
        pytest.param(OF_TORCHRUN, launcher({"OMP_NUM_THREADS": "1"}), id="a user's 1, before the launcher"),
        pytest.param(OF_ACCELERATE, launcher(command=[*LAUNCHER, "--num_cpu_threads_per_process", "1"]), id="a flag"),
        pytest.param(OF_ACCELERATE | {"OMP_NUM_THREADS": "3"}, launcher(), id="another number than a launcher's 1"),
        pytest.param({"OMP_NUM_THREADS": "1"}, launcher(), id="a user's 1, before python alone"),
        pytest.param(OF_ACCELERATE, None, id="a launcher that has ended"),
        pytest.param(OF_ACCELERATE, SimpleNamespace(environ=of_another_user), id="a launcher of another user"),
    ],
)
def test_number_that_is_not_the_launchers_own_stays(start, environment, parent):
    assert start(environment, parent) == 1
    assert os.environ.get("OMP_NUM_THREADS") == environment.get("OMP_NUM_THREADS")
