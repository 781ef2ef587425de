"""Each fault that stops a run before a model is loaded, with its line, and the plan of a dry run.

What a flag, a line of YAML or a column of the data is told stands in tests/cases/before_a_run.tsv, as
the parts of the line that matter with " ... " between them.   bash tests/run.sh tests/test_preflight.py
"""

import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CONFIGS, RECIPES, TINY, each_case, parser, settings, words
from filelock import FileLock
from test_data import COUNTDOWN
from test_machine import pretend_card
from test_recipe import write_recipe
from transformers import AutoTokenizer

from r1zero.preflight import check as checks
from r1zero.preflight import hardware
from r1zero.preflight.machine import Machine, Strategy, read_strategy
from r1zero.training import checkpoints


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
def plan(tmp_path, monkeypatch, capsys):
    """What a dry run prints in an empty folder without the hub; returns its lines."""
    monkeypatch.chdir(tmp_path)
    pretend_card(monkeypatch, gib=None)

    def run(*flags):
        with pytest.raises(SystemExit) as ended:
            checks.check(parser(), ["--dry_run", *map(str, flags)])
        lines = capsys.readouterr().out.splitlines()
        assert ended.value.code == any(line.startswith("will not fit") for line in lines), ended.value.code
        return lines

    return run


def write_data(folder, **columns):
    """Write the same rows into train and test; return their folder."""
    folder.mkdir(exist_ok=True)
    rows = max(map(len, columns.values()))
    for split in ("train", "test"):
        pq.write_table(pa.table({"prompt": ["Solve: "] * rows} | columns), folder / f"{split}.parquet")
    return folder


def test_recipe_passes_with_an_evaluation_that_its_rows_fill_and_the_estimate_that_is_printed(check, capsys):
    """The page sets the estimate beside what the run takes."""
    _, training_args, _, functions = check("--use_cpu", "false", "--per_device_eval_batch_size", 300)
    assert [function.__name__ for function in functions] == ["countdown_reward"]
    assert training_args.per_device_eval_batch_size == 256, "as many rows as there are"
    printed = capsys.readouterr().out
    assert "evaluation: per_device_eval_batch_size is 256, as 256 held-out rows" in printed
    found = re.findall(r"([\d.]+)(?: GiB)? in (?:the )?(?:update|evaluation|generation)", printed)
    assert training_args.estimated_memory == pytest.approx(max(map(float, found)), abs=0.06)


@each_case("before_a_run.tsv", "flags")
def test_fault_is_told_with_what_was_found_and_what_to_type(errors, monkeypatch, tmp_path, case):
    pretend_card(monkeypatch, gib=None)
    (tmp_path / "file").touch()
    flags = shlex.split(case["flags"])
    if case["data"]:
        columns = COUNTDOWN | json.loads(case["data"])
        columns = {name: column for name, column in columns.items() if column is not None}
        flags += ["--data_dir", write_data(tmp_path / "given", **columns)]
    lines = errors(*flags, config=write_recipe(tmp_path / "x.yaml", case["yaml"]))
    assert [part for part in case["line"].split(" ... ") if part not in lines[0]] == []
    if case["data"]:
        assert [line.split("/")[-1].split(",")[0].split()[0] for line in lines] == ["train.parquet", "test.parquet"]
    else:
        assert len(lines) == 1, lines


def test_held_out_data_with_more_columns_is_refused(errors, tmp_path, tiny_data):
    table = pq.read_table(shutil.copytree(tiny_data, tmp_path / "more") / "test.parquet")
    pq.write_table(table.append_column("hint", [["?"] * len(table)]), tmp_path / "more" / "test.parquet")
    (line,) = errors("--data_dir", tmp_path / "more")
    assert "test.parquet has the columns ['hint'], which" in line


OWN_REWARD = """
def mine(completions, word, log_extra, **columns):
    log_extra("verdict", ["{verdict}"] * len(completions))
    return [{reward} for given in word]

mine.right_answer = lambda row: {right}
"""


