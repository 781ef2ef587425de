"""The plan for a machine that one does not have.   bash tests/run.sh tests/test_other_machine.py"""

import os
import re

import pytest
from conftest import parser

from r1zero import ROOT
from r1zero.preflight import check as checks
from r1zero.preflight import machine, other_machine

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "tiny_model.yaml")
NUMBERS = {"one": 1, "two": 2, "four": 4, "eight": 8}


def hardware(path):
    """GPUs and GB of the machine that a recipe's header names."""
    found = re.search(r"# Hardware: (\w+) (?:T4 of )?([\d.]+) GB", path.read_text())
    return (NUMBERS[found[1]], float(found[2])) if found else (0, 0)


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """What a dry run prints in a folder without data or models; returns its lines."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        with pytest.raises(SystemExit) as ended:
            checks.check(parser(), ["--dry_run", *map(str, flags)])
        assert not ended.value.code, ended.value.code
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def refused(plan, monkeypatch, capsys):
    """What stops a run or its plan."""

    def run(*flags):
        with pytest.raises(SystemExit) as ended:
            checks.check(parser(), list(map(str, flags)))
        return str(ended.value)

    return run


def line_of(lines, start):
    (line,) = [line for line in lines if line.startswith(start)]
    return line


def peaks(line):
    """The GiB of a plan's or a header's phases, as a dict."""
    found = re.findall(r"([\d.]+)(?: GiB)? in (?:the )?(update|evaluation|generation)", line)
    return {phase: float(size) for size, phase in found}


def row_of_table(recipe):
    """GPUs, file and GiB of the phases that the table of docs/recipes.md has for a recipe."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    (row,) = re.findall(rf"^\| `{re.escape(recipe)}` \| (.*?) \| `(\w+)\.yaml` \| (.*) \|$", text, flags=re.MULTILINE)
    sizes = dict(zip(("update", "evaluation", "generation"), map(float, row[2].split(" | ")), strict=True))
    return row[0], row[1], sizes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan_for_the_machine_of_its_header(path, plan):
    gpus, gigabytes = hardware(path)
    lines = plan("--config", path, "--gpus", gpus, "--gpu_memory", gigabytes)
    assert line_of(lines, "steps: ") and line_of(lines, "model: ") and line_of(lines, "machine: ")
    assert "only that machine can tell" in lines[-1] and "free space on its disk" in lines[-1]
    if gpus:
        estimate = line_of(lines, "memory a card, estimate in GiB")
        assert f"of {gigabytes * 1e9 / 2**30:.1f}" in estimate
        (header,) = re.findall("# Hardware: .*", path.read_text())
        cards, file, row = row_of_table(path.name)
        assert peaks(header) == row == pytest.approx(peaks(estimate), abs=0.55), "header, table and estimate are one"
        assert cards == f"{header.split()[2]} of {gigabytes:g} GB" and f"accelerate/{file}.yaml" in lines[1]
        assert not [line for line in lines if "will not fit" in line]
        assert "cannot be had here: its shape is taken from r1zero/estimate" in lines[-2]


class TestPlan:
    def test_needs_neither_hub_nor_recipe(self, plan):
        lines = plan("--gpus", 8, "--gpu_memory", 80)
        assert lines[0] == "recipe: configs/qwen2.5-1.5b.yaml (for that machine); name another with --config"
        assert line_of(lines, "planned for") == (
            "planned for another machine, with 8 GPUs of 80 GB, which are 74.5 GiB, and started with "
            "configs/accelerate/zero2.yaml"
        )
        assert line_of(lines, "steps: ").startswith("steps: 256 completions of 32 prompts"), "accumulation is shared"
        assert line_of(lines, "machine: ").startswith("machine: DeepSpeed ZeRO-2 over 8 processes")

    @pytest.mark.parametrize(
        ("gpus", "gigabytes", "expected"),
        [(1, 24, "qwen2.5-1.5b-lora-24gb"), (0, 0, "tiny_cpu")],
    )
    def test_takes_the_recipe_for_that_machine(self, plan, gpus, gigabytes, expected):
        lines = plan("--gpus", gpus, "--gpu_memory", gigabytes)
        assert lines[0].startswith(f"recipe: configs/{expected}.yaml ")

    def test_spreads_the_model_as_the_header_says_or_the_flag(self, plan):
        flags = ("--config", ROOT / "configs" / "qwen2.5-7b.yaml", "--gpus", 8, "--gpu_memory", 80)
        header, asked = plan(*flags), plan(*flags, "--strategy", "zero1")
        assert "ZeRO-3 over 8 processes" in line_of(header, "machine: ")
        assert "ZeRO-1 over 8 processes" in line_of(asked, "machine: ")
        whole, parts = (re.search(r"weights ([\d.]+)", line_of(lines, "memory"))[1] for lines in (asked, header))
        assert float(whole) == pytest.approx(8 * float(parts), rel=0.05)

    def test_counts_completions_of_another_number_of_cards(self, plan):
        lines = plan("--config", ROOT / "configs" / "qwen2.5-7b.yaml", "--gpus", 4, "--gpu_memory", 80)
        assert line_of(lines, "steps: ").startswith("steps: 128 completions of 16 prompts")
        assert "--gradient_accumulation_steps 16" in line_of(lines, "batch: ")

    def test_says_what_does_not_fit(self, plan):
        lines = plan("--config", ROOT / "configs" / "qwen2.5-1.5b.yaml", "--gpus", 1, "--gpu_memory", 24)
        assert "--per_device_train_batch_size" in line_of(lines, "will not fit in update: try ")

    def test_leaves_room_for_prompts_that_cannot_be_counted(self, plan):
        lines = plan("--config", ROOT / "configs" / "x_r1_750.yaml", "--gpus", 1, "--gpu_memory", 80)
        assert "(up to 1,024 tokens are planned for)" in lines[-1]
        assert "the number of problems is not known yet" in line_of(lines, "steps: ")

    def test_uses_data_and_model_that_are_here(self, plan, data, long_model):
        lines = plan(
            *("--config", ROOT / "configs" / "qwen2.5-1.5b.yaml", "--gpus", 1, "--gpu_memory", 80),
            *("--data_dir", data / "countdown", "--model_name_or_path", long_model),
            *("--per_device_eval_batch_size", 4, "--num_generations", 16),
        )
        assert "steps an epoch of 16 problems" in line_of(lines, "steps: ")
        assert lines[-1].endswith("the compilers that it needs"), "data and prompts are checked"

    def test_knows_a_model_in_a_folder_of_that_machine_by_its_name(self, plan):
        flags = ("--config", ROOT / "configs" / "qwen2.5-1.5b.yaml", "--gpus", 1, "--gpu_memory", 80)
        lines = plan(*flags, "--model_name_or_path", "models/Qwen2.5-3B")
        assert line_of(lines, "model: ").startswith("model: 3,085,938,688 parameters")

    def test_leaves_this_process_as_it_was(self, plan, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "1")
        before = dict(os.environ)
        plan("--gpus", 8, "--gpu_memory", 80)
        assert dict(os.environ) == before


