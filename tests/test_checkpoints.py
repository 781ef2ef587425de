"""Which checkpoint a run goes on from, and what is seen of a damaged one before anything is loaded.

bash tests/run.sh tests/test_checkpoints.py
"""

import json
import shutil
import types
from argparse import Namespace

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState
from transformers.training_args import OptimizerNames

from r1zero.preflight.machine import Strategy
from r1zero.training import checkpoints

ONE = Strategy("one process", 1, {})
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
OF_TWO = ("model.safetensors", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "latest")
OPTIMIZERS = ("global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step4/zero_pp_rank_1_optim_states.pt")


def make(folder, files=FILES, sealed=True):
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
            path.write_text(json.dumps({"global_step": 4, "log_history": []}))
    if sealed:
        checkpoints.seal(folder)
    return folder


@pytest.fixture(params=[True, False], ids=["sealed", "without a seal"])
def checkpoint(request, tmp_path):
    """A sound checkpoint: with the list of checksums, and without, as one killed before that was written."""
    return make(tmp_path / "checkpoint-4", sealed=request.param)


@pytest.mark.parametrize("files", [FILES, (*OF_TWO, *OPTIMIZERS)], ids=["one process", "DeepSpeed"])
@pytest.mark.parametrize("sealed", [True, False])
def test_sound_checkpoint_has_no_faults(tmp_path, files, sealed):
    assert checkpoints.faults(make(tmp_path / "checkpoint-4", files, sealed)) == []


@pytest.mark.parametrize("name", FILES)
def test_file_that_was_cut_short_is_named(checkpoint, name):
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:-3])
    (fault,) = checkpoints.faults(checkpoint)
    assert fault.startswith(name)


@pytest.mark.parametrize("name", FILES)
def test_file_of_no_bytes_is_named(checkpoint, name):
    (checkpoint / name).write_bytes(b"")
    assert [fault.split()[0] for fault in checkpoints.faults(checkpoint)] == [name]


@pytest.mark.parametrize("name", sorted({*FILES} - {"scheduler.pt", "model.safetensors"}))
def test_file_that_is_missing_is_noticed_even_without_a_seal(checkpoint, name):
    (checkpoint / name).unlink()
    assert len(checkpoints.faults(checkpoint)) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_single_changed_bit_is_noticed_in_a_sealed_checkpoint(tmp_path, name):
    path = make(tmp_path / "checkpoint-4") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.faults(path.parent) == [f"{name} has changed since it was saved"]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["latest", "rng_state_1.pth", *OPTIMIZERS])
def test_deepspeed_needs_latest_and_a_file_of_each_process(tmp_path, name, sealed):
    checkpoint = make(tmp_path / "checkpoint-4", (*OF_TWO, *OPTIMIZERS), sealed)
    (checkpoint / name).unlink()
    assert checkpoints.faults(checkpoint)


def choose(folder, given, strategy=ONE):
    return checkpoints.choose(Namespace(resume_from_checkpoint=given, output_dir=str(folder)), strategy)


@pytest.mark.parametrize("given", ["true", "auto"])
def test_newest_sound_checkpoint_is_taken_and_the_damaged_one_named_and_left(tmp_path, given):
    for step in (4, 8, 16):
        make(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-16" / "optimizer.pt").write_bytes(b"PK")
    (tmp_path / "checkpoint-best").mkdir()  # a user's own
    found = choose(tmp_path, given)
    assert found.checkpoint == tmp_path / "checkpoint-8" and not found.errors
    (line,) = found.notices
    assert "checkpoint-16 is damaged and passed over: optimizer.pt has 2 bytes instead of" in line
    assert (tmp_path / "checkpoint-16").is_dir()


def test_auto_starts_where_nothing_is_sound_and_true_does_not(tmp_path):
    assert choose(tmp_path, "auto") == checkpoints.Choice()
    (make(tmp_path / "checkpoint-4") / "model.safetensors").unlink()
    found = choose(tmp_path, "auto")
    assert found.checkpoint is None and not found.errors
    found = choose(tmp_path / "empty", "true")
    assert "empty holds no sound checkpoint" in found.errors[0] and "auto" in found.errors[0]


def test_named_checkpoint_is_taken_or_refused(tmp_path):
    named = make(tmp_path / "kept")
    assert choose(tmp_path, str(named)).checkpoint == named
    (named / "rng_state.pth").unlink()
    assert (
        "kept would not go on as it was (the random state of 0 of 1 processes)"
        in choose(tmp_path, str(named)).errors[0]
    )
    assert "there is no such folder" in choose(tmp_path, str(tmp_path / "gone")).errors[0]


def test_another_number_of_processes_is_said_and_refused_where_deepspeed_cannot(tmp_path):
    make(tmp_path / "checkpoint-4", (*OF_TWO, "optimizer.pt"))
    (notice,) = choose(tmp_path, "auto").notices
    assert "was saved by 2 processes and this run has 1: it goes on, but with other random numbers" in notice
    (error,) = choose(tmp_path, "auto", Strategy("DeepSpeed ZeRO-2", 4, {}, deepspeed=True)).errors
    assert "saved by 2 processes and this run has 4" in error and "--num_processes 2" in error


class TestSealer:
    def step(self, tmp_path, step, **control):
        arguments = types.SimpleNamespace(output_dir=str(tmp_path), eval_strategy="steps")
        state = TrainerState(global_step=step, eval_steps=4)
        return arguments, state, TrainerControl(**control)

    def test_save_is_sealed(self, tmp_path):
        checkpoint = make(tmp_path / "checkpoint-4", sealed=False)
        checkpoints.Sealer().on_save(*self.step(tmp_path, 4))
        sealed = json.loads((checkpoint / checkpoints.SEAL).read_text())["files"]
        assert set(sealed) == set(FILES) and checkpoints.newest_name(tmp_path) == "checkpoint-4"

    def test_save_for_which_there_is_no_room_does_not_begin(self, tmp_path, monkeypatch):
        make(tmp_path / "checkpoint-4")
        checkpoints.Sealer().on_step_end(*self.step(tmp_path, 8, should_save=True))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1))
        with pytest.raises(OSError, match="a checkpoint takes 0 MB and 0 MB are free"):
            checkpoints.Sealer().on_step_end(*self.step(tmp_path, 8, should_save=True))
        checkpoints.Sealer().on_step_end(*self.step(tmp_path, 9))

    @pytest.mark.parametrize(
        ("step", "entries", "expected"),
        [
            pytest.param(8, [], True, id="stopped before an evaluation that was due"),
            pytest.param(8, [{"step": 8, "eval_reward": 1.0}], False, id="evaluated already"),
            pytest.param(6, [{"step": 4, "eval_reward": 1.0}], False, id="none was due"),
        ],
    )
    def test_resumed_run_begins_with_the_evaluation_that_is_missing(self, tmp_path, step, entries, expected):
        arguments, state, control = self.step(tmp_path, step)
        state.log_history = entries
        checkpoints.Sealer().on_train_begin(arguments, state, control)
        assert arguments.eval_on_start == expected


