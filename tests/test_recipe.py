"""A run's settings: YAML, then flags, then the batch for its processes.   bash tests/run.sh tests/test_recipe.py"""

import copy
import math
import os

import pytest
import yaml
from conftest import CONFIGS, RECIPES, TINY, each_case, parser, settings

from r1zero import schedule
from r1zero.preflight import recipe


def write_recipe(path, text=""):
    """Write the tiny recipe with other lines (a text of YAML) in place of its own; return the path."""
    kept = {name: value for name, value in yaml.safe_load(TINY.read_text()).items() if f"{name}:" not in text}
    path.write_text(f"{yaml.safe_dump(kept)}{text}\n")
    return path


@pytest.fixture
def own(tmp_path):
    return lambda text: write_recipe(tmp_path / "x.yaml", text)


def test_flags_come_before_the_recipe_and_the_recipe_before_the_defaults(own, monkeypatch):
    monkeypatch.delenv("OF_THE_RECIPE", raising=False)
    values = settings("--seed", 5, config=own("seed: 3\nbeta: 0.5\nlearning_rate: 1e-5\nenv: {OF_THE_RECIPE: 7}"))
    assert (values.seed, values.beta, values.learning_rate, values.epsilon) == (5, 0.5, 1e-5, 0.2)
    assert os.environ["OF_THE_RECIPE"] == "7"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2", "seed stands there twice"),
        ("- seed: 1", "found .*, wanted lines as max_steps: 96"),
        ("seed: [", "expected the node content"),
        ("env: on", "env is True, wanted lines as NCCL_DEBUG: INFO"),
    ],
)
def test_recipe_that_cannot_be_read_is_named(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SystemExit, match=rf"(?s)x.yaml .*{said}"):
        settings(config=tmp_path / "x.yaml")


@pytest.mark.parametrize("flags", [[], ["--learning_rate", "1e-5", "--no_trim_padding", "--reward_weights", "2"]])
def test_dataclasses_are_those_that_trls_own_parser_makes(flags):
    built = parser().parse_dict(vars(settings(*flags)), allow_extra_keys=True)
    trls = parser().parse_args_and_config(["--config", str(TINY), "--gradient_accumulation_steps", "1", *flags])
    for ours, theirs in zip(built, trls, strict=True):
        assert type(ours) is type(theirs)
        for name, value in vars(theirs).items():
            assert str(getattr(ours, name)) == str(value), name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_one_that_trl_takes(name):
    """On the CPU in float32, since TRL's classes check the hardware."""
    values = settings("--use_cpu", "--bf16", "false", config=CONFIGS / f"{name}.yaml")
    parser().parse_dict(vars(values), allow_extra_keys=True)


class TestBatch:
    @pytest.mark.parametrize("name", RECIPES)
    def test_of_every_recipe_is_whole_groups_near_what_it_says_on_any_number_of_processes(self, name):
        path = CONFIGS / f"{name}.yaml"
        resolved, said = settings(config=path, processes=None), yaml.safe_load(path.read_text())
        wanted, group = said["completions_per_step"], resolved.num_generations
        for processes in range(1, 17):
            values = copy.copy(resolved)
            recipe.fit(values, processes)
            made = values.per_device_train_batch_size * processes * values.gradient_accumulation_steps
            least = math.lcm(processes, group // math.gcd(group, said.get("steps_per_generation", 1)))
            assert abs(made - wanted) <= max(wanted / 8, least / 2, least - wanted)
            assert values.per_device_train_batch_size <= said["per_device_train_batch_size"]
            assert schedule.span(values) == said.get("steps_per_generation", 1), "optimizer steps on one generation"
            assert schedule.completions(values, processes) % group == 0
            assert recipe.save_errors(values, processes) == []

    @each_case("batches.tsv")
    def test_follows_from_what_is_given_and_is_smaller_a_device_only_if_need_be(self, own, case):
        """The tiny recipe, unless one is named. said: the parts of the lines, none for no line."""
        config = CONFIGS / f"{case['recipe']}.yaml" if case["recipe"] else own(case["yaml"].replace(" / ", "\n"))
        values = settings(*case["flags"].split(), config=config, processes=None)
        said = " ... ".join(recipe.fit(values, int(case["processes"])))
        assert bool(said) == bool(case["said"])
        assert [part for part in case["said"].split(" ... ") if part not in said] == []
        batch = (values.per_device_train_batch_size, values.gradient_accumulation_steps)
        assert batch == (int(case["batch"]), int(case["accumulation"]))
        assert schedule.span(values) == float(case["span"] or schedule.span(values))

    @pytest.mark.parametrize(
        ("rows", "processes", "group", "size"),
        [(1024, 8, 1, 128), (1024, 1, 1, 1024), (2000, 1, 1, 1024), (1000, 3, 4, 332), (3, 4, 1, 1024)],
        ids=["eight cards", "as the recipe says", "more rows", "whole groups", "too few rows"],
    )
    def test_of_an_evaluation_is_what_the_rows_fill(self, rows, processes, group, size):
        values = settings("--num_generations_eval", group, config=CONFIGS / "qwen2.5-1.5b.yaml")
        line = f"evaluation: per_device_eval_batch_size is {size}, as {rows:,} held-out rows fill no more"
        assert recipe.fit_evaluation(values, rows, processes) == ([] if size == 1024 else [line])
        assert values.per_device_eval_batch_size == size
