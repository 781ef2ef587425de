"""Completions a generation, kept whatever the number of processes.   bash tests/run.sh tests/test_batch.py"""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, parser

from r1zero import processes
from r1zero.preflight import batch, machine
from r1zero.preflight import check as checks

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem != "tiny_model")
CHOSEN = ("qwen2.5-1.5b", "qwen2.5-1.5b-lora-24gb", "qwen2.5-1.5b-lora-t4")  # by the machine


def share(name, ranks, *flags, chosen=True):
    """The machine.Recipe of a file of configs/ with flags, and what `share` gives for it on so many processes."""
    recipe = machine.read_recipe(parser(), ["--config", str(ROOT / "configs" / f"{name}.yaml"), *flags])
    return recipe, *batch.share(recipe, chosen, ranks)


def with_flags(values, words):
    """The settings with flags that are all numbers."""
    values = copy.copy(values)
    for name, value in zip(words[::2], words[1::2], strict=True):
        setattr(values, name.removeprefix("--"), int(value))
    return values


@pytest.mark.parametrize("ranks", range(1, 17))
@pytest.mark.parametrize("name", CHOSEN)
def test_recipe_that_is_chosen_passes_the_checks_on_any_number_of_cards(monkeypatch, name, ranks):
    """With 3 or 7 cards the LoRA recipe had 252 completions, which its groups of 8 do not divide."""
    recipe, flags, _ = share(name, ranks)
    values = with_flags(recipe.values, flags)
    meant = batch.completions(recipe.values, 1)
    monkeypatch.setattr(processes, "count", lambda: ranks)
    assert checks.batch_errors(values) == []
    whole = math.lcm(ranks, values.num_generations)  # at least so many make whole groups
    assert abs(batch.completions(values, ranks) - meant) <= max(meant / 8, whole / 2)


def test_number_that_is_not_quite_the_recipes_is_said():
    _, flags, line = share("qwen2.5-1.5b-lora-24gb", 3)
    assert flags == ["--gradient_accumulation_steps", "22"]
    assert line == "batch: 264 completions a generation, the nearest to 256 that groups of 8 and 3 processes divide"
    assert share("qwen2.5-1.5b-lora-24gb", 2)[1:] == (["--gradient_accumulation_steps", "32"], None)


@pytest.mark.parametrize(
    ("name", "ranks", "now", "meant", "flags", "made"),
    [
        ("qwen2.5-7b", 16, 512, "256 on 8", "--gradient_accumulation_steps 4", 256),
        ("qwen2.5-3b", 1, 128, "256 on 2", "--gradient_accumulation_steps 32", 256),
        ("qwen2.5-3b", 3, 384, "256 on 2", "--gradient_accumulation_steps 11", 264),
        ("tiny_cpu", 2, 512, "256 on one", "--per_device_train_batch_size 32", 256),
    ],
    ids=["two machines", "one card of two", "three cards", "nothing accumulated"],
)
def test_recipe_that_is_named_says_the_flag_and_does_not_set_it(name, ranks, now, meant, flags, made):
    recipe, added, line = share(name, ranks, chosen=False)
    here = "one process" if ranks == 1 else f"{ranks} processes"
    assert added == []
    assert line == (
        f"batch: {now} completions a generation on {here}, where {recipe.path} means {meant}: pass {flags} for {made}"
    )
    assert batch.completions(with_flags(recipe.values, flags.split()), ranks) == made
    assert share(name, ranks, *flags.split(), chosen=False)[2] is None or made != 256, "and then says nothing more"


def test_recipe_that_is_named_on_the_cards_of_its_header_says_nothing():
    assert share("qwen2.5-7b", 8, chosen=False)[1:] == ([], None)
    assert share("qwen2.5-1.5b", 1, chosen=False)[1:] == ([], None)


def test_optimizer_steps_on_a_generation_stay_as_many():
    """Or a checkpoint of save_steps would stand inside a generation."""
    values = SimpleNamespace(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        steps_per_generation=32,
        generation_batch_size=None,
        num_generations=8,
    )
    for ranks in range(1, 17):
        settings, made = batch.nearest(values, 128, ranks)
        assert settings["steps_per_generation"] == 4 * settings["gradient_accumulation_steps"]
        of_each = settings["per_device_train_batch_size"] * settings["steps_per_generation"]
        assert made == ranks * of_each and made % 8 == 0


def test_header_of_a_recipe_without_a_number_of_processes_means_one(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"run_name": "--num_processes 3"}))
    assert batch.header_processes(file) == 1
    file.write_text("# A recipe\n#   accelerate launch --num_processes 4 \\\n#       train_countdown.py\n")
    assert batch.header_processes(file) == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_more_cards_evaluate_as_many_problems_at_a_time_as_the_recipe_means(name):
    """Its own batch on each of many cards could be more than the 512 held-out problems that a task has at least."""
    recipe = machine.read_recipe(parser(), ["--config", str(ROOT / "configs" / f"{name}.yaml")])
    meant = batch.header_processes(recipe.path)
    wanted = recipe.values.per_device_eval_batch_size * meant
    assert batch.share_evaluation(recipe, meant) == []
    for ranks in (meant + 1, meant + 2, 16):
        flag, size = batch.share_evaluation(recipe, ranks)
        assert flag == "--per_device_eval_batch_size"
        assert 0 < int(size) * ranks <= max(wanted, ranks)


def test_evaluation_batch_that_is_given_or_of_a_users_own_file_stays(tmp_path):
    path = ROOT / "configs" / "qwen2.5-1.5b.yaml"
    told = machine.read_recipe(parser(), ["--config", str(path), "--per_device_eval_batch_size", "32"])
    assert batch.share_evaluation(told, 8) == []
    own = tmp_path / "own.yaml"
    own.write_text(path.read_text())
    assert batch.share_evaluation(machine.read_recipe(parser(), ["--config", str(own)]), 8) == []


def test_chosen_recipe_evaluates_on_eight_cards(monkeypatch):
    """With 256 on each of them it was refused: 2,048 are more than the 1,024 held-out problems."""
    monkeypatch.setattr(processes, "count", lambda: 8)
    recipe = machine.read_recipe(parser(), [], choose=lambda use_cpu: str(ROOT / "configs" / "qwen2.5-1.5b.yaml"))
    held_out = SimpleNamespace(path=Path("test.parquet"), rows=1024)
    assert checks.data_errors(recipe.values, SimpleNamespace(files=[held_out], rows=327_680)) == []
