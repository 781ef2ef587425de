"""The threads of a process on the CPU: whose number counts, and each process's share of the cores."""

import json
import os
from types import SimpleNamespace

import psutil
import torch
from conftest import each_case

from r1zero import processes


@each_case("threads.tsv")
def test_processes_share_the_cores_if_nobody_has_chosen(monkeypatch, case):
    """One process has all cores, two share them, a core that is left over is left, and each process has a thread.

    environment: what a process is given; launcher: what the launcher was started with. A number that is not the
    launcher's own stays.
    """

    def environ():
        if case["launcher"] == "another user's":
            raise psutil.AccessDenied()
        return json.loads(case["launcher"])

    launcher = SimpleNamespace(environ=environ, cmdline=lambda: ["accelerate", "launch", *case["flags"].split()])
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    environment = json.loads(case["environment"])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads = [int(environment["OMP_NUM_THREADS"])]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(psutil.Process, "parent", lambda process: launcher if case["launcher"] else None)
    monkeypatch.setattr(processes, "cores", lambda: int(case["cores"]))
    processes.take_threads()
    assert threads[-1] == int(case["threads"]) and os.environ["OMP_NUM_THREADS"] == case["threads"]
