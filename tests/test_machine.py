"""The machine of a run, its recipe and strategy, and what is made there.   bash tests/run.sh tests/test_machine.py"""

import json
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin
from conftest import CONFIGS, TINY, each_case, settings, write_commands

from r1zero.preflight import hardware, prepare
from r1zero.preflight.machine import STRATEGIES, Machine, launcher_variables, read_strategy


def pretend_card(monkeypatch, gib=16, name="a card", bf16=True):
    """As if this machine had one GPU, or none with gib None."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(hardware, "why_unseen", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    properties = type("Properties", (), {"total_memory": (gib or 0) * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


class TestRecipe:
    @each_case("chosen_recipes.tsv", "recipe")
    def test_is_chosen_by_the_machine_and_said(self, monkeypatch, capsys, case):
        pretend_card(monkeypatch, gib=float(case["GiB"]) if case["GiB"] else None, bf16=bool(case["bfloat16"]))
        assert Path(Machine.here().choose_recipe()) == CONFIGS / case["recipe"]
        assert capsys.readouterr().out.startswith(f"recipe: configs/{case['recipe']} (")
        assert Path(Machine.here().choose_recipe(use_cpu=True)) == TINY

    @pytest.mark.parametrize(
        ("body", "visible", "said"),
        [
            ('echo "Tesla T4, 550.54.15"', None, "found a Tesla T4 with driver 550.54.15, and torch .* sees no GPU:"),
            ('echo "NVIDIA H100, 580.1"; echo "NVIDIA H200, 580.1"', "-1", ".*H100 .* CUDA_VISIBLE_DEVICES='-1'"),
            ("exit 0", None, None),  # no card
            ('echo "No devices were found"', None, None),
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
        (tmp_path / "bash").symlink_to("/bin/bash")
        if body:
            asked = '[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] || exit 2'
            write_commands(tmp_path, nvidia_smi=f"{asked}\n{body}")
        if said is None:
            assert Machine.here().choose_recipe() == str(TINY)
            return
        with pytest.raises(SystemExit, match=said):
            Machine.here().choose_recipe()
        assert Machine.here().choose_recipe(use_cpu=True) == str(TINY)


class TestMissing:
    """What the recipe's `prepare` makes."""

    @pytest.fixture
    def values(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return settings()

    def test_data_and_model_are_made_once_by_a_script_of_the_project(self, values, tmp_path, capsys):
        (tmp_path / "make.py").write_text(
            "import sys, pathlib\n"
            "if sys.argv[1] == 'fail': sys.exit(3)\n"
            "for name in ('models/tiny/config.json', 'data/countdown_tiny/test.parquet'):\n"
            "    pathlib.Path(name).parent.mkdir(parents=True)\n"
            "    pathlib.Path(name).touch()\n"
        )
        values.prepare = f"{tmp_path}/make.py fail"
        with pytest.raises(SystemExit, match=r"make.py fail failed \(3\)"):
            prepare.make(values, {})
        values.prepare = f"{tmp_path}/make.py --size 3"
        prepare.make(values, {})
        start = "models/tiny/config.json and data/countdown_tiny/test.parquet not there yet: running python "
        assert start in capsys.readouterr().out and prepare.missing(values, {}) == []
        values.prepare = "no_such_script.py"
        prepare.make(values, {})
        assert prepare.missing(values, {"data_dir": "mine", "model_name_or_path": "models/mine"}) == []

    def test_all_but_the_first_process_of_all_machines_wait(self, values, tmp_path, monkeypatch, capsys):
        """On NFS two machines' locks may not keep each other out: each made the same files, at the same time."""
        monkeypatch.setenv("RANK", "8")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setattr(prepare, "run", lambda words: pytest.fail("made twice"))
        seconds = []
        monkeypatch.setattr(prepare.time, "sleep", lambda _: seconds.append(1))
        monkeypatch.setattr(prepare, "missing", lambda *_: ["models/tiny"] if len(seconds) < 90 else [])
        prepare.make(values, {})
        assert len(seconds) == 90 and not (tmp_path / ".prepare.lock").exists()
        assert "which the first machine makes; on one that does not share its folder, type" in capsys.readouterr().out


class TestStrategy:
    @each_case("strategies.tsv")
    def test_is_read_from_the_launchers_variables(self, case):
        variables = json.loads(case["variables"] or "null") or launcher_variables(STRATEGIES / case["file"], 8)
        found = read_strategy(variables)
        assert found.name == case["name"]
        assert [found.shards[part] for part in ("weights", "gradients", "optimizer")] == json.loads(case["shards"])

    def test_of_a_deepspeed_file_is_the_files_or_what_it_leaves_open(self, tmp_path, monkeypatch):
        path = tmp_path / "ds.json"
        variables = {"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true"}
        variables |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}))
        found = read_strategy(variables)
        assert found.name == "DeepSpeed ZeRO-3 with optimizer on the CPU" and found.deepspeed
        assert DeepSpeedPlugin().zero_stage == 3, "which accelerate makes of it"
        path.write_text(json.dumps({"zero_optimization": {"stage": "auto"}}))
        assert read_strategy(variables | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}).name == "DeepSpeed ZeRO-1"


def test_command_of_a_server_has_the_type_seed_and_address_of_the_run():
    """Its flags are those of TRL's own, which ends with 2.0; tests/test_vllm.py starts one."""
    flags = "--bf16 true --seed 7 --vllm_server_host 10.0.0.2".split()
    other = "--vllm_server_base_url http://10.0.0.3:9000".split()
    for given, expected in (
        (flags, ("bfloat16", "7", "10.0.0.2", "8000")),
        (other, ("float32", "0", "10.0.0.3", "9000")),
        ([], ("float32", "0", "127.0.0.1", "8000")),
    ):
        variable, *words = shlex.split(hardware.serve_command(settings(*given)))
        assert variable == "VLLM_SERVER_DEV_MODE=1" and words[:3] == ["vllm", "serve", "models/tiny"]
        assert tuple(words[words.index(name) + 1] for name in ("--dtype", "--seed", "--host", "--port")) == expected
        assert {"--weight-transfer-config", "--logprobs-mode", "--max-logprobs"} <= set(words)