class TestRoom:
    """What the checkpoints of a run take; tests/test_endings.py compares the size of one with a true one."""

    @pytest.mark.parametrize(
        ("expected", "steps", "settings"),
        [
            pytest.param(3, 1000, {}, id="one more than are kept, before the oldest is deleted"),
            pytest.param(2, 150, {}, id="no more than are written"),
            pytest.param(10, 1000, {"save_total_limit": None}, id="all are kept"),
            pytest.param(4, 1000, {"save_total_limit": 0, "save_steps": 0.25}, id="a share of the steps"),
            pytest.param(5, 1000, {"save_total_limit": None, "save_strategy": "epoch"}, id="after each epoch"),
            pytest.param(1, None, {}, id="steps not known"),
        ],
    )
    def test_most_checkpoints_at_once(self, expected, steps, settings):
        recipe = {"save_strategy": "steps", "save_steps": 100, "save_total_limit": 2, "num_train_epochs": 5.0}
        assert checkpoints.most_at_once(types.SimpleNamespace(**recipe | settings), steps) == expected


class TestChanged:
    """Settings of a resumed run that its checkpoint decides, whatever is given."""

    BEFORE = {"learning_rate": 2e-4, "optim": "adamw_torch_fused", "save_strategy": "steps", "save_steps": 32}
    BEFORE |= {"lora_target_modules": "all-linear", "max_steps": 96}

    @pytest.fixture
    def errors(self, tmp_path):
        """The lines for a run that goes on with other settings."""
        checkpoint = make(tmp_path / "run" / "checkpoint-4")

        def run(config=None, **changed):
            text = yaml.safe_dump(self.BEFORE) if config is None else config
            (tmp_path / "run" / "config.yaml").write_text(text)
            now = dict.fromkeys([*checkpoints.DECIDED, "logging_strategy", "eval_strategy"]) | self.BEFORE | changed
            values = Namespace(**now, resume_from_checkpoint="auto", output_dir=str(tmp_path / "run"))
            found = checkpoints.choose(values, ONE)
            assert found.checkpoint == checkpoint
            return found.errors

        return run

    def test_are_refused_and_no_others(self, errors):
        (line,) = errors(learning_rate=1e-5)
        assert line.startswith("learning_rate was 0.0002 and is 1e-05, which checkpoint-4 decides: leave it out")
        assert len(errors(optim="adafactor", save_steps=16)) == 2
        assert errors(lora_target_modules=["all-linear"], optim=OptimizerNames.ADAMW_TORCH_FUSED, max_steps=200) == []
        assert errors(save_steps=16, save_strategy="no") == [], "it is not used"

    @pytest.mark.parametrize("text", ["[", "- 1", "words"])
    def test_are_not_known_where_the_runs_settings_cannot_be_read(self, errors, text):
        (line,) = errors(config=text)
        assert "run/config.yaml cannot be read (" in line and line.endswith("remove it, to go on without its settings")


def test_folder_of_another_run_takes_no_checkpoint_from_elsewhere(tmp_path):
    checkpoint = make(tmp_path / "one" / "checkpoint-4")
    values = Namespace(resume_from_checkpoint=str(checkpoint), output_dir=str(tmp_path / "other"))
    values = Namespace(**dict.fromkeys(checkpoints.DECIDED), **vars(values))
    assert checkpoints.choose(values, ONE).errors == []
    make(tmp_path / "other" / "checkpoint-2")
    (line,) = checkpoints.choose(values, ONE).errors
    assert "other holds another run than " in line and line.endswith("name another")


def test_folder_whose_number_is_none_is_no_checkpoint(tmp_path):
    make(tmp_path / "checkpoint-\N{SUPERSCRIPT TWO}")
    assert checkpoints.by_step(tmp_path) == []


@pytest.mark.parametrize("text", ['{"files": null}', '{"files": {"a": 3}}', "[]", "3"])
def test_seal_that_is_none_is_told(tmp_path, text):
    checkpoint = make(tmp_path / "checkpoint-4")
    (checkpoint / checkpoints.SEAL).write_text(text)
    (fault,) = checkpoints.faults(checkpoint)
    assert fault.startswith(f"{checkpoints.SEAL} cannot be read (")
