"""Count the processes of a run, say their ranks, limit their threads and end them."""

import os
import socket
import sys

import psutil


def count():
    """Return how many processes the launcher has started on all machines (int)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process():
    """Return whether this is the process that prints and writes: rank 0."""
    return int(os.environ.get("RANK", 0)) == 0


def is_first_here():
    """Return whether this is local rank 0, the process that reports what is wrong on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def stop(what, errors):
    """Exit with status 1. The first process of each machine prints `what` and the errors (list[str]), one a line."""
    if not is_first_here():
        sys.exit(1)
    host = "" if is_main_process() else f" on {socket.gethostname()}"
    sys.exit("\n  - ".join([f"train_countdown.py{host}: {what}:", *errors]))


def end_with_parent(number):
    """Have Linux send this process a signal (int) when its parent ends."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def take_threads():
    """Let torch and child processes use this process's cores, unless the user has chosen a number of threads.

    The launchers of accelerate and torch set OMP_NUM_THREADS to 1 if the user has not set it. The user's own choice is
    in the launcher's environment or among its flags.
    """
    if not is_launched(os.environ) or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    try:
        launcher = psutil.Process().parent()
        is_chosen = launcher is None or "OMP_NUM_THREADS" in launcher.environ()
        is_chosen = is_chosen or "num_cpu_threads" in " ".join(launcher.cmdline()).replace("-", "_")
    except psutil.Error:  # the launcher has ended, or is another user's
        return
    if is_chosen:
        return
    import torch  # here, as it takes a second

    os.environ["OMP_NUM_THREADS"] = str(share_of_cores())
    torch.set_num_threads(share_of_cores())


def is_launched(environment):
    """Return whether accelerate's or torch's launcher started the process of this environment (a mapping)."""
    return "ACCELERATE_MIXED_PRECISION" in environment or "LOCAL_WORLD_SIZE" in environment


def share_of_cores():
    """Return the cores of this process (int, at least 1) if the run's processes here divide them equally."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def cores():
    """Return how many of the machine's cores this process may use (int)."""
    if hasattr(os, "sched_getaffinity"):  # macOS lacks it
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
