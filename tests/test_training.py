"""Runs of train_countdown.py in this process.   bash tests/run.sh tests/test_training.py"""

import collections
import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from conftest import SMALL, TINY, make_tiny_model, reader_of, same_weights, train_here
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel

from r1zero.report.console import Console
from r1zero.training import lora, phases

TWO = {"max_steps": 2, "save_steps": 1, "eval_steps": 1}
TIMED = {"train_seconds": 0, "phases": {}, "extremes": {}}  # of metrics.json, what the seed does not decide


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory, train):
    """A run of two steps with a checkpoint after each: what it wrote, and the phases that were shown."""
    folder, shown = tmp_path_factory.mktemp("run") / "two", []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as console:
        patch.setattr(Console, "show", lambda self, phase: shown.append(phase))
        train(folder, show_every=1, price_per_hour=3600, **TWO)
    steps = [entry for entry in read(folder / "trainer_state.json")["log_history"] if "grad_norm" in entry]
    metrics = read(folder / "metrics.json")
    return SimpleNamespace(folder=folder, console=console.getvalue(), shown=shown, steps=steps, metrics=metrics)


def test_weights_change_and_all_files_of_a_run_are_there(run, tiny_model):
    assert not same_weights(run.folder, tiny_model)
    assert {path.name for path in run.folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert (run.folder / "tokenizer.json").is_file()
    card = (run.folder / "README.md").read_text()
    assert "None" not in card and "| accuracy" in card
    assert (run.folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "before (step 0)" in run.console and "after (step 2)" in run.console
    before, after = run.metrics["before"], run.metrics["after"]
    assert (before["step"], after["step"], after["n"]) == (0, 2, 256) and 0 < after["mean_completion_tokens"] <= 16
    assert (run.metrics["steps"], run.metrics["completions"]) == (2, 16) and run.metrics["train_seconds"] > 0
    assert 16 <= run.metrics["completion_tokens"] <= 16 * 16


def test_seconds_of_each_phase_are_logged_once_a_step_and_each_is_shown_as_it_begins(run):
    for step in run.steps:
        seconds = {name: step[f"profiling/{name}"] for name in phases.PHASES}
        assert 0 < sum(seconds.values()) - seconds["step"] <= seconds["step"]
        assert [name for name in seconds if not seconds[name]] == ["weight sync"], "only vLLM has one"
    assert run.metrics["phases"].keys() == seconds.keys() - {"weight sync"} | {"evaluation"}
    assert run.metrics["phases"]["step"] == pytest.approx(sum(step["profiling/step"] for step in run.steps), abs=0.06)
    first = run.shown.index("generation")
    step = list(dict.fromkeys(run.shown[first : run.shown.index("", first) + 1]))
    assert step == ["generation", "scoring", "reward", "forward", "backward", "optimizer", ""]
    assert "evaluation: generation" in run.shown[:first] and run.shown[-1] == "", "at the start, and at the end"


def test_mfu_is_of_whole_generations_and_counts_no_gradient_of_frozen_weights():
    """Two optimizer steps a generation, two processes, 100 trained and 100 frozen weights."""
    model = torch.nn.ParameterList([torch.ones(100), torch.nn.Parameter(torch.ones(100), requires_grad=False)])
    metrics = collections.defaultdict(list)
    of_run = SimpleNamespace(peak_operations=1e6)
    measured = phases.Phases(SimpleNamespace(model=model, _metrics={"train": metrics}, args=of_run), None)
    measured.tokens = 50
    args = SimpleNamespace(steps_per_generation=2, num_iterations=1, gradient_accumulation_steps=1, world_size=2)
    for step in (1, 2, 3, 4):
        measured.spent += 1.5
        tokens = 50 + 600 * (step // 2)
        measured.measure_utilization(args, SimpleNamespace(global_step=step, num_input_tokens_seen=tokens))
    assert metrics["mfu"] == pytest.approx([600 * (6 + 4) * 100 / (3.0 * 2e6)] * 2)


def test_extremes_are_logged(run):
    assert all(0 <= step["reward_min"] <= step["reward"] <= step["reward_max"] <= 1 for step in run.steps)
    extremes = run.metrics["extremes"]
    assert extremes["prompts/max_length"] == 9  # as every prompt of the tiny model has
    assert 0.3 < extremes["memory/process"] * 2**30 / psutil.Process().memory_info().rss < 3
    assert f"memory: the process took {extremes['memory/process']:.1f} GiB" in run.console


def test_page_follows_the_held_out_problems_through_the_steps(run):
    reader = reader_of(run.folder)
    assert reader["steps"] == [0, 1, 2] and len(reader["problems"]) == 8  # as many as a generation has
    for problem in reader["problems"]:
        assert problem["at"].keys() == {"0", "1", "2"} and problem["prompt"]
        assert problem["about"].keys() == {"numbers", "target"}


def test_console_shows_a_line_a_step_and_a_whole_completion(run):
    lines = run.console.replace("\r", "\n").splitlines()
    form = (
        r"step +{}/2  reward +[\d.]+  accuracy +[\d.]+%  length +\d+  entropy +[\d.]+  no signal +\d+%"
        r"  +[\d.]+ s/step  +[\d,]+ tok/s  left \dm\d\ds  cost [\d.]+ of [\d.]+"
    )
    first, second = [line for line in lines if "tok/s" in line]
    assert re.search(form.format(1), first) and re.search(form.format(2), second), (first, second)
    assert sum("held out" in line and line.lstrip("\x1b[A").startswith("step") for line in lines) == 3
    shown = lines[lines.index("completion:") - 5 : lines.index("completion:")]
    assert {line.split(":")[0] for line in shown} >= {"countdown_reward", "numbers", "target", "verdict"}
    assert not any(line.startswith("{'loss'") for line in lines), "no dictionary"


def test_config_trains_the_same_again_and_the_earlier_run_is_moved_aside(run, tmp_path, tinyzeros_data, capsys):
    """Here on TinyZero's files, whose prompts are the same texts, each in a message."""
    folder = shutil.copytree(run.folder, tmp_path / "again")
    train_here(run.folder / "config.yaml", output_dir=folder, save_strategy="no", data_dir=tinyzeros_data)
    assert same_weights(folder, run.folder)
    again = read(folder / "metrics.json")
    assert {**again, **TIMED} == {**run.metrics, **TIMED}, "the seed decides the run"
    (aside,) = tmp_path.glob("again-*")
    printed = capsys.readouterr().out
    assert f"moved to {aside}" in printed and (aside / "checkpoint-2").is_dir()
    assert f"{tinyzeros_data}/train.parquet: each prompt is one user message" in printed
    assert not list(folder.glob("checkpoint-*"))


def test_run_that_trl_refuses_ends_in_one_line_and_leaves_the_earlier_run(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "again")
    with pytest.raises(
        SystemExit, match="the trainer cannot be built:\n  - ValueError: You passed `sync_ref_model=True"
    ):
        train_here(run.folder / "config.yaml", output_dir=folder, sync_ref_model=True, beta=0)
    assert not list(tmp_path.glob("again-*")) and (folder / "metrics.json").is_file()


def test_resumed_run_ends_as_an_uninterrupted_one(run, tmp_path, train):
    shutil.copytree(run.folder / "checkpoint-1", tmp_path / "checkpoint-1")
    (tmp_path / "metrics.json").write_text('{"steps": 2, "train_seconds": 10000.0}')
    train(tmp_path, resume_from_checkpoint="true", **TWO)
    assert same_weights(tmp_path, run.folder)
    metrics = read(tmp_path / "metrics.json")
    assert metrics["before"]["step"] == 0
    assert 5000 < metrics["train_seconds"] < 6000, "one of the two steps was done, and paid, before"


def test_resumed_run_that_had_done_all_its_steps_does_no_more(run, tmp_path, train):
    """As if it was killed after its last checkpoint, and before its model was saved."""
    killed = shutil.copytree(run.folder, tmp_path / "killed")
    (killed / "model.safetensors").unlink()
    train(killed, lr_scheduler_type="constant", resume_from_checkpoint="auto", **TWO)
    assert same_weights(killed, run.folder)
    again = read(killed / "metrics.json")
    assert again["after"] == run.metrics["after"] and again["steps"] == 2


@pytest.mark.parametrize("push_to_hub", [False, True])
def test_adapter_names_its_base_by_the_whole_path_and_on_the_hub_as_given(
    tmp_path, train, tiny_model, monkeypatch, push_to_hub
):
    """The hub, whose stand-in knows files by their paths, has all results of a run, too."""
    hub = {}

    def upload_folder(self, *, folder_path, allow_patterns=None, ignore_patterns=None, **_):
        paths = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        for path in filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            hub[path] = Path(folder_path, path).read_bytes()

    monkeypatch.setattr(HfApi, "whoami", lambda *_: {})
    monkeypatch.setattr(HfApi, "create_repo", lambda _, name, **__: SimpleNamespace(repo_id=f"somebody/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.chdir(tiny_model.parent)
    kept = []
    monkeypatch.setattr(lora, "keep_base_exact", kept.append)
    flags = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0, "save_strategy": "no"}
    train(tmp_path / "mine", model=tiny_model.name, max_steps=1, push_to_hub=push_to_hub, **flags)
    assert [isinstance(model, PeftModel) for model in kept] == [True]
    base = read(tmp_path / "mine" / "adapter_config.json")["base_model_name_or_path"]
    assert base == (tiny_model.name if push_to_hub else str(tiny_model))
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    if push_to_hub:
        card = hub["README.md"].decode()
        assert "| accuracy" in card and 'model="somebody/mine"' in card
        assert json.loads(hub["adapter_config.json"])["base_model_name_or_path"] == tiny_model.name
        results = ("README.md", "report.png", "report.html", "metrics.json", "config.yaml")
        for name in (*results, "adapter_model.safetensors"):
            assert hub[name] == (tmp_path / "mine" / name).read_bytes(), name


@pytest.mark.slow
def test_shortened_embedded_default_learns_patience(tmp_path, train):
    """A warm-up long enough to spell equations, then a few generations: reward, accuracy and length must rise."""
    model, data = make_tiny_model(tmp_path, steps=500)
    flags = {"learning_rate": 3e-4, "max_steps": 28, "eval_steps": 28, "save_strategy": "no", "logging_steps": 4}
    recipe = yaml.safe_load(TINY.read_text())
    flags |= {key: recipe[key] for key in SMALL if key in recipe} | {"max_completion_length": 128}
    train(tmp_path / "run", model, data, **flags)
    metrics = read(tmp_path / "run" / "metrics.json")
    before, after = metrics["before"], metrics["after"]
    # One held-out accuracy of 256 has a standard error of at most 0.031
    assert after["accuracy"] > before["accuracy"] + 0.06
    assert after["mean_completion_tokens"] > 1.3 * before["mean_completion_tokens"]
    history = read(tmp_path / "run" / "trainer_state.json")["log_history"]
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    assert sum(rewards[-2:]) > sum(rewards[:2])
