"""Each early check, with the line it prints; no weights are loaded.   bash tests/run.sh tests/test_checks.py"""

import importlib.util
import os
import shutil
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import parser, words
from filelock import FileLock
from test_machine import TINY, pretend_card, pretend_vllm
from transformers.integrations import integration_utils

from r1zero import ROOT
from r1zero.grading import sandbox
from r1zero.preflight import check as checks
from r1zero.preflight import inputs, machine
from r1zero.preflight import model as model_checks
from r1zero.report import run_folder
from r1zero.training import checkpoints, reward_functions

PROGRAM = "```python\nprint(int(input()) * 2)\n```"
OWN_REWARD = """
def short_reward(completions, limit, log_extra=None, log_metric=None, **columns):
    log_extra("answer", [completion[:5] for completion in completions])
    log_metric("length", 3.0)
    return [float(len(completion) < most) for completion, most in zip(completions, limit)]

def fussy_reward(completions, **columns):
    return [float(completion[0] == "a") for completion in completions]

def forgetful_reward(completions, **columns):
    [1.0 for completion in completions]

def scarce_reward(completions, **columns):
    return [1.0]

def demanding_reward(completions, solution, **columns):
    return [1.0 for completion in completions]
"""


@pytest.fixture
def check(tmp_path, tiny_model, tiny_data, monkeypatch):
    """Checks the tiny recipe on the tests' own model and data, with more flags; returns what is trained with."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, config=TINY):
        own = {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": tmp_path / "out"}
        return checks.check(parser(), ["--config", str(config), *words(own), *map(str, flags)])

    return run


@pytest.fixture
def error(check):
    """The one line that stops a run with these flags."""

    def run(*flags, **options):
        with pytest.raises(SystemExit) as stopped:
            check(*flags, **options)
        lines = str(stopped.value).splitlines()
        assert len(lines) == 2, lines
        return lines[1]

    return run


@pytest.fixture
def own_data(tmp_path):
    """A folder with a user's own problems and, beside them, own reward functions in mine.py."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN_REWARD)
    for split in ("train", "test"):
        table = pa.table({"prompt": [f"Say little of {i}: " for i in range(300)], "limit": [3] * 300})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def test_the_recipe_itself_passes_and_flags_override_it(check):
    script_args, training_args, model_args, functions = check("--learning_rate", "1e-5", "--lora_r", 4)
    assert training_args.learning_rate == 1e-5 and training_args.num_generations == 16
    assert model_args.lora_r == 4 and script_args.prepare == "-m r1zero.tiny_model"
    assert [function.__name__ for function in functions] == ["countdown_reward"]


@pytest.mark.parametrize(
    ("flags", "found", "wanted"),
    [
        pytest.param(
            ("--per_device_train_batch_size", 6, "--steps_per_generation", 1, "--num_generations", 4),
            "6 completions",
            "set --per_device_train_batch_size to 4 or 8, or --num_generations to 2 or 3",
            id="a batch of 6 with 4 generations",
        ),
        pytest.param(
            ("--per_device_train_batch_size", 3, "--steps_per_generation", 1, "--num_generations", 8),
            "3 completions",
            "set --per_device_train_batch_size to 8, or --num_generations to 3",
            id="a batch smaller than a group",
        ),
        pytest.param(
            ("--save_steps", 42), "save_steps 42", "set --save_steps to 40 or 44", id="a save inside a batch"
        ),
        pytest.param(("--learning_rte", "1"), "learning_rte:", "did you mean learning_rate?", id="a misspelt flag"),
        pytest.param(("--learning_rat", "1"), "learning_rat:", "did you mean learning_rate?", id="a cut flag"),
        pytest.param(("beta",), "beta:", "did you mean beta?", id="a word that is no flag"),
        pytest.param(("--zzz", "1"), "zzz:", "see --help", id="a flag like no other"),
        pytest.param(
            ("--data_dir", "nowhere"),
            "missing data: nowhere/train.parquet and nowhere/test.parquet",
            "--data_dir",
            id="no data",
        ),
        pytest.param(
            ("--model_name_or_path", "no/where"), "model no/where", "hf download no/where", id="no such hub id"
        ),
        pytest.param(
            ("--model_name_or_path", "./where"), "./where is a folder that does not", "name another", id="no folder"
        ),
        pytest.param(
            ("--max_completion_length", 510), "exceed the model's context of 512", "at most 503", id="context"
        ),
        pytest.param(
            ("--per_device_eval_batch_size", 300),
            "256 rows",
            "--per_device_eval_batch_size to 256",
            id="evaluation batch",
        ),
        pytest.param(
            ("--resume_from_checkpoint", "true"), "no sound checkpoint", "auto, to start", id="nothing to resume"
        ),
        pytest.param(
            ("--resume_from_checkpoint", "gone"), "no such folder", "name an earlier", id="no such checkpoint"
        ),
        pytest.param(("--reward_funcs", "countdown"), "names countdown", "countdown_reward", id="no such reward"),
        pytest.param(("--reward_weights", 1, 2), "2 numbers", "one weight for each", id="too many weights"),
        pytest.param(
            ("--loss_type", "grpo", "--num_generations", 1, "--scale_rewards", "none"), "2", "", id="TRL's own"
        ),
    ],
)
def test_error_says_what_was_found_and_what_to_type(error, flags, found, wanted):
    line = error(*flags)
    assert found in line and wanted in line


