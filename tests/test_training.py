"""Real runs of train_countdown.py with the embedded default's model: one through accelerate, the others from here.

bash tests/run.sh tests/test_training.py
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import (
    ENVIRONMENT,
    PATIENCE,
    ROOT,
    SMALL,
    make_tiny_model,
    train,
    train_here,
    training_command,
)
from peft import PeftModel
from safetensors.torch import load_file

from r1zero.report import page as report
from r1zero.training import lora
from r1zero.training import stopping as endings

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/single.yaml"]
TINY = ROOT / "configs" / "tiny_cpu.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_data):
    """A run of two steps with a checkpoint after each; (folder, console)."""
    folder = tmp_path_factory.mktemp("run") / "two"
    flags = {"max_steps": 2, "save_steps": 1, "eval_steps": 1, "show_every": 1, "price_per_hour": 3600}
    return folder, train(folder, tiny_model, tiny_data, launcher=LAUNCH, **flags)


def train_tiny(output_dir, model, data, **flags):
    """The same in this process."""
    paths = {"output_dir": output_dir, "model_name_or_path": model, "data_dir": data}
    train_here(TINY, **SMALL | flags | paths)


def test_weights_change_and_model_and_checkpoints_are_saved(run, tiny_model):
    folder, _ = run
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert (folder / "tokenizer.json").is_file()


def test_metrics_hold_before_and_after(run):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    for moment, step in (("before", 0), ("after", 2)):
        assert metrics[moment].keys() == {"step", "reward", "accuracy", "format_rate", "mean_completion_tokens", "n"}
        assert metrics[moment]["step"] == step and metrics[moment]["n"] == 256
        assert 0 < metrics[moment]["mean_completion_tokens"] <= 16
    assert metrics["steps"] == 2 and metrics["completions"] == 16
    assert 16 <= metrics["completion_tokens"] <= 16 * 16
    assert metrics["train_seconds"] > 0


def test_config_is_written_with_versions_and_trains_again(run, tmp_path, tiny_model, tiny_data):
    text = (run[0] / "config.yaml").read_text()
    assert text.startswith("# commit ") and "trl 1.16.0" in text
    config = yaml.safe_load(text)
    assert config["num_generations"] == 4 and config["learning_rate"] > 0 and config["data_dir"] == str(tiny_data)
    train_here(run[0] / "config.yaml", output_dir=tmp_path / "x")
    expected, found = (load_file(folder / "model.safetensors") for folder in (run[0], tmp_path / "x"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "x", run[0]))
    assert {**again, "train_seconds": 0} == {**first, "train_seconds": 0}, "the seed decides the run"


def test_behaviours_and_cells_are_logged_in_training_and_on_the_held_out_set(run):
    history = json.loads((run[0] / "trainer_state.json").read_text())["log_history"]
    for metric in ("behaviours/equations", "behaviours_incorrect/over_200_tokens"):
        assert [entry["step"] for entry in history if metric in entry] == [1, 2]
        assert [entry["step"] for entry in history if f"eval_{metric}" in entry] == [0, 1, 2]
    # A training step's two problems may be of one kind
    assert all("eval_cells/3_numbers_sums_suffice" in entry for entry in history if "eval_reward" in entry)


def test_page_follows_the_held_out_problems_through_the_steps(run):
    page = (run[0] / "report.html").read_text()
    reader = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert reader["steps"] == [0, 1, 2] and len(reader["problems"]) == 8  # as many as a generation has
    assert all(problem["at"].keys() == {"0", "1", "2"} and problem["prompt"] for problem in reader["problems"])


def test_card_state_and_picture_are_there(run):
    folder, output = run
    card = (folder / "README.md").read_text()
    assert "None" not in card and "| accuracy" in card
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "before (step 0)" in output and "after (step 2)" in output


def test_table_of_completions_shows_target_numbers_equation_verdict(run):
    table = pq.read_table(run[0] / "completions" / "completions_00002.parquet")
    assert {"target", "numbers", "equation", "verdict", "countdown_reward"} <= set(table.column_names)


def test_console_shows_a_line_a_step_and_a_whole_completion(run):
    lines = run[1].replace("\r", "\n").splitlines()
    (first, second) = [line for line in lines if "tok/s" in line]
    form = (
        r"step +{}/2  reward +[\d.]+  accuracy +[\d.]+%  length +\d+  entropy +[\d.]+  no signal +\d+%"
        r"  +[\d.]+ s/step  +[\d,]+ tok/s  left \dm\d\ds  cost [\d.]+ of [\d.]+"
    )
    for step, line in ((1, first), (2, second)):
        assert re.search(form.format(step), line), line
    assert sum("held out" in line and line.lstrip("\x1b[A").startswith("step") for line in lines) == 3
    shown = lines[lines.index("completion:") - 5 : lines.index("completion:")]
    assert {line.split(":")[0] for line in shown} >= {"countdown_reward", "numbers", "target", "verdict"}
    assert not any(line.startswith("{'loss'") for line in lines), "no dictionary"


def test_resumed_run_ends_as_an_uninterrupted_one(run, tmp_path, tiny_model, tiny_data):
    whole = tmp_path / "resumed"
    shutil.copytree(run[0] / "checkpoint-1", whole / "checkpoint-1")
    (whole / "metrics.json").write_text('{"steps": 2, "train_seconds": 10000.0}')
    train_tiny(whole, tiny_model, tiny_data, max_steps=2, save_steps=1, eval_steps=1, resume_from_checkpoint="true")
    expected, found = (load_file(folder / "model.safetensors") for folder in (run[0], whole))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["before"]["step"] == 0
    assert 5000 < metrics["train_seconds"] < 6000, "one of the two steps was done, and paid, before"


def test_resumed_run_that_had_done_all_its_steps_does_no_more(run, tmp_path, tiny_model, tiny_data):
    """As where it was killed after its last checkpoint, and before its model was saved."""
    killed = tmp_path / "killed"
    shutil.copytree(run[0], killed)
    (killed / "model.safetensors").unlink()
    flags = {"lr_scheduler_type": "constant", "resume_from_checkpoint": "auto"}
    train_tiny(killed, tiny_model, tiny_data, max_steps=2, save_steps=1, eval_steps=1, **flags)
    expected, found = (load_file(folder / "model.safetensors") for folder in (run[0], killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run[0], killed)]
    assert metrics[0]["after"] == metrics[1]["after"] and metrics[1]["steps"] == 2


def test_second_run_moves_the_first_aside(run, tmp_path, tiny_model, tiny_data, capsys):
    folder = tmp_path / "again"
    shutil.copytree(run[0], folder)
    unevaluated = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    train_tiny(folder, tiny_model, tiny_data, max_steps=1, **unevaluated)
    output = capsys.readouterr().out
    (aside,) = tmp_path.glob("again-*")
    assert f"moved to {aside}" in output and (aside / "checkpoint-2").is_dir()
    assert not list(folder.glob("checkpoint-*"))
    assert json.loads((folder / "metrics.json").read_text())["after"] is None


def test_lora_trains_and_saves_an_adapter_whose_base_is_kept(tmp_path, tiny_model, tiny_data, monkeypatch):
    kept = []
    monkeypatch.setattr(lora, "keep_base_exact", kept.append)
    flags = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0}
    train_tiny(tmp_path, tiny_model, tiny_data, max_steps=1, **flags)
    assert [isinstance(model, PeftModel) for model in kept] == [True]
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_ctrl_c_leaves_the_report_and_says_how_to_go_on(tmp_path, tiny_model, tiny_data):
    command = training_command(tmp_path, tiny_model, tiny_data, max_steps=10**6, save_steps=1)
    process = subprocess.Popen(
        list(map(str, [sys.executable, *command])),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(tmp_path.glob("checkpoint-*/trainer_state.json")) and process.poll() is None:
        time.sleep(0.2)
    report.write(tmp_path)
    assert (tmp_path / "report.html").is_file(), "while the run goes on"
    (tmp_path / "report.html").unlink()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == endings.STOPPED and "Traceback" not in output
    assert "stopped by SIGINT at step" in output and "before (step 0)" in output
    assert "--resume_from_checkpoint auto goes on" in output
    assert all((tmp_path / name).is_file() for name in ("report.html", "report.png", "metrics.json"))


@pytest.mark.slow
def test_shortened_embedded_default_learns_patience(tmp_path):
    """A warm-up long enough to spell equations, then a few generations: reward, accuracy and length must rise."""
    model, data = make_tiny_model(tmp_path, steps=500)
    flags = {"learning_rate": 3e-4, "max_steps": 28, "eval_steps": 28, "save_strategy": "no", "logging_steps": 4}
    recipe = yaml.safe_load((ROOT / "configs" / "tiny_cpu.yaml").read_text())
    flags |= {key: recipe[key] for key in SMALL if key in recipe} | {"max_completion_length": 128}
    train_tiny(tmp_path / "run", model, data, **flags)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    # One held-out accuracy of 256 has a standard error of at most 0.031
    assert after["accuracy"] > before["accuracy"] + 0.06
    assert after["mean_completion_tokens"] > 1.3 * before["mean_completion_tokens"]
    rewards = [
        entry["reward"]
        for entry in json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
        if "reward" in entry
    ]
    assert sum(rewards[-2:]) > sum(rewards[:2])
