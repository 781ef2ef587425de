"""A run's settings: YAML, then flags, then the batch for its processes.   bash tests/run.sh tests/test_recipe.py"""

import copy
import inspect
import math
import os

import pytest
import yaml
from conftest import ROOT, parser, settings
from trl.trainer import grpo_trainer

from r1zero import schedule
from r1zero.preflight import recipe
from r1zero.preflight import settings as setting_checks

CONFIGS = ROOT / "configs"
TINY = CONFIGS / "tiny_cpu.yaml"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "tiny_model")


@pytest.fixture
def own(tmp_path):
    """Writes the tiny recipe with other lines (a text of YAML) in place of its own; returns the file."""

    def write(text=""):
        kept = {name: value for name, value in yaml.safe_load(TINY.read_text()).items() if f"{name}:" not in text}
        (tmp_path / "x.yaml").write_text(f"{yaml.safe_dump(kept)}{text}\n")
        return tmp_path / "x.yaml"

    return write


@pytest.fixture
def refused(own, capsys):
    """The lines that a YAML and flags are stopped with."""

    def run(text="", *flags):
        with pytest.raises(SystemExit) as stopped:
            settings(*flags, config=own(text))
        first, *lines = str(stopped.value).splitlines()
        assert first.startswith("train_countdown.py: ") and capsys.readouterr() == ("", "")
        return lines

    return run


def test_flags_come_before_the_recipe_and_the_recipe_before_the_defaults(own, monkeypatch):
    monkeypatch.delenv("OF_THE_RECIPE", raising=False)
    values = settings("--seed", 5, config=own("seed: 3\nbeta: 0.5\nlearning_rate: 1e-5\nenv: {OF_THE_RECIPE: 7}"))
    assert (values.seed, values.beta, values.learning_rate, values.epsilon) == (5, 0.5, 1e-5, 0.2)
    assert os.environ["OF_THE_RECIPE"] == "7"


@pytest.mark.parametrize("flags", [[], ["--learning_rate", "1e-5", "--no_trim_padding", "--reward_weights", "2"]])
def test_dataclasses_are_those_that_trls_own_parser_makes(flags):
    built = recipe.build(parser(), settings(*flags))
    trls = parser().parse_args_and_config(["--config", str(TINY), "--gradient_accumulation_steps", "1", *flags])
    for ours, theirs in zip(built, trls, strict=True):
        assert type(ours) is type(theirs)
        for name, value in vars(theirs).items():
            assert str(getattr(ours, name)) == str(value), name


def test_help_is_the_parsers(capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.read_flags(parser(), ["--help"])
    assert stopped.value.code == 0 and "--completions_per_step" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["- a\n- list", "a: [1", "", "just words", "a: 1\na: 2", None])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"x.yaml is not a readable YAML mapping:"):
        settings(config=tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_steps: [96]", "max_steps is [96], wanted a valid integer"),
        ("max_steps: 9.5", "max_steps is 9.5, wanted a valid integer"),
        ("max_steps: yes", "max_steps is True, wanted a valid integer"),
        ("num_train_epochs: null", "num_train_epochs is None, wanted a valid number"),
        ("max_completion_length: null", "max_completion_length is None, wanted a valid integer"),
        ("run_name: 5", "run_name is 5, wanted a valid string"),
        ("use_cpu: 1", "use_cpu is 1, wanted a valid boolean"),
        ("save_strategy: no", "save_strategy is False, wanted a valid string, in quotes, as YAML reads no"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint is True, wanted a valid string, in quotes"),
        ("reward_funcs: countdown_reward", "wanted a valid list: write reward_funcs: [countdown_reward]"),
        ("reward_weights: 1.0", "reward_weights is 1.0, wanted a valid list: write reward_weights: [1.0]"),
        ("learning_rate: fast", "learning_rate is 'fast', wanted a valid number"),
        ("env: [1]", "env is [1], wanted lines as NCCL_DEBUG: INFO"),
        ("num_generation: 4", "num_generation: did you mean num_generations?"),
    ],
)
def test_value_that_the_yaml_cannot_mean(refused, text, line):
    (found,) = refused(text)
    assert line in found


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--max_steps abc", "invalid int value: 'abc'"),
        ("--eval_strategy sometimes", "invalid choice: 'sometimes' (choose from 'no', 'steps', 'epoch')"),
        ("--temperature 0", "temperature is 0.0, wanted greater than 0"),
        ("--temperature nan", "temperature is nan, wanted a finite number"),
        ("--reward_weights inf", "reward_weights is [inf], wanted a finite number"),
        ("--top_p 1.5", "top_p is 1.5, wanted less than or equal to 1"),
        ("--num_generations 1 --dry_run", "num_generations is 1, wanted greater than or equal to 2"),
        ("--completions_per_step 0", "completions_per_step is 0, wanted greater than or equal to 1"),
        ("--save_steps 0", "save_steps is 0.0, wanted greater than 0"),
        ("--seed 4294967296", "seed is 4294967296, wanted less than or equal to 4294967295"),
        ("--max_steps 0", "max_steps is 0, wanted at least 1, or -1 for those of num_train_epochs"),
        ("--loss_type ppo", "loss_type is 'ppo', wanted 'grpo', 'bnpo', 'dr_grpo'"),
        ("--data_dir g[1]", "data_dir is g[1], and datasets takes * ? [ ] for patterns: rename the folder"),
        ("--output_dir ~/runs", "output_dir is ~/runs, and only a shell knows ~: write the whole path"),
        ("--learning_rte 1", "learning_rte: did you mean learning_rate?"),
        ("--learning_rat=1", "learning_rat: did you mean learning_rate?"),
        ("beta", "beta: did you mean beta?"),
        ("--zzz 1", "zzz: nothing has a name like it; see --help"),
        ("--config", "argument --config: expected one argument"),
    ],
)
def test_flag_that_cannot_be_meant(refused, flags, line):
    (found,) = refused("", *flags.split())
    assert line in found


