"""Settings that cannot be meant are told in one line each.   bash tests/run.sh tests/test_setting_checks.py"""

import doctest
import inspect
from argparse import Namespace

import pytest
import yaml
from conftest import ROOT, parser
from trl.trainer import grpo_trainer

from r1zero.preflight import check as checks
from r1zero.preflight import settings as setting_checks

TINY = yaml.safe_load((ROOT / "configs" / "tiny_cpu.yaml").read_text())


@pytest.fixture
def errors(tmp_path, monkeypatch):
    """The lines that a YAML (its text, after the embedded default's lines) and flags are stopped with."""
    monkeypatch.chdir(tmp_path)

    def run(text="", *flags):
        settings = {name: value for name, value in TINY.items() if f"{name}:" not in text}
        (tmp_path / "recipe.yaml").write_text(f"{yaml.safe_dump(settings)}{text}\n")
        with pytest.raises(SystemExit) as stopped:
            checks.check(parser(), ["--config", "recipe.yaml", *flags])
        first, *lines = str(stopped.value.code).splitlines()
        assert first.startswith("train_countdown.py: ") and list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]
        return lines

    return run


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_steps: [96]", "max_steps is [96], wanted a whole number"),
        ("max_steps: 9.5", "max_steps is 9.5, wanted a whole number"),
        ("num_train_epochs: null", "num_train_epochs is None, wanted a number"),
        ("run_name: 5", "run_name is 5, wanted a text"),
        ("use_cpu: 1", "use_cpu is 1, wanted true or false"),
        ("save_strategy: no", "save_strategy is False, wanted a text, in quotes, as YAML reads no"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint is True, wanted a text, in quotes, as YAML"),
        ("reward_funcs: countdown_reward", "wanted a list: write reward_funcs: [countdown_reward]"),
        ("reward_weights: 1.0", "reward_weights is 1.0, wanted a list: write reward_weights: [1.0]"),
        ("learning_rate: fast", "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
    ],
)
def test_value_of_another_type_in_the_yaml(errors, text, line):
    (found,) = errors(text)
    assert line in found


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--max_steps abc", "invalid int value: 'abc'"),
        ("--eval_strategy sometimes", "invalid choice: 'sometimes' (choose from 'no', 'steps', 'epoch')"),
        ("--temperature 0", "temperature is 0.0, wanted above 0"),
        ("--temperature nan", "temperature is nan, wanted a finite number"),
        ("--reward_weights inf", "reward_weights is [inf], wanted a finite number"),
        ("--top_p 1.5", "top_p is 1.5, wanted above 0 and at most 1"),
        ("--num_generations 1 --dry_run", "num_generations is 1, wanted at least 2"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps is 0, wanted at least 1"),
        ("--save_steps 0", "save_steps is 0.0, wanted above 0"),
        ("--seed 4294967296", "seed is 4294967296, wanted at least 0 and at most 4294967295"),
        ("--max_steps 0", "max_steps is 0, wanted at least 1, or -1 for those of num_train_epochs"),
        ("--max_completion_length none", "max_completion_length is null, wanted a number of tokens"),
        ("--loss_type ppo", "loss_type is ppo, wanted grpo, bnpo, dr_grpo, dapo, cispo, luspo, sapo or vespo"),
        ("--data_dir g[1]", "data_dir is g[1], and datasets takes * ? [ ] for patterns: rename the folder"),
        ("--output_dir ~/runs", "output_dir is ~/runs, where a shell alone knows ~: write the whole path"),
    ],
)
def test_value_that_cannot_be_meant(errors, flags, line):
    (found,) = errors("", *flags.split())
    assert line in found


def test_all_are_told_at_once(errors):
    assert len(errors("", "--learning_rate", "-1", "--beta", "-1", "--seed", "-1")) == 3


def test_key_that_stands_twice_is_told_and_not_the_last_taken(errors):
    lines = errors("beta: 0.1\nbeta: 0.2")
    assert "beta stands there twice" in lines[0]


@pytest.mark.parametrize("text", ["- 1", "", "just words"])
def test_yaml_that_is_no_mapping(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(
        SystemExit, match="is not a readable YAML mapping:\n  - found .* wanted lines as max_steps: 96"
    ):
        checks.check(parser(), ["--config", str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: 1e-6",
        "learning_rate: 1",
        "eval_steps: null",
        "save_steps: 0.25",
        "lora_target_modules: all-linear",
    ],
)
def test_what_transformers_takes_is_left_alone(text):
    settings = yaml.safe_load(text)
    assert setting_checks.type_errors(settings, parser().dataclass_types) == []
    values = {"max_steps": -1, "max_completion_length": 8} | settings
    assert setting_checks.value_errors(Namespace(**values | {"learning_rate": 1e-6})) == []


def test_examples_of_the_module_are_right():
    assert doctest.testmod(setting_checks) == (0, 1)


def test_limits_and_choices_are_of_settings_and_texts_that_trl_knows():
    known = vars(parser().parse_known_args([])[0])
    named = {*setting_checks.AT_LEAST, *setting_checks.ABOVE_0, *setting_checks.AT_MOST, *setting_checks.CHOICES}
    assert named <= set(known)
    source = inspect.getsource(grpo_trainer)
    for name, choices in setting_checks.CHOICES.items():
        assert known[name] in choices
        assert [choice for choice in choices if f'"{choice}"' not in source] == []
