"""Runs that end early, and go on: signals with every kind of launcher, SIGKILL at random moments, NaN.

bash tests/run.sh --all tests/test_endings.py
MOMENTS=20 bash tests/run.sh --all tests/test_endings.py -k random_moments
"""

import errno
import os
import random
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ENVIRONMENT, SMALL, accelerate, run_to_end, same_weights, train_here, words
from transformers import TrainerControl, TrainerState

from r1zero.estimate import plan
from r1zero.report import page
from r1zero.training import checkpoints, stopping

MOMENTS = int(os.environ.get("MOMENTS", 5))  # at which each kind of run is killed
QUIET = {"eval_strategy": "no", "eval_on_start": False, "show_every": 0, "lr_scheduler_type": "constant"}


@pytest.fixture
def command(tmp_path, tiny_model, tiny_data):
    """The words of a run in a folder of tmp_path: by python alone, or on two processes by a strategy of accelerate."""

    def words_of(folder, launcher="python", **flags):
        processes = 1 if launcher == "python" else 2
        flags = SMALL | QUIET | {"per_device_train_batch_size": 8 // processes} | flags
        flags |= {"output_dir": tmp_path / folder, "model_name_or_path": tiny_model, "data_dir": tiny_data}
        begin = [sys.executable] if launcher == "python" else accelerate(tmp_path, launcher, processes)
        return [*begin, "train_countdown.py", "--config", "configs/tiny_cpu.yaml", *words(flags)]

    return words_of


SENDERS = {
    # As a terminal does
    "Ctrl-C to one process": ("python", lambda run: os.killpg(run.process.pid, signal.SIGINT)),
    "SIGTERM to the launcher of two": ("ddp", lambda run: run.process.send_signal(signal.SIGTERM)),
    # As Slurm does if the launcher leaves it alone
    "SIGUSR1 with ZeRO-2": ("zero2", lambda run: [worker.send_signal(signal.SIGUSR1) for worker in run.workers()]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "one" in name else pytest.mark.slow) for name in SENDERS]
)
def test_signal_saves_a_checkpoint_from_which_the_run_goes_on_exactly(begin, command, tmp_path, name):
    launcher, send = SENDERS[name]
    run = begin(command("run", launcher, max_steps=10**6, save_steps=10**6))
    run.await_step(2)
    if launcher == "python":
        page.main([str(tmp_path / "run")])  # while the run goes on
        (tmp_path / "run" / "report.html").unlink()
    send(run)
    status, text = run.wait(), run.text()
    if launcher == "python":
        assert status == stopping.STOPPED == 75 and "Traceback" not in text
    else:  # the launcher's own, which tells those of its processes unless it has had the signal itself
        assert status == 1 and ("SIGTERM" in name or re.search(r"exitcode *: 75\b", text)), text[-4000:]
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    line = rf"train_countdown.py: stopped by SIG\w+ at step {step}: --resume_from_checkpoint auto goes on from "
    assert len(re.findall(line + checkpoint.name, text)) == 1, text[-4000:]
    assert all((tmp_path / "run" / name).is_file() for name in ("report.html", "report.png", "metrics.json"))
    assert checkpoints.faults(checkpoint) == []
    strategy = SimpleNamespace(gathers_weights=False, deepspeed=launcher == "zero2")
    assert checkpoints.size(checkpoint) == pytest.approx(plan.checkpoint_size(473_216, strategy), rel=0.08)
    flags = {"max_steps": step + 2, "save_strategy": "no", "resume_from_checkpoint": "auto"}
    for folder in ("run", "whole"):
        again = command(folder, launcher, **flags)
        if launcher == "python":  # in this process, which saves the seconds of starting one
            train_here(*again[3:])
        else:
            run_to_end(again)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


BAD_ON_ONE = """
import os
from trl import GRPOTrainer

compute_loss = GRPOTrainer.compute_loss

def spoilt_loss(trainer, model, inputs, **settings):
    loss = compute_loss(trainer, model, inputs, **settings)
    return loss * float("nan") if is_bad("loss", trainer.state) else loss

def is_bad(place, state):
    return place == os.environ["BAD"] and os.environ["RANK"] == "1" and state.global_step == 1

def own_reward(completions, trainer_state, **columns):
    bad_row = 1 if is_bad("reward", trainer_state) else None
    return [None if row == bad_row else float(row) for row in range(len(completions))]

GRPOTrainer.compute_loss = spoilt_loss
"""


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "bad"), [("ddp", "reward"), ("zero2", "loss")])
def test_bad_number_of_one_process_ends_all_in_order(begin, command, tmp_path, monkeypatch, launcher, bad):
    (tmp_path / "mine.py").write_text(BAD_ON_ONE)
    monkeypatch.setitem(ENVIRONMENT, "BAD", bad)
    run = begin(command("run", launcher, max_steps=4, save_steps=1, reward_funcs=f"{tmp_path}/mine.py:own_reward"))
    assert run.wait() == 1
    (line,) = re.findall(r"^train_countdown.py: (.*)$", run.text(), flags=re.MULTILINE)
    said = {"reward": "no reward function scored row 1 of a batch of 4", "loss": "the norm of the gradient is "}
    assert said[bad] in line  # DeepSpeed makes inf of a NaN
    assert "in step 2" in line and line.endswith("goes on from checkpoint-1")
    assert (tmp_path / "run" / "report.html").is_file(), "the main process has ended in order too"
    assert run.text().count("Traceback") == 1, "the launcher's own, of a process that failed"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "ddp", "zero2"])
