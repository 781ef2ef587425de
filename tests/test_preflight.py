"""Each fault that stops a run before a model is loaded, with its line.   bash tests/run.sh tests/test_preflight.py"""

import os
import re
import shutil
import sys
import sysconfig
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, parser, settings, words
from filelock import FileLock
from test_machine import TINY, pretend_card
from transformers import AutoTokenizer

from r1zero.grading import sandbox
from r1zero.preflight import check as checks
from r1zero.preflight import data as of_data
from r1zero.preflight import hardware
from r1zero.preflight import model as of_models
from r1zero.preflight.machine import Machine, Strategy, read_strategy
from r1zero.report import run_folder
from r1zero.training import checkpoints, reward_functions

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "tiny_model.yaml")
GPU_RECIPE = ROOT / "configs" / "qwen2.5-1.5b.yaml"
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
def errors(check):
    """The lines that stop a run with these flags."""

    def run(*flags, **options):
        with pytest.raises(SystemExit) as stopped:
            check(*flags, **options)
        return str(stopped.value).splitlines()[1:]

    return run


@pytest.fixture
def error(errors):
    """The one line that stops a run with these flags."""

    def run(*flags, **options):
        (line,) = errors(*flags, **options)
        return line

    return run


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """What a dry run prints in an empty folder without the hub; returns its lines."""
    monkeypatch.chdir(tmp_path)
    pretend_card(monkeypatch, gib=None)

    def run(*flags):
        with pytest.raises(SystemExit) as ended:
            checks.check(parser(), ["--dry_run", *map(str, flags)])
        assert not ended.value.code, ended.value.code
        return capsys.readouterr().out.splitlines()

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
    assert (script_args.completions_per_step, training_args.gradient_accumulation_steps) == (64, 1)
    assert model_args.lora_r == 4 and script_args.prepare == "-m r1zero.tiny_model"
    assert [function.__name__ for function in functions] == ["countdown_reward"]


@pytest.mark.parametrize(
    ("flags", "found", "wanted"),
    [
        ("--per_device_train_batch_size 6 --gradient_accumulation_steps 1 --steps_per_generation 1", "6 completions",
         "set --per_device_train_batch_size to a multiple of it"),
        ("--save_steps 42", "save_steps 42 is no multiple of the 4 optimizer steps", "set --save_steps to 40"),
        ("--data_dir nowhere", "missing data: nowhere/train.parquet and nowhere/test.parquet", "--data_dir"),
        ("--model_name_or_path no/where", "model no/where", "hf download no/where"),
        ("--model_name_or_path ./where", "./where is a folder that does not", "name another"),
        ("--max_completion_length 510", "exceed the model's context of 512", "at most 503"),
        ("--max_completion_length 600 --attn_implementation eager", "exceed", "at most 503"),
        ("--attn_implementation flash_attention_9", "attn_implementation", "or leave out --attn_implementation"),
        ("--num_generations_eval 300 --per_device_eval_batch_size 300", "256 rows, fewer than a group", "add rows"),
        ("--completions_per_step 16000 --steps_per_generation 250", "913 rows, fewer than the 1000 prompts", "lower"),
        ("--resume_from_checkpoint true", "no sound checkpoint", "auto, to start"),
        ("--resume_from_checkpoint gone", "no such folder", "name an earlier"),
        ("--reward_funcs countdown", "names countdown; rewards.py has countdown_reward", ""),
        ("--reward_funcs nobody:short_reward", "nobody", ""),
        ("--reward_weights 1 2", "reward_weights has 2 numbers and reward_funcs 1 names", "one weight for each"),
        ("--reward_funcs multiplication_reward", "", "lacks product: type python -m r1zero.tiny_model"),
        ("--lr_scheduler_type cosine --generation_batch_size 64", "can not be both configured", ""),
        ("--use_peft true", "lora_dropout is 0.05", "set --lora_dropout 0"),
        ("--use_peft true --lora_dropout 0 --lora_target_modules q_proj nope", "names nope, which no", "['down_"),
        ("--output_dir .", "output_dir . is the folder of this command", "--output_dir"),
        ("--use_cpu false --bf16 true", "bf16 is on and there is no GPU", "pass --use_cpu --bf16 false"),
        ("--fp16 true", "fp16 is on and there is no GPU", "--fp16 false"),
    ],
)  # fmt: skip
def test_error_says_what_was_found_and_what_to_type(errors, monkeypatch, flags, found, wanted):
    pretend_card(monkeypatch, gib=None)
    line = errors(*flags.split())[0]
    assert found in line and wanted in line


