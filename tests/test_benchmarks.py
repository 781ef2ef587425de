"""The benchmarks run.   bash tests/run.sh --all tests/test_benchmarks.py"""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FIXTURES, SMALL, parser, words
from test_docs import parse_all, parse_command
from test_gpu import measure

from benchmarks import experiment


@pytest.mark.slow
def test_step_is_measured_part_by_part(tmp_path, tiny_model, tiny_data):
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0, "use_cpu": True, "bf16": False}
    data = tiny_data / "test.parquet"  # one file for training and evaluation
    flags = {"config": "configs/tiny_cpu.yaml", "model": tiny_model, "data": data} | SMALL | lora
    result, output = measure(tmp_path, *words(flags))
    assert result["completions"] == 8 and "times the floor" in output
    assert result["versions"].keys() == {"ours", "TRL's defaults"}
    for found in result["versions"].values():
        seconds, floors = found["seconds"], found["floors"]
        assert [part for part, taken in seconds.items() if taken <= 0] == ["weight sync"]  # only vLLM has one
        assert sum(seconds.values()) == pytest.approx(found["total"])
        # The reference scores once, and with LoRA frozen weights have no gradient
        assert floors["scoring"] == floors["forward"] == floors["backward"]
        assert 0 < found["MFU"] < 1 and found["mean length"] <= found["longest"] <= 16


EXPERIMENT = """
question: Does it run?
answer: It does if there is a table.
base_recipe: configs/tiny_cpu.yaml
seeds: [0, 1]
settings:
  base: {train: false}
  0: {beta: 0.0}
  0.5: {beta: 0.5, max_steps: x2, warm_up: {steps: 0}}
evaluate:
  sampled: {n: 2, temperature: 1, limit: 8, problems: --num_operands 4 --train_size 1 --test_size 8}
measured:
  accuracy after: metrics.after.accuracy
  pass@2: sampled.pass@k.2
  pass@k over k: "sampled.pass@k.{x}"
  share of true equations: [last.eval_behaviours/true_equations, last.eval_behaviours/equations]
  accuracy over seconds: "seconds.{x}"
minutes: {warm-up: 2, run: 1, evaluation: 1}
"""


@pytest.fixture
def run_experiment(tmp_path, monkeypatch):
    """Runs the experiment above with some flags."""
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    return lambda *more: experiment.main(["small", "--output_dir", str(tmp_path / "all" / "small"), *more])


@pytest.fixture
def calls(monkeypatch):
    """The commands of an experiment. They fill their folders at once; the first one in 0.5-0 is stopped by Ctrl-C."""
    found, run = [], FIXTURES / "older_run" / "run"

    class Played:
        """Stands in for Popen."""

        def __init__(self, command, **_):
            words = command[1:]
            found.append(" ".join(words))
            flags = {flag[2:]: word for flag, word in zip(words, words[1:], strict=False) if flag.startswith("--")}
            folder = Path(flags.get("output_dir") or flags["local_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            is_resumed = flags.pop("resume_from_checkpoint", None)
            self.interrupts = int(folder.name == "0.5-0" and not is_resumed)
            self.status = 75 if self.interrupts else 0
            if words[0] == "train_countdown.py":
                shutil.copy(run / "trainer_state.json", folder)
                settings = "".join(f"{name}: {value}\n" for name, value in flags.items() if name != "config")
                (folder / "config.yaml").write_text((run / "config.yaml").read_text() + settings)
                metrics = json.loads((run / "metrics.json").read_text())
                metrics["after"]["accuracy"] = float(flags["beta"]) + int(flags["seed"]) / 10
                (folder / "metrics.json").write_text(json.dumps(metrics))
            elif words[1] == "r1zero.evaluate":
                into = folder / Path(flags["model"]).name
                into.mkdir()
                (into / "metrics.json").write_text(json.dumps({"pass@k": {"1": 0.25, "2": 0.5}}))

        def wait(self, seconds):
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            return self.status

        def send_signal(self, number):
            assert number == signal.SIGINT

    known = {name: getattr(subprocess, name) for name in ("STDOUT", "TimeoutExpired")}
    monkeypatch.setattr(experiment, "subprocess", SimpleNamespace(Popen=Played, **known))
    return found


def test_an_experiment_makes_what_is_missing_and_resumes_after_ctrl_c(tmp_path, calls, run_experiment, capsys):
    run_experiment("--list")
    assert "missing 4 x warm-up, 2 x problems, 6 x evaluation, 4 x run, about 18 minutes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the same command resumes"):
        run_experiment()
    assert len(calls) == 7 and "--max_steps 192" in calls[6]
    run_experiment()
    assert len(calls) == len(set(calls)) == 16 + 1, "one begins twice"
    assert calls[7] == f"{calls[6]} --resume_from_checkpoint auto"
    assert "-m r1zero.tiny_model --seed 1" in calls[9] and calls[9].endswith("tiny-problems-1")

    folder = tmp_path / "all" / "small"
    rows = [line[2:-2].split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert rows[0][2:] == ["accuracy after", "pass@2", "share of true equations"]
    assert [row[:4] for row in rows[2:]] == [
        ["base", "2", "-", "50.0% ± 0.0%"],
        ["0", "2", "5.0% ± 7.1%", "50.0% ± 0.0%"],
        ["0.5", "2", "55.0% ± 7.1%", "50.0% ± 0.0%"],
    ]
    assert (folder / "figure.png").is_file() and (folder / "comparison.html").is_file()
    run_experiment()
    assert len(calls) == 17, "nothing is repeated"
    (tmp_path / "other.yaml").write_text(EXPERIMENT)
    capsys.readouterr()
    experiment.main(["other", "--list", "--output_dir", str(tmp_path / "all" / "other")])
    assert "8 of 16 done, missing 2 x problems, 6 x evaluation" in capsys.readouterr().out, "bases and runs are shared"


def test_an_accuracy_is_passed_on_the_line_between_two_evaluations():
    points = [(0.0, 0.1), (10.0, 0.5), (20.0, 0.4), (30.0, 0.9)]
    assert experiment.first_passed(points, 0.3) == pytest.approx(5)
    assert experiment.first_passed(points, 0.6) == pytest.approx(24)
    assert experiment.first_passed(points, 0.05) == 0 and experiment.first_passed(points, 0.95) is None


@pytest.mark.parametrize("path", sorted(experiment.EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_flags_of_the_experiments_exist(path):
    args, more, _ = experiment.parse([path.stem, "--seeds", "0"])
    jobs, _ = experiment.plan(experiment.read_experiment(path.stem, args), more, path.parent)
    of_runs = parser()
    for job in jobs.values():
        if job["kind"] == "run":
            parse_all(of_runs, job["command"][1:])
        else:
            parse_command(["python", *job["command"]])


@pytest.mark.slow
def test_an_experiment_is_run(tmp_path, run_experiment):
    small = SMALL | {"max_steps": 2, "max_completion_length": 8, "eval_steps": 1}
    run_experiment("--settings", "0.5", "--seeds", "1", *words(small))
    found = json.loads((tmp_path / "all" / "small" / "results.json").read_text())["runs"]["0.5"][0]
    assert 0 <= found["accuracy after"] <= 1 and found["pass@k over k"].keys() == {"1.0", "2.0"}
    assert len(found["accuracy over seconds"]) == 3