def test_all_are_told_at_once(refused):
    assert len(refused("beta: -1", "--learning_rate", "-1", "--seed", "-1")) == 3


@pytest.mark.parametrize(
    "text",
    ["learning_rate: 1e-6", "learning_rate: 1", "eval_steps: null", "save_steps: 0.25"]
    + ["lora_target_modules: all-linear", "reward_weights: [1, 0.5]", "model_init_kwargs: {use_cache: false}"],
)
def test_what_transformers_takes_is_left_alone(text):
    assert setting_checks.errors(yaml.safe_load(text), parser().dataclass_types) == []


def test_limits_and_choices_are_of_settings_and_texts_that_trl_knows():
    known = vars(parser().parse_known_args([])[0])
    assert {name for names in setting_checks.RANGES.values() for name in names} | set(setting_checks.TYPES) <= set(
        known
    )
    source = inspect.getsource(grpo_trainer)
    for name, hint in setting_checks.TYPES.items():
        choices = getattr(hint, "__args__", ())
        if isinstance(known[name], str) and choices:
            assert known[name] in choices
            assert [choice for choice in choices if f'"{choice}"' not in source] == []


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
            assert abs(made - wanted) <= max(wanted / 8, least / 2)
            assert values.per_device_train_batch_size <= said["per_device_train_batch_size"]
            assert schedule.span(values) == said.get("steps_per_generation", 1), "optimizer steps on one generation"
            assert recipe.batch_errors(values, processes) == []

    @pytest.mark.parametrize(
        ("name", "processes", "batch", "made"),
        [
            ("qwen2.5-7b", 8, (4, 8), 256),
            ("qwen2.5-7b", 16, (4, 4), 256),
            ("qwen2.5-3b", 1, (8, 32), 256),
            ("qwen2.5-1.5b-lora-24gb", 3, (4, 22), 264),
            ("tiny_cpu", 1, (64, 1), 64),
            ("tiny_cpu", 2, (32, 1), 64),
            ("tiny_cpu", 3, (20, 1), 60),
        ],
    )
    def test_is_accumulated_and_is_smaller_a_device_only_if_need_be(self, name, processes, batch, made):
        values = settings(config=CONFIGS / f"{name}.yaml", processes=None)
        wanted = values.completions_per_step
        lines = recipe.fit(values, processes)
        assert (values.per_device_train_batch_size, values.gradient_accumulation_steps) == batch
        by = f"groups of {values.num_generations} and {processes} processes"
        expected = []
        if made != wanted:
            expected = [f"batch: {made} completions a step, the nearest to {wanted} that {by} divide"]
        elif name == "tiny_cpu" and processes == 2:
            expected = [f"batch: per_device_train_batch_size is 32, as 64 x {by} do not divide 64"]
        assert lines == expected

    def test_that_is_given_smaller_a_device_is_accumulated_more(self):
        values = settings("--per_device_train_batch_size", 4, config=CONFIGS / "qwen2.5-1.5b.yaml")
        assert values.gradient_accumulation_steps == 64

    def test_accumulation_that_is_given_wins_by_flag_and_by_yaml(self, own):
        assert settings("--gradient_accumulation_steps", 3).gradient_accumulation_steps == 3
        assert settings(config=own("gradient_accumulation_steps: 3")).gradient_accumulation_steps == 3

    def test_without_either_is_trls(self, own):
        assert settings(config=own("completions_per_step: null")).gradient_accumulation_steps == 1

    @pytest.mark.parametrize("flags", [("--per_device_train_batch_size", 16), ("--completions_per_step", 256)])
    def test_keeps_the_optimizer_steps_of_a_generation_if_it_is_accumulated(self, flags):
        values = settings(*flags)
        assert (values.gradient_accumulation_steps, values.steps_per_generation) == (4, 16)
        assert schedule.span(values) == 4

    def test_fits_a_generation_of_a_size_that_is_given(self, own):
        path = own("completions_per_step: 32\nsteps_per_generation: null\ngeneration_batch_size: 192")
        values = settings(config=path, processes=2)
        assert 192 % (2 * values.per_device_train_batch_size) == 0
        assert 2 * values.per_device_train_batch_size * values.gradient_accumulation_steps == 32

    @pytest.mark.parametrize(
        ("rows", "processes", "group", "size"),
        [(1024, 8, 1, 128), (1024, 1, 1, 1024), (2000, 1, 1, 1024), (1000, 3, 4, 332), (3, 4, 1, 1024)],
        ids=["eight cards", "as the recipe says", "more rows", "whole groups", "too few rows"],
    )
    def test_of_an_evaluation_is_what_the_rows_fill(self, rows, processes, group, size):
        values = settings("--num_generations_eval", group, config=CONFIGS / "qwen2.5-1.5b.yaml")
        lines = recipe.fit_evaluation(values, rows, processes)
        assert values.per_device_eval_batch_size == size
        assert lines == (
            []
            if size == 1024
            else [f"evaluation: per_device_eval_batch_size is {size}, as {rows:,} held-out rows fill no more"]
        )