def test_all_errors_are_listed_at_once(errors):
    assert len(errors("--data_dir", "nowhere", "--model_name_or_path", "no/where", "--save_steps", 42)) == 3


def test_layers_are_found_by_the_end_of_their_names(check):
    check("--use_peft", "true", "--lora_dropout", 0, "--lora_target_modules", "self_attn.q_proj", "v_proj")


class TestData:
    def test_cut_off_in_the_middle_is_refused(self, error, tmp_path, tiny_data):
        for split in ("train", "test"):
            whole = (tiny_data / f"{split}.parquet").read_bytes()
            (tmp_path / f"{split}.parquet").write_bytes(whole[: len(whole) // 2] if split == "test" else whole)
        assert "test.parquet is no readable parquet file" in error("--data_dir", tmp_path)

    def test_whose_held_out_part_has_more_columns_is_refused(self, error, tmp_path, tiny_data):
        for split in ("train", "test"):
            table = pq.read_table(tiny_data / f"{split}.parquet")
            if split == "test":
                table = table.append_column("hint", pa.array(["?"] * len(table)))
            pq.write_table(table, tmp_path / f"{split}.parquet")
        assert "test.parquet has the columns ['hint'], which" in error("--data_dir", tmp_path)

    def test_with_wrong_rows_in_both_files_has_a_line_for_each(self, errors, tmp_path, tiny_data):
        for split in ("train", "test"):
            table = pq.read_table(tiny_data / f"{split}.parquet")
            table = table.set_column(0, "nums", pa.array([[], *table["nums"].to_pylist()[1:]], pa.list_(pa.int64())))
            pq.write_table(table, tmp_path / f"{split}.parquet")
        lines = errors("--data_dir", tmp_path)
        assert [line.split("/")[-1].split(",")[0] for line in lines] == ["train.parquet", "test.parquet"]

    def test_smaller_than_the_evaluation_batch_lowers_it(self, check, capsys):
        assert check("--per_device_eval_batch_size", 300)[1].per_device_eval_batch_size == 256
        said = "evaluation: per_device_eval_batch_size is 256, as 256 held-out rows fill no more\n"
        assert said in capsys.readouterr().out

    def test_of_a_mixture_wants_a_function_for_every_row(self, errors, long_model, data):
        flags = ("--data_dir", data / "mixture", "--model_name_or_path", long_model)
        line = errors(*flags, "--reward_funcs", "countdown_reward")[0]
        assert "mixture/train.parquet, column target: row " in line and "is None (in a row of x_r1_750)" in line
        assert "wanted a value in target, or the name of a function for such rows in reward_funcs" in line


def with_special_answer_tags(folder, model):
    """A copy of a model whose tokenizer has <answer> and </answer> as special tokens, which decoding leaves out."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<answer>", "</answer>"]})
    tokenizer.save_pretrained(folder)
    return folder


def written(folder, **columns):
    """A folder with the same rows in train and test."""
    folder.mkdir()
    rows = len(next(iter(columns.values())))
    for split in ("train", "test"):
        pq.write_table(pa.table({"prompt": ["Solve: "] * rows, **columns}), folder / f"{split}.parquet")
    return folder


class TestRightAnswers:
    """A right answer of each of the first rows must earn all, through the model's tokenizer and the reward."""

    def test_answer_tags_that_the_tokenizer_leaves_out_are_found(self, errors, tmp_path, tiny_model):
        model = with_special_answer_tags(tmp_path / "special", tiny_model)
        line = errors("--model_name_or_path", model)[0]
        assert re.search(
            r"train.parquet, row 0: the right answer is '<answer>\S+</answer>', of which the tokeniz", line
        )
        assert line.endswith("gives it 0.0, wanted 1.0: name a model whose tokenizer keeps it, or mend the row")

    @pytest.mark.parametrize(
        ("reward", "columns", "said"),
        [
            pytest.param(
                "countdown_reward",
                {"nums": [[1, 2], [6, 7, 8, 9]], "target": [3, 9999]},
                r"ValueError: row 1: 9999 cannot be reached with \[6, 7, 8, 9\]",
                id="a target out of reach",
            ),
            pytest.param(
                "boxed_math_reward",
                {"solution": ["7", "3 + 6 = 9 eggs.\n#### 9"]},
                r"ValueError: row 1: a sentence, and the answer alone, or in a .boxed\{\}, is wanted",
                id="GSM8K's answer as it comes",
            ),
            pytest.param(
                "boxed_math_reward", {"solution": ["So the answer is: 180."]}, "row 0: a sentence", id="a sentence"
            ),
        ],
    )
    def test_rows_without_one_are_named(self, errors, tmp_path, reward, columns, said):
        lines = errors("--data_dir", written(tmp_path / "rows", **columns), "--reward_funcs", reward)
        assert any(re.search(said, line) for line in lines), lines

    def test_row_that_no_function_scores_is_named(self, errors, tmp_path):
        columns = {"nums": [[1, 2]] * 300, "target": [3] * 300, "word": ["a", None] * 150}
        (tmp_path / "mine.py").write_text("def mine(completions, word, **_):\n    return [w and 1.0 for w in word]\n")
        flags = ("--data_dir", written(tmp_path / "rows", **columns), "--reward_funcs", f"{tmp_path}/mine.py:mine")
        line = errors(*flags)[0]
        assert (
            "32 of the first 64 rows" in line and "get no reward from any of reward_funcs (row 1 is of anoth" in line
        )

    @pytest.mark.parametrize(("worth", "passes"), [("1.0", True), ("None", False)])
    def test_a_users_function_may_say_its_own(self, check, errors, tmp_path, worth, passes):
        text = f"def mine(completions, **_):\n    return [{worth} if text == 'yes' else 0.0 for text in completions]\n"
        (tmp_path / "mine.py").write_text(f"{text}mine.right_answer = lambda row: 'yes' if row['word'] else 'no'\n")
        flags = (
            "--data_dir",
            written(tmp_path / "rows", word=["a"] * 300),
            "--reward_funcs",
            f"{tmp_path}/mine.py:mine",
        )
        if passes:
            assert check(*flags)[3][0].__name__ == "mine"
        else:
            assert "row 0: the right answer is 'yes', and mine gives it None" in errors(*flags)[0]


class TestRewards:
    @pytest.mark.parametrize("dry_run", [False, True])
    def test_of_a_user_work_with_the_users_own_columns(self, check, own_data, dry_run, capsys):
        flags = ("--data_dir", own_data, "--reward_funcs", "mine:short_reward")
        if dry_run:
            with pytest.raises(SystemExit) as ended:
                check(*flags, "--dry_run")
            assert ended.value.code == 0 and "an epoch of 300 problems" in capsys.readouterr().out
            return
        (function,) = check(*flags)[3]
        assert function.__name__ == "short_reward"
        assert reward_functions.score(function, ["", ""], ["ab", "abc"], {"limit": [3, 3]})[0] == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            pytest.param("fussy_reward", "IndexError: string index out of range", id="raises whatever it likes"),
            pytest.param("forgetful_reward", "returned None, wanted a list", id="returns nothing"),
            pytest.param("scarce_reward", "1 rewards for 64 completions", id="returns too few"),
            pytest.param("demanding_reward", "'solution'", id="wants a column that is not there"),
        ],
    )
    def test_of_a_user_that_cannot_work_are_named_with_the_error_and_the_file(self, errors, own_data, name, reason):
        lines = errors("--data_dir", own_data, "--reward_funcs", f"mine:{name}")
        for line, split in zip(lines, ("train", "test"), strict=True):
            assert f"own/{split}.parquet has the columns ['prompt', 'limit']" in line
            assert name in line and reason in line

    def test_of_a_user_that_do_not_exist_are_named_beside_those_that_do(self, error, own_data):
        line = error("--data_dir", own_data, "--reward_funcs", "mine:gone")
        assert "mine:gone" in line and "short_reward" in line

    def test_see_chats_as_trl_gives_them(self):
        seen = []

        def reward(prompts, completions, **columns):
            seen.extend(completions)
            return [1.0] * len(completions)

        file = of_data.File(Path("train.parquet"), 2, first={"prompt": [[{"role": "user", "content": "?"}]] * 2})
        assert checks.reward_errors([reward], [file], None) == []
        assert seen == [[{"role": "assistant", "content": ""}]] * 2

    def test_of_code_without_a_sandbox_are_refused_unless_that_is_allowed(
        self, check, error, data, long_model, monkeypatch, tmp_path
    ):
        sandbox.why_unavailable.cache_clear()
        monkeypatch.setenv("PATH", str(tmp_path))
        flags = {"data_dir": data / "eurus", "model_name_or_path": long_model, "num_generations": 256}
        flags = [*words(flags), "--reward_funcs", "boxed_math_reward", "code_reward"]
        line = error(*flags)
        assert "bubblewrap (bwrap) is not installed: apt-get install bubblewrap" in line
        assert "--allow_unsandboxed_code" in line
        *_, functions = check(*flags, "--allow_unsandboxed_code", "--eval_strategy", "no", "--eval_on_start", "false")
        assert [function.__name__ for function in functions] == ["boxed_math_reward", "code_reward"]
        tests = '{"inputs": ["2\\n", "3\\n"], "outputs": ["4\\n", "5\\n"]}'
        assert functions[1](completions=[PROGRAM], tests=[tests]) == [0.5]
        sandbox.why_unavailable.cache_clear()


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

    def test_link_to_nothing_is_refused(self, error, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        assert "is a link to " in error("--output_dir", tmp_path / "link")

    def test_full_disk_is_noticed_before_training_also_by_a_resumed_run(self, error, monkeypatch, tmp_path):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
        assert "has 1 MB free and 3 checkpoints with the final model take 19 MB" in error()
        flags = ("--save_total_limit", 0, "--save_steps", 4, "--max_steps", 384)
        assert "has 1 MB free and 96 checkpoints" in error(*flags)
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
        "steps: 256 completions of 16 prompts a generation, 4 optimizer steps on them; {rows}, 96 steps and 6,144 "
        "completions in this run\n"
        "model: 473,216 parameters, all trained, weights float32, arithmetic float32, attention sdpa\n"
        "machine: one process; transformers' own generation\n"
        "disk: 0.02 GB for 3 checkpoints at once and the final model\n"
    )

    def test_says_the_plan_and_makes_nothing(self, check, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            check("--dry_run")
        assert ended.value.code == 0
        assert capsys.readouterr().out == self.TINY_PLAN.format(rows="228 steps an epoch of 913 problems")
        assert os.listdir(tmp_path) == []

    def test_of_a_fresh_clone_says_what_would_be_made_and_the_plan_without_it(self, plan, tmp_path):
        _, said, *lines, last = plan()
        assert said == (
            "not there yet: models/tiny and data/countdown_tiny; a run makes them with python -m r1zero.tiny_model"
        )
        assert "\n".join(lines) + "\n" == self.TINY_PLAN.format(rows="the number of problems is not known yet")
        assert last == "models/tiny is not here: its shape is taken from r1zero/estimate"
        assert os.listdir(tmp_path) == []

    def test_of_an_own_script_that_makes_data_and_model_is_no_error(self, plan, tmp_path):
        text = TINY.read_text().replace("models/tiny", "models/mine").replace("-m r1zero.tiny_model", "make.py")
        (tmp_path / "x.yaml").write_text(text)
        said = "not there yet: models/mine and data/countdown_tiny; a run makes them with python make.py"
        assert plan("--config", "x.yaml") == [said]

    def test_takes_the_shape_of_a_model_that_cannot_be_had_and_a_run_does_not(self, plan, tiny_data):
        flags = ("--config", TINY, "--model_name_or_path", "Qwen/Qwen2.5-0.5B", "--save_strategy", "no")
        lines = plan(*flags, "--data_dir", tiny_data)
        assert lines[1].startswith("model: 494,032,768 parameters")
        with pytest.raises(SystemExit, match="type hf download Qwen/Qwen2.5-0.5B"):
            checks.check(parser(), [*map(str, flags), "--data_dir", str(tiny_data)])

    def test_fails_if_a_run_would(self, error):
        assert "save_steps 42" in error("--save_steps", 42, "--dry_run")


def line_of(lines, start):
    """The one line that begins so, None if there is none."""
    found = [line for line in lines if line.startswith(start)]
    assert len(found) <= 1
    return found[0] if found else None


def peaks(line):
    """The GiB of a plan's or a header's phases, as a dict."""
    found = re.findall(r"([\d.]+)(?: GiB)? in (?:the )?(update|evaluation|generation)", line)
    return {phase: float(size) for size, phase in found}


class TestAnotherMachine:
    """--dry_run --gpus N --gpu_memory G, in a folder without data or models, and without the hub."""

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_of_the_header_has_a_plan_with_the_memory_of_header_and_table(self, path, plan):
        of_header = re.search(r"# Hardware: (\w+) (?:T4 of )?([\d.]+) GB", path.read_text()) or [0, "no", 0]
        gpus, gigabytes = {"no": 0, "one": 1, "two": 2, "eight": 8}[of_header[1]], float(of_header[2])
        lines = plan("--config", path, "--gpus", gpus, "--gpu_memory", gigabytes)
        assert line_of(lines, "steps: ") and line_of(lines, "model: ") and line_of(lines, "machine: ")
        assert line_of(lines, "not checked, as only that machine can tell") and line_of(lines, "batch: ") is None
        if not gpus:
            return
        estimate = line_of(lines, "memory a card, estimate in GiB")
        assert f"of {gigabytes * 1e9 / 2**30:.1f}" in estimate
        (header,) = re.findall("# Hardware: .*", path.read_text())
        docs = (ROOT / "docs" / "recipes.md").read_text()
        row = re.search(rf"^\| `{re.escape(path.name)}` \| (.*?) \| `(\w+)\.yaml` \| (.*) \|$", docs, re.MULTILINE)
        sizes = dict(zip(("update", "evaluation", "generation"), map(float, row[3].split(" | ")), strict=True))
        assert peaks(header) == sizes == pytest.approx(peaks(estimate), abs=0.55)
        assert row[1] == f"{header.split()[2]} of {gigabytes:g} GB" and f"accelerate/{row[2]}.yaml" in lines[0]
        assert line_of(lines, "will not fit") is None

    def test_needs_no_recipe_and_says_what_does_not_fit(self, plan):
        lines = plan("--gpus", 8, "--gpu_memory", 80)
        assert lines[:2] == [
            "recipe: configs/qwen2.5-1.5b.yaml (for that machine); name another with --config",
            "planned for 8 GPUs of 80 GB, which are 74.5 GiB, started with configs/accelerate/zero2.yaml",
        ]
        assert line_of(lines, "steps: ").startswith("steps: 256 completions of 32 prompts"), "shared"
        lines = plan("--config", GPU_RECIPE, "--gpus", 1, "--gpu_memory", 24)
        assert "--per_device_train_batch_size" in line_of(lines, "will not fit in update: try ")

    def test_of_three_cards_has_the_nearest_completions(self, plan):
        flags = ("--config", ROOT / "configs" / "qwen2.5-7b.yaml", "--vllm_tensor_parallel_size", 1)
        lines = plan(*flags, "--gpus", 3, "--gpu_memory", 141)
        assert "batch: 264 completions a step, the nearest to 256" in line_of(lines, "batch: ")

    def test_uses_data_and_model_that_are_here(self, plan, data, long_model):
        lines = plan(
            *("--config", GPU_RECIPE, "--gpus", 1, "--gpu_memory", 80, "--data_dir", data / "countdown"),
            *("--model_name_or_path", long_model, "--num_generations", 16),
        )
        assert "steps an epoch of 16 problems" in line_of(lines, "steps: ")
        assert line_of(lines, "evaluation: per_device_eval_batch_size is 4, as 4 held-out rows")

    @pytest.mark.parametrize(
        ("flags", "line"),
        [
            pytest.param("--model_name_or_path a/b", "model a/b cannot be had", id="a model that is not known"),
            pytest.param("--max_completion_length 2048", "exceed vllm_max_model_length", id="too long"),
            pytest.param("--vllm_tensor_parallel_size 3", "does not divide the 8 processes", id="tensor parallel"),
            pytest.param("--reward_funcs no_reward", "reward_funcs names no_reward", id="a reward"),
            pytest.param("--gpus 0", "is for a GPU and that machine has none", id="no GPU"),
            pytest.param("--config nowhere.yaml", "nowhere.yaml", id="no such recipe"),
        ],
    )
    def test_says_what_cannot_run_there(self, plan, capsys, flags, line):
        argv = ["--config", str(ROOT / "configs" / "qwen2.5-7b.yaml"), "--gpus", "8", "--gpu_memory", "80"]
        with pytest.raises(SystemExit) as stopped:
            checks.check(parser(), ["--dry_run", *argv, *flags.split()])
        assert line in str(stopped.value)


class TestHardware:
    ONE = Strategy("one process", 1, {})

    def lines(self, *flags, machine=None, config=TINY):
        return hardware.errors(settings(*flags, config=config), machine or Machine(self.ONE))

    @pytest.fixture
    def card(self, monkeypatch):
        """A machine with one GPU, and all that compiles for it."""
        pretend_card(monkeypatch)
        monkeypatch.setattr(hardware, "triton_errors", lambda: [])
        return Machine(self.ONE, "the card", 80 * 2**30)

    def test_that_torch_does_not_see_is_the_only_line_of_a_recipe_for_a_gpu(self):
        machine = Machine(self.ONE, unseen="found a Tesla T4")
        assert self.lines(machine=machine, config=GPU_RECIPE) == ["found a Tesla T4"]
        assert self.lines(machine=machine) == []

    def test_without_bfloat16_is_told_how_to_do_without(self, card):
        card.bf16 = False
        flags = ("--use_cpu", "false", "--bf16", "true")
        assert self.lines(*flags, machine=card) == [
            "bf16 is on and the card has no bfloat16: pass --bf16 false --fp16 true"
        ]

    def test_of_several_gpus_in_one_process_is_refused(self, card, monkeypatch):
        """transformers would wrap the model in DataParallel and take so many times the batch."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        (line,) = self.lines("--use_cpu", "false", machine=card)
        assert "one process sees 8 GPUs" in line and "set CUDA_VISIBLE_DEVICES to one" in line

    @pytest.mark.parametrize("has_card", [True, False])
    def test_vllm_that_is_not_there_is_named(self, card, monkeypatch, has_card):
        monkeypatch.setattr(hardware, "is_vllm_available", lambda: False)
        (line,) = self.lines("--use_vllm", "true", machine=card if has_card else None)
        assert line.startswith("use_vllm is on and " + ("vllm is not installed: type" if has_card else "there is no"))

    @pytest.mark.parametrize(
        ("build", "flags", "line"),
        [
            ("0.30.0+cpu", (), ""),
            ("0.30.0", (), "use_vllm is on and there is no GPU: pass --use_vllm false"),
            ("0.30.0+cpu", ("--vllm_mode", "server"), "which gets its weights from a GPU: pass --vllm_mode colocate"),
        ],
    )
    def test_vllm_without_a_gpu_is_one_built_for_the_cpu(self, monkeypatch, build, flags, line):
        monkeypatch.setattr(hardware, "is_vllm_available", lambda: True)
        monkeypatch.setattr(hardware, "version", lambda package: build)
        assert "".join(self.lines("--use_vllm", "true", *flags)).endswith(line)
        assert bool(line) == bool(self.lines("--use_vllm", "true", *flags))

    @pytest.mark.parametrize(
        ("commands", "headers", "cc", "lacking"),
        [
            ((), False, None, "gcc python{}-dev"),
            (("gcc",), False, None, "python{}-dev"),
            (("gcc",), True, None, None),
            (("clang",), True, None, None),
            ((), True, None, "gcc"),
            ((), True, "/opt/cc", None),
        ],
    )
    def test_gpu_needs_what_triton_compiles_with(self, monkeypatch, tmp_path, commands, headers, cc, lacking):
        pretend_card(monkeypatch)
        monkeypatch.setenv("CC", cc or "")
        monkeypatch.setattr(shutil, "which", lambda name: name if name in commands else None)
        monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))
        if headers:
            (tmp_path / "Python.h").touch()
        lines = self.lines("--use_cpu", "false", machine=Machine(self.ONE, "the card", 80 * 2**30))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert lines == [] if lacking is None else lines[0].endswith(f"apt-get install {lacking.format(version)}")

    @pytest.mark.parametrize(
        ("flags", "variables", "line"),
        [
            ("--use_vllm true --vllm_tensor_parallel_size 3", {"WORLD_SIZE": "2"}, "to 1 or 2"),
            ("--use_vllm true --vllm_tensor_parallel_size 2", {}, "2 does not divide the 1 process: set"),
            ("--optim adamw_8bit", {"ACCELERATE_USE_FSDP": "true"}, "optim adamw_8bit does not work with FSDP"),
        ],
    )
    def test_strategy_that_does_not_go_with_a_setting_is_refused(self, flags, variables, line):
        (found,) = hardware.strategy_errors(settings(*flags.split()), read_strategy(variables))
        assert line in found

    def test_deepspeed_without_what_it_compiles_with_stops_a_run(self, error, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda tool: None)
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        assert error().endswith("DeepSpeed compiles with g++ and ninja: type apt-get install g++ ninja-build")


def test_context_of_vllm_is_its_own_unless_it_is_a_server(monkeypatch, tiny_model):
    model = of_models.read(settings("--model_name_or_path", tiny_model))[0]
    flags = ("--use_vllm", "true", "--vllm_max_model_length", 128, "--max_completion_length", 120)
    (line,) = of_models.fit_errors(settings(*flags), model, 9)
    assert "exceed vllm_max_model_length of 128: set --max_completion_length to at most 119, or raise --vllm" in line
    assert of_models.fit_errors(settings(*flags, "--vllm_mode", "server"), model, 9) == []


def test_recipes_of_qwen_have_their_plan(check, monkeypatch, capsys, long_model, data):
    """With the tests' model in its place, which the memory is then of."""
    pretend_card(monkeypatch, 80)
    monkeypatch.setattr(hardware, "errors", lambda *_: [])
    monkeypatch.setattr(checks.recipe, "build", lambda parser, values: (None, None, None))  # which takes the card
    flags = {"model_name_or_path": long_model, "data_dir": data / "countdown", "num_generations": 16}
    with pytest.raises(SystemExit) as ended:
        check(*words(flags), "--dry_run", config=GPU_RECIPE)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("steps: 256 completions of 16 prompts a generation, 1 optimizer step on them; ")
    assert lines[3] == "machine: one process; vLLM in the same processes, tensor parallel 1"
    assert lines[4].startswith("memory a card, estimate in GiB: weights 0.0") and lines[4].endswith("of 80.0")


def test_yaml_that_transformers_refuses_is_one_line(error, tmp_path):
    text = yaml.safe_dump(yaml.safe_load(TINY.read_text()) | {"lr_scheduler_type": "cosy"})
    (tmp_path / "x.yaml").write_text(text)
    assert "cosy is not a valid SchedulerType" in error(config=tmp_path / "x.yaml")