def test_all_errors_are_listed_at_once(check):
    with pytest.raises(SystemExit) as stopped:
        check("--data_dir", "nowhere", "--model_name_or_path", "no/where", "--save_steps", 42)
    assert len(str(stopped.value).splitlines()) == 1 + 3


class TestTrackers:
    @pytest.fixture
    def errors(self):
        return lambda *names: checks.tracker_errors(types.SimpleNamespace(report_to=list(names)))

    def test_that_is_not_installed_is_named(self, error, monkeypatch):
        hide(monkeypatch, "wandb")
        assert "wandb, which is not installed or not set up: type pip install wandb" in error("--report_to", "wandb")

    def test_whose_package_has_another_name_is_found(self, errors, monkeypatch):
        """azure_ml is the module azureml; transformers leaves it out of its list where mlflow is there too."""
        monkeypatch.setattr(integration_utils, "is_azureml_available", lambda: True)
        for mlflow in (False, True):
            monkeypatch.setattr(integration_utils, "is_mlflow_available", lambda mlflow=mlflow: mlflow)
            assert errors("azure_ml") == []
        monkeypatch.setattr(integration_utils, "is_azureml_available", lambda: False)
        assert "type pip install azureml-core" in errors("azure_ml")[0]

    def test_that_nobody_knows_is_answered_with_the_known_ones(self, errors):
        (line,) = errors("yaml")  # a module, and no tracker
        assert "yaml" in line and "azure_ml" in line and "trackio, wandb" in line

    @pytest.mark.parametrize("given", [None, [], "none", "all", ["none"]])
    def test_of_which_none_is_named_are_no_error(self, given):
        assert checks.tracker_errors(types.SimpleNamespace(report_to=given)) == []


