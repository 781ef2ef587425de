"""The machine of a run, its recipe and strategy, and what is made there.   bash tests/run.sh tests/test_machine.py"""

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin
from conftest import settings

from r1zero import ROOT, processes
from r1zero.preflight import hardware, prepare
from r1zero.preflight.machine import STRATEGIES, Machine, launcher_variables, read_strategy
from r1zero.preflight.recipe import Flags

TINY = ROOT / "configs" / "tiny_cpu.yaml"
SMI = """#!/bin/sh
[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] || exit 2
{body}
"""


def pretend_card(monkeypatch, gib=16, name="a card", bf16=True):
    """As if this machine had one GPU, or none with gib None."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(hardware, "why_unseen", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if bf16 else (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    properties = type("Properties", (), {"total_memory": (gib or 0) * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_first_process_of_each_machine_says_what_stops_it(monkeypatch):
    monkeypatch.setenv("RANK", "8")
    said = f"train_countdown.py on {socket.gethostname()}: it cannot run:\n  - why"
    for local_rank, code in (("0", said), ("1", 1)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as stopped:
            processes.stop("it cannot run", ["why"])
        assert stopped.value.code == code


class TestRecipe:
    @pytest.mark.parametrize(
        ("gib", "bf16", "expected"),
        [
            (None, False, "tiny_cpu"),
            (15, False, "qwen2.5-1.5b-lora-t4"),
            (24, False, "qwen2.5-1.5b-lora-t4"),
            (16, True, "qwen2.5-1.5b-lora-t4"),
            (22, True, "qwen2.5-1.5b-lora-24gb"),
            (44.4, True, "qwen2.5-1.5b"),
            (80, True, "qwen2.5-1.5b"),
        ],
    )
    def test_is_chosen_by_the_machine_and_said(self, monkeypatch, capsys, gib, bf16, expected):
        pretend_card(monkeypatch, gib, bf16=bf16)
        assert Path(Machine.here().choose_recipe()) == ROOT / "configs" / f"{expected}.yaml"
        assert capsys.readouterr().out.startswith(f"recipe: configs/{expected}.yaml (")
        assert Path(Machine.here().choose_recipe(use_cpu=True)) == TINY

    @pytest.mark.parametrize(
        ("body", "visible", "said"),
        [
            ('echo "Tesla T4, 550.54.15"', None, "found a Tesla T4 with driver 550.54.15, and torch .* sees no GPU:"),
            ('echo "NVIDIA H100, 580.1"; echo "NVIDIA H200, 580.1"', "-1", ".*H100 .* CUDA_VISIBLE_DEVICES='-1'"),
            ("exit 0", None, None),  # no card
            ('echo "NVIDIA-SMI has failed"; exit 9', None, None),
            (None, None, None),  # no nvidia-smi
        ],
    )
    def test_is_not_the_tiny_one_beside_a_gpu_that_torch_misses(self, tmp_path, monkeypatch, body, visible, said):
        """An old driver trained the toy, and only one word on the console said so."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        if body:
            (tmp_path / "nvidia-smi").write_text(SMI.format(body=body))
            (tmp_path / "nvidia-smi").chmod(0o755)
        if said is None:
            assert Machine.here().choose_recipe() == str(TINY)
            return
        with pytest.raises(SystemExit, match=said):
            Machine.here().choose_recipe()
        assert Machine.here().choose_recipe(use_cpu=True) == str(TINY)

    def test_setup_sh_wants_the_same_driver(self):
        """The script asks before there is a torch to ask."""
        assert f"-lt {hardware.DRIVER}" in (ROOT / "setup.sh").read_text()


