"""The benchmark of the time to an accuracy: its clock, its table, its settings, and, slow, a whole one.

bash tests/run.sh --all tests/test_time_to_target.py
"""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from conftest import parser, run_to_end

from benchmarks import time_to_target
from benchmarks.time_to_target import COMMON, MARKS, SETTINGS, Stopwatch
from r1zero.report import console

FAST = [(0, 0, 0.2), (256, 10, 0.55), (512, 20, 0.45), (768, 30, 0.9)]
SLOW = [(0, 0, 0.2), (256, 50, 0.55), (512, 100, 0.6)]


def evaluations(points):
    """points: (completions, seconds, accuracy)."""
    return [{"completions": point[0], "seconds": point[1], "accuracy": point[2]} for point in points]


class Lines:
    """Lines as a run's own console writes them, and a clock that is set by hand."""

    def __init__(self):
        self.stopwatch = Stopwatch(completions_a_step=64)
        self.console = console.Console([], 256)
        self.console.last, self.console.first = (0.0, 0), (0.0, 0)
        batch = {"generation_batch_size": 64, "steps_per_generation": 1, "gradient_accumulation_steps": 1}
        self.args = SimpleNamespace(**batch, num_iterations=1)

    def train(self, step, at):
        logs = {"reward": 0.3, "accuracy": 0.99, "completions/mean_length": 20.0}
        self.read(at, self.console.training_line(self.args, self.state(step), logs))

    def evaluate(self, step, at, accuracy):
        logs = {"eval_reward": 0.3, "eval_accuracy": accuracy, "eval_completions/mean_length": 20.0}
        self.read(at, "\x1b[A" + console.evaluation_line(self.state(step), logs, []))

    def state(self, step):
        return SimpleNamespace(global_step=step, max_steps=100)

    def read(self, at, line):
        self.stopwatch.read(f"{line}\n", lambda: (at, at / 2))


def test_evaluations_do_not_count_as_time_of_training():
    lines = Lines()
    lines.evaluate(0, at=1000, accuracy=0.125)
    lines.train(4, at=1010)
    lines.read(1017, "something else about step 4/100")
    lines.evaluate(4, at=1030, accuracy=0.25)
    lines.train(8, at=1035)
    lines.evaluate(8, at=1100, accuracy=0.5)
    found = [(e["step"], e["completions"], e["seconds"], e["accuracy"]) for e in lines.stopwatch.evaluations]
    assert found == [(0, 0, 0, 0.125), (4, 256, 10, 0.25), (8, 512, 15, 0.5)]
    assert [e["processor_seconds"] for e in lines.stopwatch.evaluations] == [0, 5, 7.5]


def test_run_is_stopped_after_the_evaluation_that_passes_the_mark_or_ends_the_time():
    lines = Lines()
    assert lines.stopwatch.why_to_stop(seconds=60, mark=0.85) is None
    lines.evaluate(0, at=0, accuracy=0.125)
    lines.train(4, at=70)
    assert lines.stopwatch.why_to_stop(seconds=60, mark=0.85) is None, "its evaluation is still to come"
    lines.evaluate(4, at=80, accuracy=0.855)
    assert lines.stopwatch.why_to_stop(seconds=60, mark=0.85) == "passed"
    assert lines.stopwatch.why_to_stop(seconds=60, mark=0.9) == "time"
    assert lines.stopwatch.why_to_stop(seconds=71, mark=0.9) is None


# Below all, at the start, between two, after a fall, at the last
@pytest.mark.parametrize(("mark", "seconds"), [(0.1, 0), (0.2, 0), (0.375, 5), (0.675, 25), (0.9, 30)])
def test_mark_is_passed_on_the_line_between_two_evaluations(mark, seconds):
    passed = time_to_target.first_passed(evaluations(FAST), mark)
    assert passed["seconds"] == pytest.approx(seconds)
    assert passed["completions"] == pytest.approx(25.6 * seconds), "256 in ten seconds"
    assert time_to_target.first_passed(evaluations(FAST), 0.91) is None


def test_table_says_how_long_how_many_times_and_what_was_never_reached(monkeypatch):
    monkeypatch.setattr(time_to_target, "MARKS", (0.55, 0.9))
    passed_late = [*SLOW, (768, 170, 0.9)]
    runs = {
        "a": [evaluations(FAST), evaluations(FAST)],
        "b": [evaluations(SLOW), evaluations(SLOW)],
        "c": [evaluations(SLOW), evaluations(passed_late)],
    }
    shipped, defaults, nano = time_to_target.rows(runs, "seconds")
    assert shipped == ["a: tiny_cpu.yaml", "10 ± 0 s\n256 completions", "30 ± 0 s\n768 completions"]
    assert defaults[1] == "50 ± 0 s\n256 completions\n5.0 times"
    assert defaults[2] == "never in 100 s\n> 512 completions\n> 3.3 times"
    assert nano[2] == "> 135 s (1 of 2)\n> 640 completions\n> 4.5 times"


def test_settings_differ_in_nothing_that_the_model_forces(tmp_path):
    for name in SETTINGS:
        values = time_to_target.run_values(name, 1, tmp_path)
        assert {key: values[key] for key in COMMON} == COMMON and values["seed"] == 1
        assert values["eval_steps"] * time_to_target.completions_a_step(values) == 256, name
        assert values["eval_steps"] == values["logging_steps"], "the clock stops at the line of training before it"
        parser().parse_dict(values)  # raises if a setting does not exist
        assert values["trim_padding"] == values["drop_finished"] == (name == "a"), "what this project adds"
    rates = {name: values["learning_rate"] for name, values in SETTINGS.items()}
    assert rates.pop("b") == 1e-6 and set(rates.values()) == {time_to_target.RECIPE["learning_rate"]}


@pytest.mark.slow
def test_benchmark_runs_and_repeats_nothing(tmp_path, tiny_model, tiny_data):
    shutil.copytree(tiny_model, tmp_path / "seed3" / "model")
    shutil.copytree(tiny_data, tmp_path / "seed3" / "data")
    command = [sys.executable, "benchmarks/time_to_target.py", "--output_dir", tmp_path, "--minutes", "0.001"]
    command += ["--settings", "a", "c", "--seeds", "3", "--output", tmp_path / "picture.png"]
    command += ["--set", "max_completion_length=8"]
    output = run_to_end(command)
    found = json.loads((tmp_path / "time_to_target.json").read_text())
    runs = [(run["setting"], run["seed"], run["stopped"]) for run in found["runs"]]
    assert runs == [("a", 3, "time"), ("c", 3, "time")]
    assert [each["completions"] for each in found["runs"][0]["evaluations"]] == [0, 256]
    state = json.loads((tmp_path / "seed3" / "a" / "trainer_state.json").read_text())
    recorded = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert [each["accuracy"] for each in found["runs"][0]["evaluations"]] == pytest.approx(recorded[:2], abs=5e-4)
    assert "never in" in output and len(found["processor_seconds"][0]) == len(found["seconds"][0]) == 1 + len(MARKS)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    consoles = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed3/*.txt")}
    assert len(consoles) == 2
    run_to_end(command)
    assert {path: path.stat().st_mtime_ns for path in consoles} == consoles