def hide(monkeypatch, package):
    """As if a package were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))


class TestContext:
    @pytest.fixture
    def vllm(self, monkeypatch):
        """A card, and a vLLM that TRL knows."""
        pretend_card(monkeypatch)
        pretend_vllm(monkeypatch)

    def test_of_vllm_that_is_too_short_is_refused(self, error, vllm):
        line = error("--use_vllm", "true", "--vllm_max_model_length", 128, "--max_completion_length", 120)
        assert "exceed vllm_max_model_length of 128: set --max_completion_length to at most 119" in line
        assert "or raise --vllm_max_model_length" in line

    def test_of_a_vllm_server_is_its_own(self, error, vllm):
        flags = ("--use_vllm", "true", "--vllm_mode", "server", "--vllm_max_model_length", 128)
        assert "exceed the model's context of 512" in error(*flags, "--max_completion_length", 510)


class TestData:
    def test_with_other_columns_is_refused(self, check, tmp_path):
        for split in ("train", "test"):
            pq.write_table(pa.table({"question": ["?"] * 300}), tmp_path / f"{split}.parquet")
        with pytest.raises(SystemExit, match="lacks prompt and nums and target: type python -m r1zero.tiny_model"):
            check("--data_dir", tmp_path)

    def test_cut_off_in_the_middle_is_refused(self, error, tmp_path, tiny_data):
        for split in ("train", "test"):
            whole = (tiny_data / f"{split}.parquet").read_bytes()
            (tmp_path / f"{split}.parquet").write_bytes(whole[: len(whole) // 2] if split == "test" else whole)
        assert "test.parquet is no readable parquet file" in error("--data_dir", tmp_path)

    def test_without_rows_is_refused(self, error, own_data):
        pq.write_table(pq.read_table(own_data / "train.parquet").slice(0, 0), own_data / "train.parquet")
        line = error("--data_dir", own_data, "--reward_funcs", "mine:short_reward")
        assert "own/train.parquet has no rows" in line

    def test_whose_held_out_part_has_more_columns_is_refused(self, error, tmp_path, tiny_data):
        for split in ("train", "test"):
            table = pq.read_table(tiny_data / f"{split}.parquet")
            if split == "test":
                table = table.append_column("hint", pa.array(["?"] * len(table)))
            pq.write_table(table, tmp_path / f"{split}.parquet")
        assert "test.parquet has the columns ['hint'], which" in error("--data_dir", tmp_path)

    def test_with_wrong_rows_in_both_files_has_a_line_for_each(self, check, tmp_path, tiny_data):
        for split in ("train", "test"):
            table = pq.read_table(tiny_data / f"{split}.parquet")
            table = table.set_column(0, "nums", pa.array([[], *table["nums"].to_pylist()[1:]], pa.list_(pa.int64())))
            pq.write_table(table, tmp_path / f"{split}.parquet")
        with pytest.raises(SystemExit) as stopped:
            check("--data_dir", tmp_path)
        _, *lines = str(stopped.value).splitlines()
        assert [line.split(", column nums: row 0 is []")[0][-13:] for line in lines] == [
            "train.parquet",
            "/test.parquet",
        ]

    def test_too_small_for_one_generation_is_refused(self, error):
        line = error("--per_device_train_batch_size", 8192)
        assert "train.parquet has 913 rows, less than the 2048 prompts of one generation, so that no step" in line

    def test_nothing_is_made_where_a_flag_points_elsewhere(self, error):
        assert "missing data: mine/train.parquet" in error("--data_dir", "mine")
        assert not Path("data").exists() and not Path("models").exists()

    def test_layers_that_lora_does_not_find_are_told(self, error, check):
        flags = ("--use_peft", "true", "--lora_dropout", 0, "--lora_target_modules")
        assert "lora_target_modules names nope, which no layer of the model is: it has ['down_proj'" in error(
            *flags, "q_proj", "nope"
        )
        check(*flags, "self_attn.q_proj", "v_proj")

    def test_attention_that_is_not_there_is_told(self, error):
        line = error("--attn_implementation", "flash_attention_9")
        assert "attn_implementation" in line and line.endswith("or leave out --attn_implementation")

    def test_longest_prompt_may_be_a_chat(self, tiny_model):
        chat = [{"role": "user", "content": "Using the numbers " * 40}]
        data = inputs.Data(rows=2, prompts=["short", chat])
        named = {
            "model_name_or_path": str(tiny_model),
            "model_revision": "main",
            "trust_remote_code": False,
            "attn_implementation": None,
        }
        model, errors = inputs.read_model(types.SimpleNamespace(**named), machine.Missing())
        assert errors == []
        assert "no chat template" in inputs.longest_prompt(data, model)[1][0]
        model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
        longest, errors = inputs.longest_prompt(data, model)
        assert errors == [] and longest == len(model.tokenizer("user:" + chat[0]["content"])["input_ids"])


class TestRewards:
    @pytest.fixture
    def error_of(self, error, own_data):
        """The one line that stops a run on the user's own data with these functions."""
        return lambda *names: error("--data_dir", own_data, "--reward_funcs", *names)

    @pytest.fixture
    def refused(self, check, long_model, data):
        """What stops a run on one of the project's tasks."""

        def run(task, *names):
            flags = ["--data_dir", data / task, "--model_name_or_path", long_model, "--per_device_eval_batch_size", 1]
            with pytest.raises(SystemExit) as stopped:
                check(*flags, "--reward_funcs", *names)
            return str(stopped.value)

        return run

    def test_whose_columns_the_data_lacks_are_named(self, refused):
        output = refused("multiply", "countdown_reward")
        assert "multiply/train.parquet has the columns ['product'" in output
        assert "and lacks nums and target: type python" in output

    def test_that_leave_rows_without_any_reward_are_told(self, refused):
        output = refused("mixture", "countdown_reward")
        assert "mixture/train.parquet, column target: row " in output and "is None (in a row of x_r1_750)" in output
        assert "wanted a value in target, or the name of a function for such rows in reward_funcs" in output

    def test_unknown_one_and_number_of_weights_are_named_together(self, check):
        with pytest.raises(SystemExit) as stopped:
            check("--reward_funcs", "countdown", "--reward_weights", 1, 2)
        output = str(stopped.value)
        assert "reward_funcs names countdown; rewards.py has countdown_reward, multiplication_reward" in output
        assert "reward_weights has 2 numbers and reward_funcs 1 names" in output

    @pytest.mark.parametrize("setting", [{"reward_funcs": "countdown_reward"}, {"reward_weights": 1.0}])
    def test_that_are_no_list_in_the_yaml_are_refused(self, error, tmp_path, setting):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | setting))
        (name, value) = next(iter(setting.items()))
        assert f"wanted a list: write {name}: [{value}]" in error(config=tmp_path / "x.yaml")

    @pytest.mark.parametrize("dry_run", [False, True])
    def test_of_a_user_work_with_the_users_own_columns(self, check, own_data, dry_run, capsys):
        flags = ("--data_dir", own_data, "--reward_funcs", "mine:short_reward")
        if dry_run:
            with pytest.raises(SystemExit) as ended:
                check(*flags, "--dry_run")
            assert ended.value.code == 0 and "an epoch of 300 problems" in capsys.readouterr().out
        else:
            (function,) = check(*flags)[3]
            assert function.__name__ == "short_reward"
            columns = {"limit": [3, 3]}
            assert reward_functions.call_as_trl(function, ["", ""], ["ab", "abc"], columns) == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            pytest.param("fussy_reward", "IndexError: string index out of range", id="raises whatever it likes"),
            pytest.param("forgetful_reward", "returned None, wanted a list", id="returns nothing"),
            pytest.param("scarce_reward", "1 rewards for 64 completions", id="returns too few"),
            pytest.param("demanding_reward", "'solution'", id="wants a column that is not there"),
        ],
    )
    def test_of_a_user_that_cannot_work_are_named_with_the_error_and_the_file(self, check, own_data, name, reason):
        with pytest.raises(SystemExit) as stopped:
            check("--data_dir", own_data, "--reward_funcs", f"mine:{name}")
        _, *lines = str(stopped.value).splitlines()
        assert len(lines) == 2, "one for each file"
        for line, split in zip(lines, ("train", "test"), strict=True):
            assert f"own/{split}.parquet has the columns ['prompt', 'limit']" in line
            assert name in line and reason in line

    def test_of_a_user_that_do_not_exist_are_named(self, error_of):
        assert "mine:gone" in error_of("mine:gone") and "short_reward" in error_of("mine:gone")
        assert "nobody" in error_of("nobody:short_reward")

    def test_see_chats_as_trl_gives_them(self):
        seen = []

        def reward(prompts, completions, **columns):
            seen.extend(completions)
            return [1.0] * len(completions)

        chat = [{"role": "user", "content": "?"}]
        file = inputs.File(Path("train.parquet"), 2, {"prompt": ["?", chat]})
        assert checks.reward_errors([reward], inputs.Data(2, [], [file])) == []
        assert seen == ["", [{"role": "assistant", "content": ""}]]


