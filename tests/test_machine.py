"""The recipe for a machine, its strategy, what is made where missing, checkpoints.

bash tests/run.sh tests/test_machine.py
"""

import errno
import fcntl
import json
import os
import socket
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DeepSpeedPlugin
from conftest import parser

from r1zero import ROOT, processes
from r1zero.preflight import cards, machine
from r1zero.preflight import hardware as hardware_checks

TINY = ROOT / "configs" / "tiny_cpu.yaml"


def pretend_card(monkeypatch, gib=16, name="a card", bf16=True):
    """As if this machine had one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if bf16 else (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    monkeypatch.setattr(hardware_checks, "triton_errors", lambda: [])  # as if it had all that compiles
    properties = type("Properties", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def pretend_vllm(monkeypatch):
    """As if a vLLM were installed that TRL knows, and all that it compiles with."""
    monkeypatch.setattr(hardware_checks, "is_vllm_available", lambda: True)
    monkeypatch.setattr(hardware_checks, "compiler_errors", lambda *arguments: [])


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Reads the tiny recipe with other settings, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def read(*flags, **settings):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | settings))
        return machine.read_recipe(parser(), ["--config", "x.yaml", *flags])

    return read


def test_processes_are_asked_for_when_they_are_wanted(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert processes.count() == 1 and processes.is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert processes.count() == 3 and not processes.is_main_process()


def test_first_process_of_each_machine_says_what_stops_it(monkeypatch):
    monkeypatch.setenv("RANK", "8")
    for local_rank, said in (
        ("0", f"train_countdown.py on {socket.gethostname()}: it cannot run:\n  - why"),
        ("1", 1),
    ):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as stopped:
            processes.stop("it cannot run", ["why"])
        assert stopped.value.code == said


class TestRecipe:
    @pytest.mark.parametrize(
        ("gib", "bf16", "expected"),
        [
            (None, False, "tiny_cpu"),
            (15, False, "qwen2.5-1.5b-lora-t4"),
            (24, False, "qwen2.5-1.5b-lora-t4"),
            (16, True, "qwen2.5-1.5b-lora-t4"),
            (22, True, "qwen2.5-1.5b-lora-24gb"),
            (80, True, "qwen2.5-1.5b"),
        ],
        ids=["no GPU", "a T4", "24 GB without bfloat16", "16 GB", "24 GB", "80 GB"],
    )
    def test_is_chosen_by_the_machine_and_said(self, monkeypatch, capsys, gib, bf16, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(cards, "found", lambda: None)
        if gib is not None:
            pretend_card(monkeypatch, gib, bf16=bf16)
        assert Path(machine.choose_recipe()) == ROOT / "configs" / f"{expected}.yaml"
        assert capsys.readouterr().out.startswith(f"recipe: configs/{expected}.yaml (")

    def test_is_not_the_tiny_one_beside_a_gpu_that_torch_misses(self, monkeypatch):
        """An old driver trained the toy, and only one word on the console said so."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(cards, "found", lambda: ("Tesla T4", "550.54.15"))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        with pytest.raises(SystemExit, match="found driver 550.54.15 for the Tesla T4, wanted 580 or newer"):
            machine.read_recipe(parser(), [])

    def test_is_the_tiny_one_where_a_flag_asks_for_the_cpu(self, monkeypatch, capsys):
        monkeypatch.setattr(cards, "found", lambda: pytest.fail("nvidia-smi was asked"))
        assert machine.read_recipe(parser(), ["--use_cpu"]).path == str(TINY)
        assert "recipe: configs/tiny_cpu.yaml (use_cpu is on)" in capsys.readouterr().out

    def test_holds_the_recipes_own_settings_beside_those_of_the_flags(self, recipe):
        found = recipe("--seed", "5", seed=3, beta=0.5)
        assert (found.values.seed, found.own.seed, found.values.beta) == (5, 3, 0.5)
        assert (found.path, found.flags) == ("x.yaml", ["--seed", "5"])

    def test_more_processes_share_the_accumulation_of_the_chosen_recipe(self, recipe, monkeypatch, capsys):
        recipe(per_device_train_batch_size=8, gradient_accumulation_steps=32, steps_per_generation=None)
        monkeypatch.setattr(machine, "choose_recipe", lambda use_cpu: "x.yaml")
        monkeypatch.setattr(processes, "count", lambda: 4)

        def accumulation(*argv):
            return machine.read_recipe(parser(), list(argv)).values.gradient_accumulation_steps

        assert accumulation() == 8 and capsys.readouterr().out == ""
        flags = machine.read_recipe(parser(), []).flags  # which are parsed once more
        assert flags == ["--gradient_accumulation_steps", "8"]
        assert accumulation("--gradient_accumulation_steps", "16") == 16, "a flag counts as it is"
        assert capsys.readouterr().out == ""
        assert accumulation("--config", "x.yaml") == 32, "a recipe that is named counts as it is"
        assert capsys.readouterr().out == (
            "batch: 1,024 completions a generation on 4 processes, where x.yaml means 256 on one: pass "
            "--gradient_accumulation_steps 8 for 256\n"
        )

    def test_help_is_the_parsers(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            machine.read_recipe(parser(), ["--help"])
        assert stopped.value.code == 0 and "--reward_funcs" in capsys.readouterr().out

    @pytest.mark.parametrize("text", ["- a\n- list", "a: [1", ""], ids=["a list", "broken YAML", "an empty file"])
    def test_that_is_no_mapping_is_refused(self, tmp_path, text):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(SystemExit, match="not a readable YAML mapping"):
            machine.read_recipe(parser(), ["--config", str(tmp_path / "x.yaml")])

    def test_that_does_not_exist_is_named(self):
        with pytest.raises(SystemExit, match="nowhere.yaml"):
            machine.read_recipe(parser(), ["--config", "nowhere.yaml"])

    def test_misspelt_key_names_the_nearest(self, recipe):
        with pytest.raises(SystemExit, match="num_generation: did you mean num_generations?"):
            recipe(num_generation=4)


class TestMissing:
    """What the recipe's `prepare` makes, in a real run and for --dry_run."""

    def test_data_and_model_are_made_by_a_script_of_the_project(self, recipe, tmp_path, capsys):
        (tmp_path / "make.py").write_text("import sys; open('made', 'w').write(' '.join(sys.argv[1:]))")
        machine.make_missing(recipe(prepare=f"{tmp_path}/make.py --size 3"))
        assert (tmp_path / "made").read_text() == "--size 3"
        start = "models/tiny/config.json and data/countdown_tiny/test.parquet not there yet: running python "
        assert capsys.readouterr().out.startswith(start)

    def test_module_of_the_package_is_found_from_any_folder(self, recipe, monkeypatch):
        found = {}

        def run(command, env):
            found.update(command=command, path=env["PYTHONPATH"])
            return Namespace(returncode=0)

        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setattr(machine.subprocess, "run", run)
        machine.make_missing(recipe())
        assert found["command"] == [sys.executable, "-m", "r1zero.tiny_model"]
        assert found["path"] == f"{ROOT}{os.pathsep}/elsewhere"

    def test_nothing_is_made_where_it_is_there(self, recipe, tmp_path, capsys):
        for file in ("models/tiny/config.json", "data/countdown_tiny/test.parquet"):
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).touch()
        machine.make_missing(recipe(prepare="no_such_script.py"))
        assert capsys.readouterr().out == ""

    def test_nothing_is_made_where_a_flag_points_elsewhere(self, recipe):
        found = recipe("--data_dir", "mine", "--model_name_or_path", "models/mine")
        assert machine.missing_files(found) == []

    def test_making_that_fails_stops_the_run(self, recipe, tmp_path):
        (tmp_path / "make.py").write_text("import sys; sys.exit(3)")
        with pytest.raises(SystemExit, match=r"make.py failed \(3\)"):
            machine.make_missing(recipe(prepare=f"{tmp_path}/make.py"))

    def test_all_but_the_first_process_of_all_machines_wait(self, recipe, tmp_path, monkeypatch, capsys):
        """On NFS two machines' locks may not keep each other out: each made the same files, at the same time."""
        monkeypatch.setenv("RANK", "8")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: pytest.fail("made twice"))
        files = [tmp_path / "data/countdown_tiny/test.parquet", tmp_path / "models/tiny/config.json"]
        seconds = []

        def sleep(_):
            seconds.append(1)
            if len(seconds) in (61, 90):
                file = files.pop()
                file.parent.mkdir(parents=True)
                file.touch()

        monkeypatch.setattr(machine.time, "sleep", sleep)
        machine.make_missing(recipe())
        assert len(seconds) == 90 and not (tmp_path / ".prepare.lock").exists()
        assert capsys.readouterr().out == (
            "waiting for models/tiny/config.json and data/countdown_tiny/test.parquet, which the first machine makes; "
            "on one that does not share its folder, type python -m r1zero.tiny_model\n"
        )

    def test_folder_that_cannot_be_locked_is_told_in_one_line(self, recipe, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")  # NFS without its lock service

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(SystemExit) as stopped:
            machine.make_missing(recipe())
        what, line = str(stopped.value).splitlines()
        assert "cannot be locked ([Errno 37] No locks available)" in what
        assert line.endswith("type python -m r1zero.tiny_model, and then start the run again")

    def test_dry_run_says_what_a_run_would_make_and_makes_nothing(self, recipe, tmp_path, capsys):
        missing = machine.what_will_be_there(recipe())
        assert capsys.readouterr().out == (
            "models/tiny and data/countdown_tiny are not there yet: a run would make them with python -m "
            "r1zero.tiny_model\n"
        )
        assert missing.data and missing.model and missing.rows == 913
        assert missing.config.max_position_embeddings == 512 and missing.config.vocab_size == len(missing.tokenizer)
        assert os.listdir(tmp_path) == ["x.yaml"]

    def test_dry_run_knows_the_rows_and_the_longest_prompt_of_data_that_is_made(self, recipe, capsys):
        missing = machine.what_will_be_there(
            recipe(model_name_or_path="a/b", prepare="preprocess.py countdown --train_size 640 --num_operands 4")
        )
        assert "data/countdown_tiny is not there yet: a run would make it with python pre" in capsys.readouterr().out
        assert missing.data and not missing.model and missing.rows == 640
        assert "[99, 99, 99, 99]" in missing.prompts[0]

    def test_dry_run_of_a_mixture_without_its_parts_would_fail(self, recipe, tmp_path):
        mixture = recipe(prepare=f"preprocess.py mixture {tmp_path}/one {tmp_path}/two --local_dir data/both")
        with pytest.raises(SystemExit, match="one/train.parquet does not exist: write it first, with preprocess.py"):
            machine.what_will_be_there(mixture)
        assert machine.what_will_be_there(mixture, elsewhere=True).rows is None

    def test_dry_run_leaves_open_what_only_the_source_knows(self, recipe):
        missing = machine.what_will_be_there(recipe(prepare="preprocess.py gsm8k"))
        assert missing.data and missing.rows is None and missing.prompts == []


class TestStrategy:
    DEEPSPEED = {"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true"}

    @pytest.mark.parametrize(
        ("environment", "name", "shards"),
        [
            pytest.param({}, "one process", (1, 1, 1), id="nothing"),
            pytest.param({"WORLD_SIZE": "4"}, "DDP", (1, 1, 1), id="DDP"),
            pytest.param(DEEPSPEED, "DeepSpeed ZeRO-2", (1, 4, 4), id="accelerate's own default"),
            pytest.param(DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "DeepSpeed ZeRO-1", (1, 1, 4), id="1"),
            pytest.param(DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed ZeRO-3", (4, 4, 4), id="3"),
            pytest.param(
                {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP2", (4, 4, 4), id="FSDP"
            ),
        ],
    )
    def test_is_read_from_the_launchers_variables(self, environment, name, shards):
        found = machine.read_strategy(environment)
        assert found.name == name
        assert tuple(found.shards[part] for part in ("weights", "gradients", "optimizer")) == shards

    @pytest.fixture
    def from_file(self, tmp_path):
        """The Strategy of a launcher that is given a DeepSpeed file alone."""

        def read(optimization, **variables):
            (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": optimization}))
            file = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}
            return machine.read_strategy(self.DEEPSPEED | file | variables)

        return read

    def test_of_a_deepspeed_file_alone_is_the_files(self, from_file):
        found = from_file({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}})
        assert found.name == "DeepSpeed ZeRO-3 with optimizer and weights on the CPU"
        assert found.shards == {"weights": 4, "gradients": 4, "optimizer": 4} and found.deepspeed
        assert from_file({"stage": 1}).name == "DeepSpeed ZeRO-1"

    def test_of_a_deepspeed_file_that_leaves_the_stage_open_is_the_launchers(self, from_file):
        assert from_file({"stage": "auto"}, ACCELERATE_DEEPSPEED_ZERO_STAGE="1").name == "DeepSpeed ZeRO-1"

    def test_is_the_one_that_accelerate_makes_of_this_processs_variables(self, from_file, monkeypatch, tmp_path):
        found = from_file({"stage": 3})
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
        assert found.name == f"DeepSpeed ZeRO-{DeepSpeedPlugin().zero_stage}" == "DeepSpeed ZeRO-3"

    @pytest.mark.parametrize("text", [None, "{", "{}"], ids=["no file", "no JSON", "nothing of ZeRO"])
    def test_of_a_deepspeed_file_that_cannot_be_used_is_an_error(self, tmp_path, text):
        if text is not None:
            (tmp_path / "ds.json").write_text(text)
        with pytest.raises(ValueError):
            machine.read_strategy(self.DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./model", True),
        ("/somewhere/model", True),
        ("~/model", True),
        ("models/mine", True),
        ("outputs/run/checkpoint-4", True),
        ("here/model", True),
        ("Qwen/Qwen2.5-1.5B", False),
        ("gpt2", False),
    ],
)
def test_folders_are_told_from_hub_ids(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert machine.is_folder_name(name) == expected