class TestShapeAlone:
    """A model of the hub where there is no hub, on the machine itself."""

    FLAGS = ("--config", ROOT / "configs" / "tiny_cpu.yaml", "--model_name_or_path", "Qwen/Qwen2.5-0.5B")

    def test_is_enough_for_a_dry_run(self, plan, tiny_data):
        lines = plan(*self.FLAGS, "--data_dir", tiny_data, "--save_strategy", "no")
        assert line_of(lines, "model: ").startswith("model: 494,032,768 parameters")
        assert lines[-1] == "Qwen/Qwen2.5-0.5B cannot be had here: its shape is taken from r1zero/estimate"

    def test_is_not_enough_for_a_run(self, refused, tiny_data):
        said = refused(*self.FLAGS, "--data_dir", tiny_data, "--save_strategy", "no")
        assert "type hf download Qwen/Qwen2.5-0.5B" in said


class TestRefused:
    def test_a_run_takes_the_machine_that_it_finds(self, refused):
        assert "--gpus and --gpu_memory without --dry_run" in refused("--gpus", 8, "--gpu_memory", 80)

    @pytest.mark.parametrize(
        "flags", [("--gpus", 8), ("--gpu_memory", 80), ("--strategy", "zero2"), ("--gpus", -1, "--gpu_memory", 80)]
    )
    def test_half_a_machine(self, refused, flags):
        assert "pass --gpus 8 --gpu_memory 80, or --gpus 0" in refused("--dry_run", *flags)

    def test_a_recipe_that_does_not_exist(self, refused):
        assert "nowhere.yaml" in refused("--dry_run", "--config", "nowhere.yaml", "--gpus", 8, "--gpu_memory", 80)

    def test_a_strategy_that_does_not_exist(self, refused):
        said = refused("--dry_run", "--gpus", 8, "--gpu_memory", 80, "--strategy", "zero4")
        assert "zero4 is no file of configs/accelerate" in said and "zero3_offload" in said

    @pytest.mark.parametrize(
        ("flags", "error"),
        [
            pytest.param(("--model_name_or_path", "a/b"), "model a/b cannot be had", id="a model that is not known"),
            pytest.param(("--num_generations", 7), "do not divide into groups", id="a batch that does not divide"),
            pytest.param(("--max_completion_length", 2048), "exceed vllm_max_model_length", id="too long"),
            pytest.param(("--vllm_tensor_parallel_size", 3), "does not divide the 8 processes", id="tensor parallel"),
            pytest.param(("--reward_funcs", "no_reward"), "reward_funcs names no_reward", id="a reward"),
        ],
    )
    def test_what_cannot_run_there(self, refused, flags, error):
        recipe = ROOT / "configs" / "qwen2.5-7b.yaml"
        said = refused("--dry_run", "--config", recipe, "--gpus", 8, "--gpu_memory", 80, *flags)
        assert "cannot run there as it is" in said and error in said

    def test_a_recipe_for_a_gpu_where_there_is_none(self, refused):
        said = refused("--dry_run", "--config", ROOT / "configs" / "qwen2.5-7b.yaml", "--gpus", 0)
        assert "is for a GPU and that machine has none" in said


class TestLauncher:
    @pytest.mark.parametrize(
        ("file", "name", "shards"),
        [
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
    def test_says_what_each_file_does(self, file, name, shards):
        variables = other_machine.launcher_variables(other_machine.STRATEGIES / f"{file}.yaml", 8)
        found = machine.read_strategy(variables)
        assert found.name == name and tuple(found.shards.values()) == shards