class TestRightAnswers:
    """A right answer of each of the first rows must earn all, through the model's tokenizer and the reward."""

    def test_answer_tags_that_the_tokenizer_leaves_out_are_found(self, errors, tmp_path, tiny_model):
        """As special tokens, which decoding leaves out."""
        model = shutil.copytree(tiny_model, tmp_path / "special")
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_special_tokens({"extra_special_tokens": ["<answer>", "</answer>"]})
        tokenizer.save_pretrained(model)
        line = errors("--model_name_or_path", model)[0]
        said = r"train.parquet, row 0: the right answer is '<answer>\S+</answer>', of which the tokeniz"
        assert re.search(said, line)
        assert line.endswith("gives it 0.0, wanted 1.0: name a model whose tokenizer keeps it, or mend the row")

    @pytest.mark.parametrize(
        ("reward", "columns", "said"),
        [
            ("countdown", {"nums": [[1, 2], [6, 7]], "target": [3, 99]}, "row 1: 99 cannot be reached with [6, 7]"),
            ("boxed_math", {"solution": ["7", "3 + 6 = 9 eggs.\n#### 9"]}, "row 1: a sentence, and the answer alone"),
            ("boxed_math", {"solution": ["So the answer is: 180."]}, "row 0: a sentence"),
        ],
    )
    def test_rows_without_one_are_named(self, errors, tmp_path, reward, columns, said):
        lines = errors("--data_dir", write_data(tmp_path / "rows", **columns), "--reward_funcs", f"{reward}_reward")
        assert any(f"ValueError: {said}" in line for line in lines), lines

    @each_case("own_right_answers.tsv", "said")
    def test_a_users_function_may_say_its_own(self, check, errors, tmp_path, case):
        (tmp_path / "mine.py").write_text(OWN_REWARD.format(**case))
        data = write_data(tmp_path / "rows", word=["a", None] * 150)
        flags = ("--data_dir", data, "--reward_funcs", f"{tmp_path}/mine.py:mine")
        if case["said"]:
            assert case["said"] in errors(*flags)[0]
        else:
            assert check(*flags)[3][0].__name__ == "mine"


