"""The benchmarks run.   bash tests/run.sh --all tests/test_benchmarks.py"""

import json
import subprocess

import pytest
from conftest import SMALL, parser, words
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
flags: {warm_up: {steps: 0}}
settings:
  base: {train: false}
  0.5: {beta: 0.5, max_steps: x2}
evaluate:
  sampled: {n: 2, temperature: 1, limit: 8, problems: --num_operands 4 --train_size 1 --test_size 8}
measured:
  accuracy after: metrics.after.accuracy
  pass@k over k: "sampled.pass@k.{x}"
  share of true equations: [last.eval_behaviours/true_equations, last.eval_behaviours/equations]
  accuracy over seconds: "seconds.{x}"
minutes: {warm-up: 2, run: 1, evaluation: 1}
"""


@pytest.mark.slow
def test_an_experiment_makes_what_is_missing_and_resumes_after_ctrl_c(tmp_path, monkeypatch, capsys):
    for name in ("small", "other"):
        (tmp_path / f"{name}.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    wait, interrupts = subprocess.Popen.wait, [KeyboardInterrupt]

    def interrupted_wait(process, timeout=None):
        if interrupts and "train_countdown.py" in process.args:
            raise interrupts.pop()
        return wait(process, timeout)

    def run(name, *more):
        small = SMALL | {"max_steps": 2, "max_completion_length": 8, "eval_steps": 1}
        experiment.main([name, "--output_dir", str(tmp_path / "all" / name), "--seeds", "1", *more, *words(small)])
        return capsys.readouterr().out

    missing = "missing 1 x warm-up, 1 x problems, 2 x evaluation, 1 x run, about 5 minutes"
    assert f"small: 0 of 5 done, {missing}" in run("small", "--list")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="the same command resumes"):
        patch.setattr(subprocess.Popen, "wait", interrupted_wait)
        run("small")
    assert "small: 3 of 5 done, missing 1 x run, 1 x evaluation" in run("small")
    assert "small: 5 of 5 done, missing nothing" in run("small")
    assert "other: 2 of 5 done, missing 1 x problems, 2 x evaluation" in run("other", "--list"), "they share the rest"

    folder = tmp_path / "all" / "small"
    rows = [line[2:-2].split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert rows[0] == ["", "runs", "accuracy after", "share of true equations"]
    assert [row[:2] for row in rows[2:]] == [["base", "1"], ["0.5", "1"]] and rows[2][2] == "-" != rows[3][2]
    assert (folder / "figure.png").is_file() and (folder / "comparison.html").is_file()
    found = json.loads((folder / "results.json").read_text())["runs"]["0.5"][0]
    assert 0 <= found["accuracy after"] <= 1 and found["pass@k over k"].keys() == {"1.0", "2.0"}
    assert len(found["accuracy over seconds"]) == 3


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
