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

STRATEGIES = ROOT / "configs" / "accelerate"
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


def launcher_config(folder, strategy):
    """The file of a shipped strategy for the CPU, and whether accelerate takes that for one."""
    config = yaml.safe_load((STRATEGIES / f"{strategy}.yaml").read_text())
    on_cpu = config["distributed_type"] != "FSDP"  # accelerate would make DDP of it: see stand_in/train.py
    config["use_cpu"] = on_cpu
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, on_cpu


def accelerate(folder, strategy, processes, port=None):
    """The words that launch so many processes on the CPU with a shipped strategy."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        launcher_config(folder, strategy)[0],
    ]
    return [*command, "--num_processes", processes, "--main_process_port", port or free_port()]


def launch(folder, strategy, processes=2, machines=1, environment=ENVIRONMENT, **flags):
    """Trains with a shipped strategy on the CPU; `machines` launchers share the processes between them. A Run."""
    on_cpu = launcher_config(folder, strategy)[1]
    settings = SMALL | {"use_cpu": on_cpu, "per_device_train_batch_size": COMPLETIONS // processes // ACCUMULATION}
    settings |= {"output_dir": folder / "run"} | flags
    port = free_port()
    launchers = []
    for machine in range(machines):
        command = [*accelerate(folder, strategy, processes, port), "--main_process_ip", "127.0.0.1"]
        command += ["--num_machines", machines, "--machine_rank", machine]
        command += ["tests/stand_in/train.py", "--config", "configs/tiny_cpu.yaml", *words(settings)]
        launchers.append(start(command, folder / f"console{machine}", environment))
    try:
        statuses = [launcher.wait(timeout=PATIENCE) for launcher in launchers]
    finally:
        for launcher in launchers:  # one that waits for another, which has failed
            end(launcher)
    consoles = [(folder / f"console{machine}").read_text() for machine in range(machines)]
    assert statuses == [0] * machines, "\n".join(console[-4000:] for console in consoles)
    return Run(folder / "run", "".join(consoles))


def start(command, console, environment=ENVIRONMENT):
    """A command in a process group of its own, which writes to the file `console`, and finds ninja, for DeepSpeed."""
    environment = environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with console.open("w") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process):
    """Ends what start() has started, with all that it has started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Started:
    """A run in a process group of its own, with its console in a file."""

    def __init__(self, command, console):
        self.console = console
        self.process = start(command, console)

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
