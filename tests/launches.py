"""Runs of train_countdown.py with the shipped launchers' configs on the CPU: several processes, several machines."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ENVIRONMENT, PATIENCE, ROOT, wait_until, words
from safetensors.torch import load_file

# Two steps of 16 completions, 4 a group, whatever the number of processes
COMPLETIONS, ACCUMULATION = 16, 2
SMALL = {
    "num_generations": 4,
    "gradient_accumulation_steps": ACCUMULATION,
    "steps_per_generation": ACCUMULATION,
    "max_completion_length": 8,
    "max_steps": 2,
    "lr_scheduler_type": "constant",
    "reward_funcs": "tests/stand_in/letters.py:letters_reward",
    "logging_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
}


@dataclass
class Run:
    folder: Path
    console: str

    @property
    def history(self):
        """The logged entries of the training steps."""
        log = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in log if "grad_norm" in entry]

    def grad_norms(self):
        return [entry["grad_norm"] for entry in self.history]

    def weights(self):
        return load_file(self.folder / "model.safetensors")

    def said(self, beginning):
        """What follows in each line of the console that begins so."""
        return re.findall(rf"^{re.escape(beginning)} (.*)$", self.console, flags=re.MULTILINE)


def accelerate(folder, strategy, processes, port=None):
    """The words that launch so many processes on the CPU with a shipped strategy."""
    config = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{strategy}.yaml").read_text())
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config | {"use_cpu": is_on_cpu(strategy)}))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
    return [*command, "--num_processes", processes, "--main_process_port", port or free_port()]


def is_on_cpu(strategy):
    """Whether accelerate is told of the CPU: it would make DDP of FSDP there. See stand_in/train.py."""
    return strategy != "fsdp2"


def launch(folder, strategy, processes=2, machines=1, **flags):
    """Trains with a shipped strategy on the CPU; `machines` launchers share the processes between them. A Run."""
    batch = COMPLETIONS // processes // ACCUMULATION
    settings = SMALL | {"use_cpu": is_on_cpu(strategy), "per_device_train_batch_size": batch}
    settings |= {"output_dir": folder / "run"} | flags
    port, launchers = free_port(), []
    for machine in range(machines):
        command = [*accelerate(folder, strategy, processes, port), "--main_process_ip", "127.0.0.1"]
        command += ["--num_machines", machines, "--machine_rank", machine]
        command += ["tests/stand_in/train.py", "--config", "configs/tiny_cpu.yaml", *words(settings)]
        launchers.append(Started(command, folder / f"console{machine}"))
    try:
        statuses = [launcher.process.wait(timeout=PATIENCE) for launcher in launchers]
    finally:
        for launcher in launchers:  # one that waits for another, which has failed
            launcher.end()
    consoles = [launcher.text() for launcher in launchers]
    assert statuses == [0] * machines, "\n".join(console[-4000:] for console in consoles)
    return Run(folder / "run", "".join(consoles))


class Started:
    """A command in a process group of its own, with its console in a file. It finds ninja, for DeepSpeed."""

    def __init__(self, command, console):
        self.console = console
        environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with console.open("w") as file:
            to = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, **to)

    def text(self):
        return self.console.read_text(errors="replace")

    def await_(self, condition):
        """Waits for a condition while the run goes on."""

        def holds():
            done = condition()
            assert done or self.process.poll() is None, self.text()[-4000:]
            return done

        return wait_until(holds)

    def await_step(self, step):
        """Waits until the console has the line of that step, or of a later one."""
        found = re.compile(r"step +(\d+)/")
        self.await_(lambda: max(map(int, found.findall(self.text())), default=0) >= step)

    def workers(self):
        """The processes that train, without their launcher."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return [member for member in family if any("train_countdown.py" in word for word in member.cmdline()[:3])]

    def wait(self):
        """The status, once all that was started has ended."""
        status = self.process.wait(timeout=PATIENCE)
        wait_until(self.has_ended)
        return status

    def has_ended(self):
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True

    def end(self):
        """Ends the command with all that it has started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def distance(weights, others):
    """Euclidean, over all parameters of `others`."""
    return sum((weights[name] - others[name]).square().sum() for name in others).sqrt()


def assert_same(run, reference, tiny_model):
    """Both steps' gradients, and the weights they lead to, are the reference's; measured: 1e-6 and 5e-6 apart."""
    assert run.grad_norms() == pytest.approx(reference.grad_norms(), rel=1e-4)
    initial, expected, found = load_file(tiny_model / "model.safetensors"), reference.weights(), run.weights()
    assert found.keys() - {"lm_head.weight"} == expected.keys()  # some strategies write the tied head out
    assert distance(found, expected) < 1e-3 * distance(initial, expected)
