"""Which checkpoint a run goes on from, and damaged ones.   bash tests/run.sh tests/test_checkpoints.py"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import SchedulerType, TrainerControl, TrainerState
from transformers.training_args import OptimizerNames

from r1zero.training import checkpoints

ONE = SimpleNamespace(processes=1, deepspeed=False)
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
OF_TWO = ("model.safetensors", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "latest")
OPTIMIZERS = ("global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step4/zero_pp_rank_1_optim_states.pt")
DEEPSPEED = (*OF_TWO, *OPTIMIZERS)


def make(folder, files=FILES):
    """A checkpoint with small files of the true formats."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"weight": torch.arange(64.0)}, path)
        elif path.suffix in (".pt", ".pth"):
            torch.save({"state": torch.arange(64.0)}, path)
        elif path.name == "latest":
            path.write_text("global_step4")
        else:
            path.write_text(json.dumps({"global_step": 4, "max_steps": 4, "log_history": []}))
    checkpoints.seal(folder)
    return folder


@pytest.mark.parametrize("files", [FILES, DEEPSPEED], ids=["one process", "DeepSpeed"])
def test_every_file_that_is_cut_short_empty_changed_or_missing_is_named(tmp_path, files):
    checkpoint = make(tmp_path / "checkpoint-4", files)
    assert checkpoints.faults(checkpoint) == []
    for name in files:
        path = checkpoint / name
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        for damage in (content[:-3], b"", bytes(changed)):
            path.write_bytes(damage)
            (fault,) = checkpoints.faults(checkpoint)
            assert fault.startswith(f"{name} ")
        path.unlink()
        assert checkpoints.faults(checkpoint) == [f"{name} is missing"]
        path.write_bytes(content)
    assert checkpoints.faults(checkpoint) == []


def test_checkpoint_that_was_killed_before_it_was_sealed_is_taken_if_all_of_it_was_saved(tmp_path):
    """Trainer may have deleted the one before."""
    checkpoint = make(tmp_path / "checkpoint-4", OF_TWO)
    (checkpoint / checkpoints.SEAL).unlink()
    assert checkpoints.faults(checkpoint, 2) == []
    assert checkpoints.faults(checkpoint, 3) == ["no checksums.json, and not all of it was saved"]
    state = checkpoint / "trainer_state.json"
    state.write_text(state.read_text()[:-1])
    assert checkpoints.faults(checkpoint, 2) == ["no checksums.json, and not all of it was saved"]
    state.unlink()
    assert checkpoints.faults(checkpoint, 2) == ["no checksums.json, and not all of it was saved"]


def choose(folder, given, strategy=ONE, steps=None, **values):
    values = SimpleNamespace(resume_from_checkpoint=given, output_dir=str(folder), **values)
    return checkpoints.choose(values, strategy, steps)