class TestSandbox:
    """code_reward's sandbox where bubblewrap is not installed."""

    @pytest.fixture
    def without_bubblewrap(self, monkeypatch, tmp_path):
        sandbox.why_unavailable.cache_clear()
        monkeypatch.setenv("PATH", str(tmp_path))
        yield
        sandbox.why_unavailable.cache_clear()

    @pytest.fixture
    def flags(self, data, long_model):
        own = {"data_dir": data / "eurus", "model_name_or_path": long_model, "per_device_eval_batch_size": 1}
        own |= {"num_generations": 256}  # of the one prompt of a generation
        return [*words(own), "--reward_funcs", "boxed_math_reward", "code_reward"]

    def test_missing_is_one_line_that_says_what_to_type(self, error, without_bubblewrap, flags):
        line = error(*flags)
        assert "code_reward: bubblewrap (bwrap) is not installed: apt-get install bubblewrap" in line
        assert "--allow_unsandboxed_code" in line

    def test_missing_and_allowed_is_no_error_and_the_functions_go_on_to_the_trainer(
        self, check, without_bubblewrap, flags
    ):
        *_, functions = check(*flags, "--allow_unsandboxed_code")
        assert [function.__name__ for function in functions] == ["boxed_math_reward", "code_reward"]
        tests = '{"inputs": ["2\\n", "3\\n"], "outputs": ["4\\n", "5\\n"]}'
        assert functions[1](completions=[PROGRAM], tests=[tests]) == [0.5]


