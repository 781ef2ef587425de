"""What a run writes into its folder, and what it reads there again.   bash tests/run.sh tests/test_run_folder.py"""

import hashlib
import os
import re
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock, Timeout
from transformers import TrainerState, TrainingArguments

from r1zero.report import run_folder


def test_metrics_hold_extremes_the_first_evaluation_and_that_of_the_model_that_is_saved():
    """Without rates if nothing says what is right."""
    evaluated = {"eval_reward": 0.3, "eval_completions/mean_length": 20.0, "eval_memory/card": 3.5}
    history = [{"step": step, **evaluated} for step in (0, 6, 8)]
    history[0] |= {"eval_accuracy": 0.1, "eval_format_rate": 0.9}
    history.append({"step": 10, "memory/card": 3.0, "reward_min": -0.5, "reward_max": None, "train_loss": 0.1})
    history[1] |= {"profiling/step": 2.0}  # the mean of six steps
    history[3] |= {"profiling/step": 1.0}
    state = TrainerState(log_history=history, global_step=10, best_global_step=6)
    common = {"reward": 0.3, "mean_completion_tokens": 20.0, "n": 8}
    for is_best, step in ((True, 6), (False, 8)):
        args = SimpleNamespace(load_best_model_at_end=is_best, estimated_memory=4.0)
        metrics = run_folder.run_metrics(state, args, 8, train_seconds=1.0)
        assert metrics["before"] == {"step": 0, "accuracy": 0.1, "format_rate": 0.9} | common
        assert metrics["after"] == {"step": step, "accuracy": None, "format_rate": None} | common
        assert metrics["phases"] == {"step": 6 * 2.0 + 4 * 1.0}
        assert metrics["extremes"] == {"memory/estimated": 4.0, "memory/card": 3.5, "reward_min": -0.5}
        assert run_folder.needs_evaluation(state, args) != is_best


def test_earlier_run_is_moved_aside_and_an_empty_folder_is_not(tmp_path, capsys):
    folder = tmp_path / "new" / "run"
    run_folder.move_aside(folder)
    run_folder.move_aside(folder)
    assert capsys.readouterr().out == ""
    for number in (1, 2):  # within a second, so that the second name is taken
        (folder / "README.md").write_text(str(number))
        run_folder.move_aside(folder)
        assert f"{folder} held an earlier run or other files: moved to {folder}-" in capsys.readouterr().out
    first, second = sorted(folder.parent.glob("run-*"))
    assert {(path / "README.md").read_text() for path in (first, second)} == {"1", "2"}
    assert [path.name for path in folder.rglob("*")] == ["completions"]


def test_config_holds_all_settings_but_those_that_would_be_refused(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4, use_cpu=True, hub_token="secret")
    arguments.resume_from_checkpoint = "checkpoint-4"
    others = {"data_dir": "data/mine", "prepare": None, "generation_batch_size": 8, "n": 2}
    run_folder.write_config(tmp_path / "config.yaml", arguments, others)
    text = (tmp_path / "config.yaml").read_text()
    assert re.match(r"# commit \S+\n# python 3[\d.]+, torch \S+, trl 1\S+,", text) and "secret" not in text
    settings = yaml.safe_load(text)
    assert (settings["data_dir"], settings["learning_rate"], settings["n"]) == ("data/mine", 3e-4, 2)
    assert not {"prepare", "generation_batch_size", "resume_from_checkpoint"} & settings.keys()


def test_resumed_run_says_which_settings_data_and_weights_have_changed(tmp_path, monkeypatch, capsys):
    settings = {"data_dir": str(tmp_path), "model_name_or_path": str(tmp_path), "learning_rate": 1e-5, "beta": 0.0}
    for name in ("train.parquet", "test.parquet", "model.safetensors"):
        (tmp_path / name).write_text(name)
    path = tmp_path / "config.yaml"
    run_folder.write_config(path, settings)
    digest = hashlib.sha256(b"model.safetensors").hexdigest()
    assert f"\n# sha256 {digest} {tmp_path}/model.safetensors\n" in path.read_text()
    run_folder.write_config(path, settings, resumed=True)
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    run_folder.write_config(tmp_path / "evaluation.yaml", {"model": "another"})
    assert "sha256" not in (tmp_path / "evaluation.yaml").read_text(), "of files that happen to lie here"
    (tmp_path / "test.parquet").write_text("other problems")
    (tmp_path / "model.safetensors").unlink()
    run_folder.write_config(path, settings | {"learning_rate": 2e-5, "seed": 1}, resumed=True)
    assert capsys.readouterr().out.splitlines() == [
        "since the run began: learning_rate was 1e-05 and is 2e-05",
        "since the run began: seed was None and is 1",
        f"since the run began: {tmp_path}/model.safetensors has other contents, or is gone",
        f"since the run began: {tmp_path}/test.parquet has other contents, or is gone",
    ]


def test_folder_is_claimed_whatever_link_leads_there(tmp_path):
    """By a lock that ends with the process, and not by a file, which would outlast a run that is killed."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    run_folder.claim(tmp_path / "link")
    with pytest.raises(Timeout):
        FileLock(tmp_path / ".run.lock").acquire(timeout=0)


def test_trackers_know_a_resumed_run_again_and_another_run_of_the_folder_as_new(tmp_path, monkeypatch):
    """wandb 0.23 resumes by the id and trackio 0.43 by the name: tried with both, offline."""
    folder, known = tmp_path / "run", []
    for begins in (True, False, True):
        if begins:
            run_folder.move_aside(folder)
        monkeypatch.setattr(os, "environ", {})
        arguments = SimpleNamespace(output_dir=str(folder), run_name=None)
        run_folder.name_run(arguments)
        known.append((arguments.run_name, os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"]))
    first, resumed, other = known
    assert first == resumed == (f"run-{first[1]}", first[1], "allow")
    assert not {first[0], first[1]} & set(other)
    arguments = SimpleNamespace(output_dir=str(folder), run_name="mine")
    run_folder.name_run(arguments)
    assert arguments.run_name == "mine"