@pytest.mark.parametrize("given", ["true", "auto"])
def test_newest_sound_checkpoint_is_taken_and_the_damaged_one_named_and_left(tmp_path, given):
    for step in (4, 8, 16):
        make(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-16" / "optimizer.pt").write_bytes(b"PK")
    for own in ("checkpoint-best", "checkpoint-\N{SUPERSCRIPT TWO}"):
        (tmp_path / own).mkdir()
    found = choose(tmp_path, given)
    assert found.checkpoint == tmp_path / "checkpoint-8" and not found.errors
    (line,) = found.notices
    assert "checkpoint-16 is damaged and passed over: optimizer.pt has 2 bytes instead of" in line
    assert (tmp_path / "checkpoint-16").is_dir()


def test_auto_starts_if_nothing_is_sound_and_true_does_not(tmp_path):
    assert choose(tmp_path, "auto") == choose(tmp_path, None) == checkpoints.Choice()
    (make(tmp_path / "checkpoint-4") / "model.safetensors").unlink()
    found = choose(tmp_path, "auto")
    assert found.checkpoint is None and not found.errors
    found = choose(tmp_path / "empty", "true")
    assert "empty holds no sound checkpoint" in found.errors[0] and "auto" in found.errors[0]


def test_named_checkpoint_is_taken_or_refused(tmp_path):
    named = make(tmp_path / "kept")
    assert choose(tmp_path, str(named)).checkpoint == named
    (named / "rng_state.pth").unlink()
    (error,) = choose(tmp_path, str(named)).errors
    assert "kept would not resume exactly (rng_state.pth is missing)" in error
    assert "there is no such folder" in choose(tmp_path, str(tmp_path / "gone")).errors[0]


def test_another_number_of_processes_is_said_and_refused_if_deepspeed_cannot(tmp_path):
    make(tmp_path / "checkpoint-4", (*OF_TWO, "optimizer.pt"))
    (notice,) = choose(tmp_path, "auto").notices
    assert "was saved by 2 processes and this run has 1: it resumes, but with other random numbers" in notice
    same = choose(tmp_path, "auto", SimpleNamespace(processes=2, deepspeed=True))
    assert same == checkpoints.Choice(tmp_path / "checkpoint-4")
    (error,) = choose(tmp_path, "auto", SimpleNamespace(processes=4, deepspeed=True)).errors
    assert "saved by 2 processes and this run has 4" in error and "--num_processes 2" in error


def test_save_for_which_there_is_no_room_does_not_begin(tmp_path, monkeypatch):
    make(tmp_path / "checkpoint-4")
    sealer, control = checkpoints.Sealer(), TrainerControl(should_save=True)
    run = SimpleNamespace(output_dir=str(tmp_path)), TrainerState()
    sealer.on_step_end(*run, control)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(OSError, match="a checkpoint takes 0 MB and 0 MB are free"):
        sealer.on_step_end(*run, control)
    sealer.on_step_end(*run, TrainerControl())


@pytest.mark.parametrize(("step", "evaluated", "expected"), [(8, 4, True), (8, 8, False), (6, 4, False)])
def test_resumed_run_begins_with_the_evaluation_that_is_missing(step, evaluated, expected):
    """One is due every 4 steps."""
    arguments = SimpleNamespace(eval_strategy="steps")
    history = [{"step": evaluated, "eval_reward": 1.0}]
    state = TrainerState(global_step=step, eval_steps=4, log_history=history)
    checkpoints.Sealer().on_train_begin(arguments, state, TrainerControl())
    assert arguments.eval_on_start == expected


BEFORE = dict.fromkeys([*checkpoints.DECIDED, "logging_strategy", "eval_strategy"])
BEFORE |= {"learning_rate": 2e-4, "optim": "adamw_torch_fused", "save_strategy": "steps", "save_steps": 32}
BEFORE |= {"lora_target_modules": "all-linear", "max_steps": 96}
CHANGES = [  # in a resumed run; its steps; what is said of them
    ({"learning_rate": 1e-5}, None, "learning_rate was 0.0002 and is 1e-05, but checkpoint-4 decides it: leave"),
    ({"optim": "adafactor"}, None, "optim was adamw_torch_fused and is adafactor"),
    ({"optim": OptimizerNames.ADAMW_TORCH_FUSED, "lora_target_modules": ["all-linear"], "max_steps": 200}, None, ""),
    ({"save_steps": 16}, None, "save_steps was 32 and is 16"),
    ({"save_steps": 16, "save_strategy": "no"}, None, ""),  # it is not used
    ({"lr_scheduler_type": SchedulerType.COSINE}, 8, "a run of 4 steps, and with 8 its cosine learning rate would"),
    ({"lr_scheduler_type": "cosine"}, 4, ""),  # it has no steps left
    ({"lr_scheduler_type": "constant_with_warmup"}, 8, ""),
]


@pytest.mark.parametrize(("changed", "steps", "said"), CHANGES)
def test_settings_that_the_checkpoint_decides_are_refused_and_no_others(tmp_path, changed, steps, said):
    make(tmp_path / "checkpoint-4")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BEFORE))
    found = choose(tmp_path, "auto", steps=steps, **BEFORE | changed)
    assert found.checkpoint and len(found.errors) == bool(said) and said in "".join(found.errors)


def test_folder_of_another_run_takes_no_checkpoint_from_elsewhere(tmp_path):
    elsewhere, folder = make(tmp_path / "run" / "checkpoint-4"), tmp_path / "other"
    assert choose(folder, str(elsewhere)) == checkpoints.Choice(elsewhere)
    make(folder / "checkpoint-2")
    (line,) = choose(folder, str(elsewhere)).errors
    assert "other holds another run than " in line and line.endswith("name another")