class TestOutput:
    def test_folder_that_cannot_be_written_is_named(self, error, tmp_path):
        (tmp_path / "file").write_text("")
        line = error("--output_dir", tmp_path / "file" / "run")
        assert "cannot be written to" in line and "--output_dir" in line

    def test_second_run_in_the_same_folder_is_refused(self, check, error, tmp_path):
        with FileLock(tmp_path / ".out.lock"):
            assert "another run is writing to" in error() and "--output_dir" in error()
            with pytest.raises(SystemExit) as ended:
                check("--dry_run")
            assert ended.value.code == 0, "which writes nothing"
        check()

    def test_folder_without_locks_is_said_to_be_the_users_to_watch(self, check, monkeypatch, capsys):
        def claim(output_dir):
            raise OSError(f"{output_dir} cannot be locked (no flock)")

        monkeypatch.setattr(run_folder, "claim", claim)
        check()
        assert "cannot be locked (no flock): see to it yourself" in capsys.readouterr().out

    @pytest.mark.parametrize("inside", ["", "/checkpoint-4"])
    def test_model_or_data_in_it_would_be_written_over_or_moved(self, error, tiny_model, tiny_data, tmp_path, inside):
        for flag, folder in (("--model_name_or_path", tiny_model), ("--data_dir", tiny_data)):
            own = shutil.copytree(folder, tmp_path / f"out{flag}{inside}")
            line = error(flag, own, "--output_dir", tmp_path / f"out{flag}")
            assert f"{flag[2:]} {own} lies in output_dir " in line and "name another --output_dir" in line

    def test_folder_of_the_command_and_a_link_to_nothing_are_refused(self, error, tmp_path):
        assert "output_dir . is the folder of this command" in error("--output_dir", ".")
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        assert "is a link to " in error("--output_dir", tmp_path / "link")

    def test_full_disk_is_noticed_before_training(self, error, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
        assert "has 1 MB free and 3 checkpoints with the final model take 19 MB" in error()
        assert "has 1 MB free and 96 checkpoints" in error(
            "--save_total_limit", 0, "--save_steps", 4, "--max_steps", 384
        )

    def test_checkpoints_of_a_resumed_run_need_no_more_room(self, error, monkeypatch, tmp_path):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
        for step in (4, 8):
            (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
        found = checkpoints.Choice(tmp_path / "out" / "checkpoint-8")
        monkeypatch.setattr(checkpoints, "choose", lambda values, strategy: found)
        assert "and 1 checkpoint with the final model take 8 MB" in error("--resume_from_checkpoint", "true")


def test_resumed_run_is_given_the_checkpoint_or_none(check, monkeypatch, tmp_path):
    found = checkpoints.Choice(tmp_path / "checkpoint-4")
    monkeypatch.setattr(checkpoints, "choose", lambda values, strategy: found)
    with pytest.raises(SystemExit, match="checkpoint-4 does not exist: let all machines share the folder"):
        check("--resume_from_checkpoint", "true")
    found.checkpoint.mkdir()
    assert check("--resume_from_checkpoint", "true")[1].resume_from_checkpoint == str(found.checkpoint)
    found.checkpoint = None
    assert check("--resume_from_checkpoint", "auto")[1].resume_from_checkpoint is None


class TestDryRun:
    TINY_PLAN = (
        "steps: 256 completions of 16 prompts a generation, 4 optimizer steps on them; 228 steps an epoch of 913 "
        "problems, 96 steps and 6,144 completions in this run\n"
        "model: 473,216 parameters, all trained, weights float32, arithmetic float32, attention sdpa\n"
        "machine: one process; transformers' own generation\n"
        "disk: 0.02 GB for 3 checkpoints at once and the final model\n"
    )

    @pytest.fixture
    def fresh_clone(self, tmp_path, monkeypatch, capsys):
        """Runs --dry_run of a recipe in an empty folder without the hub; returns what it prints."""
        monkeypatch.chdir(tmp_path)
        for source in (model_checks.AutoConfig, model_checks.AutoTokenizer):
            monkeypatch.setattr(source, "from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))

        def run(config):
            with pytest.raises(SystemExit) as ended:
                checks.check(parser(), ["--config", str(config), "--dry_run"])
            assert ended.value.code == 0
            return capsys.readouterr().out

        return run

    def test_says_the_plan_and_makes_nothing(self, check, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            check("--dry_run")
        assert ended.value.code == 0 and capsys.readouterr().out == self.TINY_PLAN
        assert os.listdir(tmp_path) == []

    def test_of_a_fresh_clone_shows_the_plan_of_what_would_be_made(self, fresh_clone, tmp_path):
        said, _, plan = fresh_clone(TINY).partition("\n")
        assert said.startswith("models/tiny and data/countdown_tiny are not there yet: a run would make them with")
        assert plan == self.TINY_PLAN and os.listdir(tmp_path) == []

    def test_of_a_set_that_is_not_read_yet_leaves_its_rows_open(self, tmp_path, tiny_model, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        settings = {"prepare": "preprocess.py gsm8k", "data_dir": "data/gsm8k", "reward_funcs": ["boxed_math_reward"]}
        settings |= {"model_name_or_path": str(tiny_model), "max_steps": -1, "num_train_epochs": 2}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | settings))
        with pytest.raises(SystemExit) as ended:
            checks.check(parser(), ["--config", "x.yaml", "--dry_run"])
        said, steps, *_ = capsys.readouterr().out.splitlines()
        assert ended.value.code == 0
        assert said == "data/gsm8k is not there yet: a run would make it with python preprocess.py gsm8k"
        assert steps.endswith("; the number of problems is not known yet, nor is that of the steps in 2 epochs")

    def test_fails_where_a_run_would(self, error):
        assert "save_steps 42" in error("--save_steps", 42, "--dry_run")


def test_recipes_of_qwen_have_their_plan(check, monkeypatch, capsys, long_model, data):
    """With the tests' model in its place, which the memory is then of."""
    pretend_card(monkeypatch, 80)
    pretend_vllm(monkeypatch)
    monkeypatch.setattr(checks, "parse", lambda parser, recipe: (None, None, None))  # which takes the card
    flags = {"model_name_or_path": long_model, "data_dir": data / "countdown", "per_device_eval_batch_size": 4}
    flags["num_generations"] = 16
    with pytest.raises(SystemExit) as ended:
        check(*words(flags), "--dry_run", config=ROOT / "configs" / "qwen2.5-1.5b.yaml")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("steps: 256 completions of 16 prompts a generation, 1 optimizer step on them; ")
    assert lines[2] == "machine: one process; vLLM in the same processes, tensor parallel 1"
    assert lines[3].startswith("memory a card, estimate in GiB: weights 0.0, gradients 0.0, optimizer 0.0, context")
    assert ", vLLM asleep 1.0, vLLM 52.0; at most " in lines[3] and lines[3].endswith(" in generation, of 80.0")
