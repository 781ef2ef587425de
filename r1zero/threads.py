"""How many threads a process on the CPU computes with: its share of the cores, where nobody has chosen a number."""

import os

import psutil


def take_share():
    """Has torch, and what this process starts, compute with its share of the cores where nobody has chosen a number.

    Without one, accelerate's and torch's launchers leave each process a single thread. `python` alone leaves torch to
    take all cores, as it does by itself.
    """
    launcher = psutil.Process().parent()
    try:
        chosen = launcher is None or is_chosen(os.environ, launcher.environ(), launcher.cmdline())
    except psutil.Error:  # it has ended, or is another user's
        chosen = True
    if chosen:
        return
    import torch  # here, as it takes a second

    count = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def is_chosen(environment, launcher_environment, launcher_command):
    """Whether the number of threads is a user's or torch's own (bool), and not what a launcher sets for want of one.

    environment: a mapping, this process's; launcher_environment, launcher_command: those that its parent was started
    with, a mapping and a list[str]. A launcher hands OMP_NUM_THREADS to its processes in any case. If a user has set
    it, it stands in the launcher's own environment too.
    """
    if not is_launched(environment) or environment.get("OMP_NUM_THREADS") != "1":
        return True
    by_flag = any("num_cpu_threads_per_process" in word.replace("-", "_") for word in launcher_command)
    return by_flag or "OMP_NUM_THREADS" in launcher_environment


def is_launched(environment):
    """Whether accelerate's launcher or torch's has started a process with this environment (a mapping)."""
    return "ACCELERATE_MIXED_PRECISION" in environment or "LOCAL_WORLD_SIZE" in environment


def cores():
    """How many of the machine's cores this process may use (int)."""
    if hasattr(os, "sched_getaffinity"):  # which macOS lacks
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
