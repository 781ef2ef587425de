"""The threads of a process on the CPU: whose number counts, and each process's share of the cores.

bash tests/run.sh tests/test_processes.py
"""

import os
import sys

import psutil
import pytest
import torch
from conftest import ROOT, parser, run_to_end

from r1zero import processes
from r1zero.preflight import check as checks
from r1zero.preflight.machine import Machine, Strategy

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


class Launcher:
    """A parent as psutil shows it. environment: what it was started with, or the error of asking for it."""

    def __init__(self, environment=None, command=LAUNCHER):
        self.environment = environment or {}
        self.command = command

    def environ(self):
        if isinstance(self.environment, Exception):
            raise self.environment
        return self.environment

    def cmdline(self):
        return self.command


@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [
        pytest.param(OF_ACCELERATE, 8, 8, id="one process has all cores"),
        pytest.param(OF_TORCHRUN, 8, 4, id="two share them"),
        pytest.param(OF_TORCHRUN, 7, 3, id="a core that is left over is left"),
        pytest.param(OF_TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, 2, 1, id="more processes than cores have a thread each"),
    ],
)
def test_processes_share_the_cores_where_nobody_has_chosen(start, environment, cores, expected):
    assert start(environment, Launcher(), cores) == expected
    assert os.environ["OMP_NUM_THREADS"] == str(expected)  # for what this process starts


@pytest.mark.parametrize(
    ("environment", "parent"),
    [
        pytest.param(OF_ACCELERATE, Launcher({"OMP_NUM_THREADS": "1"}), id="a user's 1, before accelerate launch"),
        pytest.param(OF_TORCHRUN, Launcher({"OMP_NUM_THREADS": "1"}), id="a user's 1, before torchrun"),
        pytest.param(
            OF_ACCELERATE, Launcher(command=[*LAUNCHER, "--num_cpu_threads_per_process", "1"]), id="accelerate's flag"
        ),
        pytest.param(
            OF_ACCELERATE, Launcher(command=[*LAUNCHER, "--num-cpu-threads-per-process=1"]), id="with other dashes"
        ),
        pytest.param(OF_ACCELERATE | {"OMP_NUM_THREADS": "3"}, Launcher(), id="another number than a launcher's 1"),
        pytest.param({"OMP_NUM_THREADS": "1"}, Launcher(), id="a user's 1, before python alone"),
        pytest.param({}, Launcher(), id="python alone"),
        pytest.param(OF_ACCELERATE, None, id="a launcher that has ended"),
        pytest.param(OF_ACCELERATE, Launcher(psutil.AccessDenied()), id="a launcher of another user"),
    ],
)
def test_number_that_is_not_the_launchers_own_stays(start, environment, parent):
    assert start(environment, parent) == 1
    assert os.environ.get("OMP_NUM_THREADS") == environment.get("OMP_NUM_THREADS")


def test_cores_are_those_that_this_process_may_use():
    assert processes.cores() == len(psutil.Process().cpu_affinity())


@pytest.mark.parametrize(
    ("use_cpu", "offload", "expected"),
    [
        pytest.param(True, (), True, id="on the CPU"),
        pytest.param(False, (), False, id="on a GPU"),
        pytest.param(False, ("optimizer",), True, id="on a GPU, with the optimizer on the CPU"),
    ],
)
def test_run_takes_its_share_where_the_cpu_computes(use_cpu, offload, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = []
    strategy = Strategy("a strategy", 1, {"weights": 1, "gradients": 1, "optimizer": 1}, offload=offload)
    monkeypatch.setattr(Machine, "here", lambda: Machine(strategy))
    monkeypatch.setattr(processes, "take_threads", lambda: taken.append(True))
    flags = ["--config", str(ROOT / "configs" / "tiny_cpu.yaml"), "--dry_run", "--use_cpu", str(use_cpu)]
    with pytest.raises(SystemExit):
        checks.check(parser(), flags)
    assert taken == [True] * expected


@pytest.mark.slow
def test_accelerate_launch_gives_one_process_all_cores(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom r1zero import processes\nprocesses.take_threads()\nprint(torch.get_num_threads())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", ROOT / "configs" / "accelerate" / "single.yaml", script]
    assert run_to_end(command, environment).splitlines()[-1] == str(processes.cores())