def test_run_killed_at_random_moments_ends_as_an_uninterrupted_one(begin, command, tmp_path, launcher):
    """At odd moments while it saves a checkpoint, as far as that can be hit."""
    random.seed(launcher)
    folder = tmp_path / "killed"
    flags = {"max_steps": 25 * MOMENTS, "save_steps": 1, "save_total_limit": 3, "resume_from_checkpoint": "auto"}
    for moment in range(MOMENTS):
        run = begin(command("killed", launcher, **flags))
        before = len(list(folder.glob("checkpoint-*")))
        run.await_step(1)
        if moment % 2:
            while len(list(folder.glob("checkpoint-*"))) == before and run.process.poll() is None:
                time.sleep(0.001)
        time.sleep(random.uniform(0, 0.06 if moment % 2 else 1))
        run.end()
        run.wait()
        assert not (folder / "model.safetensors").exists(), "killed before its end"
    for name in ("killed", "whole"):
        run_to_end(command(name, launcher, **flags))
    assert same_weights(folder, tmp_path / "whole")


def new_stopping():
    """A Stopping of a trainer that does nothing."""
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="nowhere"), state=TrainerState(global_step=0))
    return stopping.Stopping(trainer)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_after_ctrl_c_is_the_second_one_of_a_launcher_of_several(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    signals = new_stopping()
    signals.note(signal.SIGINT, None)
    signals.note(signal.SIGTERM, None)
    signals.came -= 2 * stopping.ECHO
    if processes == 1:  # its launcher's end, and not the user
        signals.note(signal.SIGTERM, None)
        return
    with pytest.raises(KeyboardInterrupt):
        signals.note(signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), stopping.AT_ONCE, "stopped at once in step 1: there is no checkpoint to go on from"),
        (
            OSError(errno.ENOSPC, "No space left"),
            1,
            "nowhere cannot be written to in step 1 .*: free some of that disk",
        ),
    ],
    ids=["a second Ctrl-C", "a full disk"],
)
def test_what_ends_a_run_at_once_is_said_in_one_line(capsys, error, status, said):
    signals = new_stopping()
    with pytest.raises(SystemExit) as stopped:
        with signals:
            raise error
        signals.leave()
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert stopped.value.code == status == signals.status and re.match(f"train_countdown.py: {said}", line)


@pytest.mark.parametrize("launched", [False, True])
def test_end_of_a_launcher_of_one_process_which_hands_nothing_on_is_a_signal(monkeypatch, launched):
    asked = []
    monkeypatch.setattr(stopping.processes, "end_with_parent", asked.append)
    monkeypatch.setattr(stopping.processes, "is_launched", lambda environment: launched)
    with new_stopping() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == "SIGTERM"
        signals.name = None
    assert asked == [signal.SIGTERM] * launched


def test_training_ends_with_a_checkpoint_after_a_generation():
    def ends(event, step, stepped=True, save_strategy="steps"):
        """Whether training stops, saves and evaluates after a signal."""
        signals = new_stopping()
        signals.name, signals.stepped = "SIGTERM", stepped
        batch = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "num_iterations": 1}
        control = TrainerControl(should_evaluate=True)
        arguments = SimpleNamespace(save_strategy=save_strategy, **batch)
        event(signals, arguments, TrainerState(global_step=step, max_steps=20), control)
        return control.should_training_stop, control.should_save, control.should_evaluate

    step_end, evaluated = stopping.Stopping.on_step_end, stopping.Stopping.on_evaluate
    assert ends(step_end, 8) == (True, True, False)
    assert ends(step_end, 6) == (False, False, True), "between two steps on one generation"
    assert ends(step_end, 20) == (False, False, True), "the run has come to its end"
    assert ends(step_end, 8, save_strategy="no")[:2] == (True, False), "no checkpoint is wanted"
    assert ends(evaluated, 8)[:2] == (True, True), "a signal in an evaluation"
    assert ends(evaluated, 8, stepped=False)[:2] == (False, False), "in the evaluation at the start"