def test_recipe_decides_on_mixed_precision_and_not_the_launcher(check, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert check()[1].mixed_precision == "no"


class TestOutput:
    def test_second_run_in_the_same_folder_is_refused(self, check, errors, tmp_path):
        with FileLock(tmp_path / ".out.lock"):
            (line,) = errors()
            assert "another run is writing to" in line and "--output_dir" in line
            with pytest.raises(SystemExit) as ended:
                check("--dry_run")
            assert ended.value.code == 0, "which writes nothing"
        check()

    def test_folder_without_locks_is_said_to_be_the_users_to_watch(self, check, monkeypatch, capsys):
        def flock(*_):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", flock)
        check()
        assert "not implemented: see to it yourself that no second run writes there" in capsys.readouterr().out

    def test_model_or_data_in_it_would_be_written_over_or_moved(self, errors, tiny_model, tiny_data, tmp_path):
        for flag, folder in (("--model_name_or_path", tiny_model), ("--data_dir", tiny_data)):
            own = shutil.copytree(folder, tmp_path / f"out{flag}" / "checkpoint-4")
            (line,) = errors(flag, own, "--output_dir", tmp_path / f"out{flag}")
            assert f"{flag[2:]} {own} lies in output_dir " in line and "name another --output_dir" in line

    def test_full_disk_is_noticed_before_training_also_by_a_resumed_run(self, errors, monkeypatch, tmp_path):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
        assert "has 1 MB free and 3 checkpoints with the final model take 19 MB" in errors()[0]
        flags = ("--save_total_limit", 0, "--save_steps", 4, "--max_steps", 384)
        assert "has 1 MB free and 96 checkpoints" in errors(*flags)[0]
        for step in (4, 8):
            (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
        found = checkpoints.Choice(tmp_path / "out" / "checkpoint-8")
        monkeypatch.setattr(checkpoints, "choose", lambda values, strategy, steps: found)
        assert "and 1 checkpoint with the final model take 8 MB" in errors("--resume_from_checkpoint", "true")[0]


def test_checkpoint_that_another_machine_does_not_see_is_said(check, monkeypatch, tmp_path):
    found = checkpoints.Choice(tmp_path / "checkpoint-4")
    monkeypatch.setattr(checkpoints, "choose", lambda values, strategy, steps: found)
    with pytest.raises(SystemExit, match="checkpoint-4 does not exist: let all machines share the folder"):
        check("--resume_from_checkpoint", "true")


def test_dry_run_of_a_fresh_clone_says_what_would_be_made_and_the_plan_without_it(plan, tmp_path):
    _, unmade, *lines, time, shape = plan()
    assert unmade == (
        "not there yet: models/tiny and data/countdown_tiny; a run makes them with python -m r1zero.tiny_model"
    )
    assert lines == [
        "steps: 256 completions of 16 prompts a generation, 4 optimizer steps on them; the number of problems is not "
        "known yet, 96 steps and 6,144 completions in this run",
        "model: 473,216 parameters, all trained, weights float32, arithmetic float32, attention sdpa",
        "machine: one process; transformers' own generation",
        "disk: 0.02 GB for 3 checkpoints at once and the final model",
    ]
    floor = r"time: at least \S+ \w+ without the prompts \(the first run makes the data\), .* \S+ TFLOPS measured here"
    assert re.match(floor, time)
    assert shape == "models/tiny is not here: its shape is taken from r1zero/estimate"
    assert os.listdir(tmp_path) == []


NUMBERS = {"no": 0, "one": 1, "two": 2, "four": 4, "eight": 8}


def line_of(lines, start):
    """The one line that begins so, None if there is none."""
    found = [line for line in lines if line.startswith(start)]
    assert len(found) <= 1
    return found[0] if found else None


class TestAnotherMachine:
    """--dry_run --gpus N --gpu_memory G, in a folder without data or models, and without the hub."""

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_of_the_header_has_a_plan_that_fits(self, recipe, plan):
        path = CONFIGS / f"{recipe}.yaml"
        of_header = re.search(r"# Hardware: (\w+) (?:T4 of )?([\d.]+) GB", path.read_text()) or [0, "no", 0]
        gpus, gigabytes = NUMBERS[of_header[1]], float(of_header[2])
        lines = plan("--config", path, "--gpus", gpus, "--gpu_memory", gigabytes)
        assert line_of(lines, "steps: ") and line_of(lines, "model: ") and line_of(lines, "machine: ")
        assert line_of(lines, "not checked, as only that machine can tell") and line_of(lines, "batch: ") is None
        assert line_of(lines, "will not fit") is None
        if gpus:
            assert f"of {gigabytes * 1e9 / 2**30:.1f}" in line_of(lines, "memory a card, estimate in GiB")

    @each_case("other_machines.tsv", "flags")
    def test_has_a_recipe_and_a_strategy_of_its_own_and_says_what_does_not_fit(self, plan, case):
        text = "\n".join(plan(*case["flags"].format(configs=CONFIGS).split()))
        assert [part for part in case["said"].split(" ... ") if part not in text] == []

    def test_costs_its_hours(self, plan):
        line = line_of(plan("--gpu", "h100", "--gpus", 2, "--price_per_hour", 2.5), "time: at least")
        minutes, cost = map(float, re.search(r"(\S+) minutes, and a cost of (\S+) at 2.5 an hour", line).groups())
        assert cost == pytest.approx(2.5 * minutes / 60, abs=0.01)

    def test_says_what_cannot_run_there(self, plan):
        for flags, line in (
            ("--max_completion_length 2048", "exceed vllm_max_model_length"),
            ("--gpus 0", "is for a GPU and that machine has none"),
            ("--gpu h1000", "--gpu h1000 is not in the table:\n.*t4, l4, a10g, rtx-3090.*, b200, or"),
            ("--gpu t4", "bf16 is on and 8 T4s of 80 GB, .* has no bfloat16: pass --bf16 false --fp16 true"),
        ):
            argv = f"--dry_run --config {CONFIGS}/qwen2.5-7b.yaml --gpus 8 --gpu_memory 80 {flags}"
            with pytest.raises(SystemExit, match=line):
                checks.check(parser(), argv.split())


class TestHardware:
    ONE = Strategy("one process", 1, {})
    CARD = Machine(ONE, "the card", 80 * 2**30)
    MACHINES = {"card": CARD, "old": Machine(ONE, "the card", 80 * 2**30, bf16=False)}
    MACHINES |= {"none": Machine(ONE), "unseen": Machine(ONE, unseen="found a Tesla T4")}
    MACHINES |= {"FSDP": Machine(read_strategy({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}))}

    @each_case("hardware.tsv", "line")
    def test_that_cannot_run_it_is_told_on_one_line(self, monkeypatch, case):
        monkeypatch.setattr(hardware, "is_vllm_available", lambda: bool(case["vllm"]))
        monkeypatch.setattr(hardware, "version", lambda package: case["vllm"])
        lines = hardware.errors(settings(*case["flags"].split()), self.MACHINES[case["machine"]])
        assert len(lines) == bool(case["line"])
        assert [part for part in case["line"].split(" ... ") if part not in "".join(lines)] == []
