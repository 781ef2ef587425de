"""Rooms have narrow doors, arrows between them point down, and a task is said in two places.

bash tests/run.sh tests/test_rooms.py
"""

import ast
import shutil
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest
from conftest import ENVIRONMENT, ROOT, run_to_end, words

# From the lowest floor up: the files of a room that others may import, and the rooms that it may import from itself
DOORS = {
    "grading": ("arithmetic behaviours extract latex program_tests sandbox verdict", ""),
    "tasks": ("countdown multiplication problem_files prompts word_problems", "grading"),
    "report": ("console page run_folder", "grading tasks"),
    "training": (
        "checkpoints generation lora nan_guard phases reward_functions stopping trainer vllm",
        "grading tasks",
    ),
    "estimate": ("hours memory model_shapes plan", ""),
    "preflight": ("check data hardware machine model", "estimate grading report tasks training"),
    "evaluate": ("engines", "grading preflight report tasks training"),
}


def imports(path):
    """The (room, file) of a file's imports from rooms; a file of the hall has the room "hall"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("r1zero"):
            continue
        parts = node.module.split(".")[1:]
        if parts and (ROOT / "r1zero" / parts[0]).is_dir():
            yield from [(parts[0], parts[1])] if len(parts) > 1 else [(parts[0], name.name) for name in node.names]


@pytest.mark.parametrize("room", DOORS)
def test_room_imports_from_lower_floors_and_through_their_doors_alone(room):
    files = [path for path in (ROOT / "r1zero" / room).glob("*.py") if path.name != "__init__.py"]
    _, below = DOORS[room]
    for path in files:
        for other, file in imports(path):
            if other != room:
                assert other in below.split(), f"{path.name} imports {other}"
                assert file in DOORS[other][0].split(), f"{path.name} imports {other}.{file}"


@pytest.mark.parametrize("script", ["train_countdown.py", "preprocess.py", "rewards.py"])
def test_scripts_go_through_the_doors(script):
    for room, file in imports(ROOT / script):
        assert file in DOORS[room][0].split(), f"{script} imports {room}.{file}"


def test_package_imports_no_script_above_it():
    for path in (ROOT / "r1zero").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"rewards", "preprocess", "train_countdown"} & set(names), path


TASK = '''
"""Two numbers and their sum, to show how a task is added."""

import pyarrow as pa

from r1zero.tasks.prompts import Prompt

PROMPT = Prompt("", "What is {left} + {right}?", "Let me think. <think>")
COLUMNS = {"total": pa.int64()}
TRUTH = pa.string()
HELP = "the sum of two numbers"
TRAIN_SIZE = 64


def add_flags(command):
    command.add_argument("--largest", type=int, default=9)


def wrong_flags(args):
    return "wanted --largest of at least 1" if args.largest < 1 else None


def problems(args):
    pairs = [(n, n % args.largest) for n in range(args.train_size + args.test_size)]
    found = [({"total": a + b}, {"left": a, "right": b}, str(a + b)) for a, b in pairs]
    return found[: args.train_size], found[args.train_size :]


def contents(rows):
    return f"{len(rows)} sums"
'''
REWARD = '''

def addition_reward(completions, total, log_extra=None, log_metric=None, **kwargs):
    """1.0 for the sum."""
    return addition_reward.task.score(completions, (total,), log_extra, log_metric)


def judge_sum(completions, total):
    def check(answers, totals):
        return [answer == str(value) for answer, value in zip(answers, totals, strict=True)]

    return judge_batch(completions, total, extract_answer, check)


addition_reward.task = Task(
    name="addition",
    judge=judge_sum,
    columns=("total",),
    worth=GRADED,
    table=Table(answer="stated_sum", verdict="sum_verdict", problem=("total",)),
    problem=lambda verdicts, total: (list(total),),
    right=lambda total: f"<answer>{total}</answer>",
)
'''


def test_task_is_added_as_the_documentation_lists_it(tmp_path, long_model):
    """In a copy of the project: a file of tasks/ with its name in MADE, and a function of rewards.py."""
    project = tmp_path / "project"
    for name in ("r1zero", "configs"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_countdown.py", "preprocess.py", "rewards.py", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    (project / "r1zero" / "tasks" / "addition.py").write_text(textwrap.dedent(TASK))
    (project / "rewards.py").write_text((project / "rewards.py").read_text() + REWARD)
    script = (project / "preprocess.py").read_text()
    script = script.replace("from r1zero.tasks import ", "from r1zero.tasks import addition, ")
    (project / "preprocess.py").write_text(script.replace("MADE = {", 'MADE = {"addition": addition, '))

    environment = ENVIRONMENT | {"PYTHONPATH": str(project)}
    make = [sys.executable, "preprocess.py", "addition", "--test_size", "8"]
    assert "8 sums" in run_to_end(make, environment, project)
    refused = subprocess.run([*make, "--largest", "0"], cwd=project, capture_output=True, text=True, env=environment)
    assert "wanted --largest of at least 1" in refused.stderr
    settings = {
        "model_name_or_path": long_model,
        "data_dir": "data/addition",
        "reward_funcs": "addition_reward",
        "max_steps": 1,
        "completions_per_step": 4,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "steps_per_generation": 1,
        "max_completion_length": 8,
        "logging_steps": 1,
        "eval_steps": 1,
        "save_strategy": "no",
    }
    train = [sys.executable, "train_countdown.py", "--config", "configs/tiny_cpu.yaml", *words(settings)]
    run_to_end(train, environment, project)
    table = pq.read_table(project / "outputs" / "tiny_cpu" / "completions" / "completions_00001.parquet")
    assert {"total", "stated_sum", "sum_verdict", "addition_reward"} <= set(table.column_names)
    score = ["-m", "r1zero.evaluate", "--model", "outputs/tiny_cpu", "--data", "data/addition/test.parquet"]
    assert "with an answer" in run_to_end(
        [sys.executable, *score, "--max_completion_length", "8", "--use_cpu"], environment, project
    )