class TestMissing:
    """What the recipe's `prepare` makes."""

    @pytest.fixture
    def values(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return settings()

    def test_data_and_model_are_made_by_a_script_of_the_project(self, values, tmp_path, capsys):
        (tmp_path / "make.py").write_text("import sys; open('made', 'w').write(' '.join(sys.argv[1:]))")
        values.prepare = f"{tmp_path}/make.py --size 3"
        prepare.make(values, {})
        assert (tmp_path / "made").read_text() == "--size 3"
        start = "models/tiny/config.json and data/countdown_tiny/test.parquet not there yet: running python "
        assert capsys.readouterr().out.startswith(start)

    def test_module_of_the_package_is_found_from_any_folder(self, values, monkeypatch):
        found = []
        ended = SimpleNamespace(returncode=0)
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setattr(prepare.subprocess, "run", lambda command, env: found.append((command, env)) or ended)
        prepare.make(values, {})
        ((command, env),) = found
        assert command == [sys.executable, "-m", "r1zero.tiny_model"]
        assert env["PYTHONPATH"] == f"{ROOT}{os.pathsep}/elsewhere"

    def test_nothing_is_made_that_is_there_or_that_a_flag_points_elsewhere(self, values, tmp_path, capsys):
        assert prepare.missing(values, {"data_dir": "mine", "model_name_or_path": "models/mine"}) == []
        for file in ("models/tiny/config.json", "data/countdown_tiny/test.parquet"):
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).touch()
        values.prepare = "no_such_script.py"
        prepare.make(values, {})
        assert capsys.readouterr().out == ""

    def test_making_that_fails_stops_the_run(self, values, tmp_path):
        (tmp_path / "make.py").write_text("import sys; sys.exit(3)")
        values.prepare = f"{tmp_path}/make.py"
        with pytest.raises(SystemExit, match=r"make.py failed \(3\)"):
            prepare.make(values, {})

    def test_all_but_the_first_process_of_all_machines_wait(self, values, tmp_path, monkeypatch, capsys):
        """On NFS two machines' locks may not keep each other out: each made the same files, at the same time."""
        monkeypatch.setenv("RANK", "8")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setattr(prepare.subprocess, "run", lambda *_, **__: pytest.fail("made twice"))
        files = [tmp_path / "data/countdown_tiny/test.parquet", tmp_path / "models/tiny/config.json"]
        seconds = []

        def sleep(_):
            seconds.append(1)
            if len(seconds) in (61, 90):
                file = files.pop()
                file.parent.mkdir(parents=True)
                file.touch()

        monkeypatch.setattr(prepare.time, "sleep", sleep)
        prepare.make(values, {})
        assert len(seconds) == 90 and not (tmp_path / ".prepare.lock").exists()
        assert capsys.readouterr().out == (
            "waiting for models/tiny/config.json and data/countdown_tiny/test.parquet, which the first machine makes; "
            "on one that does not share its folder, type python -m r1zero.tiny_model\n"
        )

    def test_folder_that_cannot_be_locked_is_told_in_one_line(self, values, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")  # NFS without its lock service

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(SystemExit) as stopped:
            prepare.make(values, {})
        what, line = str(stopped.value).splitlines()
        assert "cannot be locked ([Errno 37] No locks available)" in what
        assert line.endswith("type python -m r1zero.tiny_model, and then start the run again")


class TestStrategy:
    DEEPSPEED = {"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true"}

    @pytest.mark.parametrize(
        ("started", "name", "shards"),  # by variables, or by a file for 8 processes
        [
            ({}, "one process", (1, 1, 1)),
            (DEEPSPEED, "DeepSpeed ZeRO-2", (1, 4, 4)),  # accelerate's own default
            ("single", "one process", (1, 1, 1)),
            ("ddp", "DDP", (1, 1, 1)),
            ("zero1", "DeepSpeed ZeRO-1", (1, 1, 8)),
            ("zero2", "DeepSpeed ZeRO-2", (1, 8, 8)),
            ("zero3", "DeepSpeed ZeRO-3", (8, 8, 8)),
            ("fsdp2", "FSDP2", (8, 8, 8)),
            ("zero2_offload", "DeepSpeed ZeRO-2 with optimizer on the CPU", (1, 8, 8)),
            ("zero3_offload", "DeepSpeed ZeRO-3 with optimizer and weights on the CPU", (8, 8, 8)),
        ],
    )
    def test_is_read_from_the_launchers_variables(self, started, name, shards):
        is_file = isinstance(started, str)
        found = read_strategy(launcher_variables(STRATEGIES / f"{started}.yaml", 8) if is_file else started)
        assert found.name == name
        assert tuple(found.shards[part] for part in ("weights", "gradients", "optimizer")) == shards

    @pytest.fixture
    def from_file(self, tmp_path):
        """The Strategy of a launcher that is given a DeepSpeed file alone."""

        def read(optimization, **variables):
            (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": optimization}))
            file = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}
            return read_strategy(self.DEEPSPEED | file | variables)

        return read

    def test_of_a_deepspeed_file_is_the_files_or_what_it_leaves_open(self, from_file):
        found = from_file({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}})
        assert found.name == "DeepSpeed ZeRO-3 with optimizer and weights on the CPU"
        assert found.shards == {"weights": 4, "gradients": 4, "optimizer": 4} and found.deepspeed
        assert from_file({"stage": "auto"}, ACCELERATE_DEEPSPEED_ZERO_STAGE="1").name == "DeepSpeed ZeRO-1"

    def test_is_the_one_that_accelerate_makes_of_this_processs_variables(self, from_file, monkeypatch, tmp_path):
        found = from_file({"stage": 3})
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
        assert found.name == f"DeepSpeed ZeRO-{DeepSpeedPlugin().zero_stage}" == "DeepSpeed ZeRO-3"

    @pytest.mark.parametrize("text", [None, "{", "{}"], ids=["no file", "no JSON", "nothing of ZeRO"])
    def test_of_a_deepspeed_file_that_cannot_be_used_stops_the_run(self, tmp_path, monkeypatch, text):
        if text is not None:
            (tmp_path / "ds.json").write_text(text)
        for name, value in self.DEEPSPEED.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
        with pytest.raises(SystemExit, match="the launcher's DeepSpeed settings cannot be used"):
            Machine.here()


