"""The console's lines, and the warnings that save a run, each from the readings that call for it."""

import io
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from transformers import TrainerState

from r1zero.report import console

RATIO = "sampling/importance_sampling_ratio/mean"  # logged if vLLM generates
HEALTHY = {"reward": 0.3, "accuracy": 0.25, "completions/clipped_ratio": 0.1, "entropy": 0.5}
HEALTHY |= {"frac_reward_zero_std": 0.4, "times_divide_rate": 0.6}


def warned(course, every=1):
    """(step, warning) of a run whose metrics at a step are HEALTHY with what course(step) changes."""
    seen, warnings = [], console.Warnings(0.1)
    for step in range(every, 61, every):
        seen += [(step, text) for text in warnings.see(step, HEALTHY | course(step))]
    return seen


RUINS = {  # {what: (how the metrics change by the step, what is said)}
    "no signal": (lambda at: {"frac_reward_zero_std": 1.0 if at > 20 else 0.9}, "no group had two different rewards"),
    "format alone": (lambda at: {"reward": 0.1, "accuracy": 0.0}, "the reward stands at 0.100, what the format"),
    "entropy": (lambda at: {"entropy": 0.5 if at < 10 else 0.01}, "entropy fell from 0.50 to 0.0"),
    "truncation": (lambda at: {"completions/clipped_ratio": 0.75}, "75% of the completions are cut off"),
    "hacking": (lambda at: {"reward": 0.3 + at / 200, "accuracy": 0.25 - at / 300}, "while the reward rose to"),
    "* and / dying out": (lambda at: {"times_divide_rate": 0.6 if at < 10 else 0.1}, "* or / fell from 60% to 1"),
    "completions that are dropped or shrunk": (lambda at: {RATIO: 0.6}, "the mean importance ratio is 0.60"),
    "another model that samples": (lambda at: {RATIO: 1.15}, "the mean importance ratio is 1.15"),
}


@pytest.mark.parametrize("every", [1, 4], ids=["logged every step", "logged every fourth"])
@pytest.mark.parametrize(("course", "found"), RUINS.values(), ids=RUINS)
def test_what_ruins_a_run_is_said_once_with_the_reading_and_what_to_try(course, found, every):
    ((step, text),) = warned(course, every)
    assert found in text and step > console.WINDOW
    assert ": " in text and any(word in text for word in ("try", "raise", "read"))


HEALTHY_COURSES = {
    "learning": lambda step: {"reward": 0.3 + step / 100, "accuracy": 0.25 + step / 100},
    "one step without signal": lambda step: {"frac_reward_zero_std": 1.0 if step == 30 else 0.4},
    "one step that is cut off": lambda step: {"completions/clipped_ratio": 1.0 if step == 30 else 0.1},
    "one step without entropy": lambda step: {"entropy": 0.001 if step == 30 else 0.5},
    "rounding by vLLM": lambda step: {RATIO: 0.91 if step < 30 else 1.09},
    "a task that logs no accuracy": lambda step: {"reward": 0.1, "accuracy": None, "times_divide_rate": None},
}


@pytest.mark.parametrize("course", HEALTHY_COURSES.values(), ids=HEALTHY_COURSES)
def test_healthy_run_is_left_in_peace(course):
    assert warned(course) == []


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `seconds` are set."""
    stopped = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: stopped.seconds)
    return stopped


@pytest.fixture
def started(tmp_path, clock):
    """start(step, **arguments of Console) -> (console, args, state, lines) of a run of 100 steps that is at a step."""
    args = {"output_dir": str(tmp_path), "generation_batch_size": 64, "load_best_model_at_end": False}
    args |= dict.fromkeys(("steps_per_generation", "gradient_accumulation_steps", "num_iterations"), 1)

    def start(step=0, own_metrics=(), **arguments):
        scorers = [SimpleNamespace(format_reward=0.1, own_metrics=set(own_metrics))]
        made, lines = console.Console(scorers, 8, **arguments), []
        state = TrainerState(global_step=step, max_steps=100)
        made.on_train_begin(SimpleNamespace(**args), state, None)
        made.training_bar.close()
        made.training_bar = SimpleNamespace(write=lines.append)  # tqdm's
        return made, SimpleNamespace(**args), state, lines

    return start


def log(run, step, **metrics):
    """The lines that the console writes for what is logged at a step."""
    made, args, state, lines = run
    state.global_step = step
    state.log_history.append({"step": step, **metrics})
    before = len(lines)
    made.on_log(args, state, None, logs=metrics)
    return lines[before:]


def test_line_of_a_step_has_metrics_speed_time_and_cost(started, clock):
    run = started(price_per_hour=36.0)
    clock.seconds += 20
    metrics = {"reward": 0.325, "accuracy": 0.25, "completions/mean_length": 50.0, "entropy": 1.5, "kl": 0.1}
    assert log(run, 10, **metrics, frac_reward_zero_std=0.5) == [
        "step    10/100  reward  0.325  accuracy  25.0%  length     50  entropy  1.500  no signal  50%"
        "    2.00 s/step    1,600 tok/s  left 3m00s  cost 0.20 of 2.00"
    ]
    clock.seconds += 40  # 4 s a step since then, 3 s since the beginning
    (line,) = log(run, 20, **metrics)
    assert "   4.00 s/step      800 tok/s  left 4m00s  cost 0.60 of 3.00" in line
    clock.seconds += 10_000
    assert "left 3h51m" in log(run, 42, **metrics)[0]


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])
def test_phase_is_shown_behind_the_bar_on_a_terminal_alone(started, monkeypatch, is_terminal):
    made, file = started()[0], io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: is_terminal, raising=False)
    made.training_bar = tqdm(total=100, file=file)
    before = file.getvalue()
    made.show("generation")
    made.show("reward")
    drawn = file.getvalue().removeprefix(before)
    assert ("generation]" in drawn and drawn.rstrip().endswith("reward]")) if is_terminal else not drawn
    made.on_train_end(None, TrainerState(is_world_process_zero=True), None)
    made.show("evaluation: generation")  # of an evaluation after the last step


def test_line_of_an_evaluation_says_so_and_has_what_a_users_reward_logs_but_no_signal_and_no_loss(started, clock):
    """Without an accuracy if there is none. Trainer logs a last time at its end."""
    run = started(own_metrics=["edit_distance", "vowels"])
    evaluated = {"reward": -0.5, "completions/mean_length": 4.0, "edit_distance": 3.25, "vowels": None}
    evaluated |= {"frac_reward_zero_std": 1.0, "loss": 0.0}
    (line,) = log(run, 0, **{f"eval_{name}": value for name, value in evaluated.items()}, epoch=0)
    assert line == "step     0/100  reward -0.500  length      4  held out  edit_distance 3.25"
    clock.seconds += 2
    (line,) = log(run, 2, reward=-0.25, grad_norm=1.0, edit_distance=0.0000125, **{"rewards/spelling/mean": -0.25})
    assert line.startswith("step     2/100  reward -0.250    1.00 s/step")
    assert line.endswith("  edit_distance 1.25e-05") and "accuracy" not in line
    assert log(run, 100, train_loss=0.1) == []