class TestDescribed:
    @pytest.mark.parametrize(
        ("config", "flags", "strategy", "recipe"),
        [
            (None, {"gpus": 8, "gpu_memory": 80}, "DeepSpeed ZeRO-2", "qwen2.5-1.5b"),
            (None, {"gpus": 1, "gpu_memory": 24}, "one process", "qwen2.5-1.5b-lora-24gb"),
            (None, {"gpus": 0}, "one process", "tiny_cpu"),
            ("qwen2.5-7b", {"gpus": 8, "gpu_memory": 80}, "DeepSpeed ZeRO-3", "qwen2.5-1.5b"),
            ("qwen2.5-7b", {"gpus": 8, "gpu_memory": 80, "strategy": "ddp"}, "DDP", "qwen2.5-1.5b"),
        ],
    )
    def test_has_the_strategy_and_the_recipe_that_it_would_have(self, config, flags, strategy, recipe):
        config = config and str(ROOT / "configs" / f"{config}.yaml")
        machine = Machine.described(Flags(config, flags | {"dry_run": True}, []))
        assert machine.strategy.name == strategy and machine.processes == max(1, flags["gpus"])
        assert machine.choose_recipe() == str(ROOT / "configs" / f"{recipe}.yaml")

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"gpus": 8, "gpu_memory": 80, "dry_run": False}, "--gpus and --gpu_memory without --dry_run"),
            ({"gpus": 8}, "pass --gpus 8 --gpu_memory 80, or --gpus 0"),
            ({"gpu_memory": 80}, "pass --gpus 8 --gpu_memory 80, or --gpus 0"),
            ({"strategy": "zero2"}, "pass --gpus 8 --gpu_memory 80, or --gpus 0"),
            ({"gpus": -1, "gpu_memory": 80}, "pass --gpus 8 --gpu_memory 80, or --gpus 0"),
            ({"gpus": 8, "gpu_memory": 80, "strategy": "zero4"}, "zero4 is no file of (.|\n)*zero3_offload"),
        ],
    )
    def test_is_a_whole_one(self, flags, said):
        with pytest.raises(SystemExit, match=said):
            Machine.described(Flags(None, {"dry_run": True} | flags, []))
