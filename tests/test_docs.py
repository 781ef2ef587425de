"""The README and docs/ are true to the code: commands, flags, files, links and lists; and the worked example runs.

bash tests/run.sh tests/test_docs.py
"""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import PATIENCE, ROOT, parser, run_to_end
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts.grpo import GRPOScriptArguments

import preprocess
import rewards
from benchmarks import step, time_to_target
from r1zero import tiny_model
from r1zero.evaluate import command as evaluate
from r1zero.grading import behaviours as reasoning
from r1zero.preflight import check as checks
from r1zero.preflight import machine, vllm_server
from r1zero.report import page as report

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
ELSEWHERE = ("outputs/", "data/", "models/", "verl/")  # what runs make, and another project's files
OF_A_RUN = ("config.yaml", "config.json", "README.md", "reverse.py", "reverse.yaml", "path/to/file.py")
CLONE = "~/countdown-r1-zero/"  # where the worked example takes this project to be


def read(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    """The texts of a page's code blocks in a language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)


def spans(page):
    """The texts between backticks in a page's prose, each on one line."""
    text = re.sub(r"````.*?````", "", prose(page))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page):
    """The commands of a page as lists of words: those of its code blocks, and those in its prose."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    for span in spans(page):
        if span.split()[0] in ("python", "bash", "accelerate", "trl") and span != "accelerate launch":
            lines.append(span)
    found = [shlex.split(line, comments=True) for line in lines]
    return [command for command in found if command]


def tables(page):
    """The rows of all tables of a page, each a list of cells without backticks."""
    rows = re.findall(r"^\| (.*) \|$", read(page), flags=re.MULTILINE)
    return [[cell.replace("`", "").strip() for cell in row.split(" | ")] for row in rows]


def parse_all(trl_parser, flags):
    """Fails where a TrlParser does not know a flag."""
    flags = list(flags)
    if "--config" in flags:  # TrlParser reads it apart
        at = flags.index("--config")
        del flags[at : at + 2]
    assert trl_parser.parse_known_args(flags)[1] == []


def parse_report(flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: None)
        patch.setattr(report, "compare", lambda folders, path: None)
        report.main(flags)


def parse_tiny_model(flags):
    config = str(ROOT / "configs" / "tiny_model.yaml")
    TrlParser((tiny_model.TinyModelArguments,)).parse_args_and_config(["--config", config, *flags])


def parse_command(command):
    """Fails where a command starts what does not exist, or where its program does not know one of its flags."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):  # a variable
        command = command[1:]
    match [word.removeprefix(CLONE) for word in command]:
        case ["accelerate", "launch", *flags]:
            launch = launch_command_parser().parse_args(flags)
            module = ["-m"] if launch.module else []
            parse_command(["python", *module, launch.training_script, *launch.training_script_args])
        case ["python", "-m", "r1zero.evaluate", *flags]:
            evaluate.parse(flags)
        case ["python", "-m", "r1zero.report", *flags]:
            parse_report(flags)
        case ["python", "-m", "r1zero.tiny_model", *flags]:
            parse_tiny_model(flags)
        case ["python", "preprocess.py", *flags]:
            preprocess.build_parser().parse_args(flags)
        case ["python", "train_countdown.py", *flags] | ["bash", "train.sh", *flags]:
            parse_all(parser(), flags)
        case ["sbatch", "--nodes", _, "--gpus-per-node", _, "configs/slurm/nodes.sbatch", *flags]:
            parse_all(parser(), flags)
        case ["vllm", "serve", *_] as words:
            recipe = ["--config", str(ROOT / "configs" / "qwen2.5-1.5b.yaml"), "--vllm_mode", "server"]
            _, *wanted = shlex.split(vllm_server.serve_command(machine.read_recipe(parser(), recipe).values))
            assert words == wanted
        case ["trl", "grpo", *flags]:
            parse_all(TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig)), flags)
        case ["bash", "tests/run.sh"] | ["bash", "tests/run.sh", "--all"] | ["bash", "tests/gpu.sh" | "tests/vllm.sh"]:
            pass
        case ["bash", "tests/audit.sh"] | ["python", "configs/locks/make.py"]:
            pass
        case ["apt-get", "install", *_] | ["source", ".venv-vllm/bin/activate"]:
            pass
        case ["python", "benchmarks/time_to_target.py", *flags]:
            time_to_target.parse(flags)
        case ["python", "benchmarks/step.py", *flags]:
            parse_all(parser(), step.read_arguments(flags)[1])
        case ["python", "benchmarks/rewards.py" | "reverse.py"]:
            pass
        case other:
            pytest.fail(f"nobody knows this command: {shlex.join(other)}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_exist(page, capsys):
    for command in commands(page):
        try:
            parse_command(command)
        except (SystemExit, AssertionError) as error:
            pytest.fail(f"{shlex.join(command)}\n{error}\n{capsys.readouterr().err[-300:]}")


def printed_help(main, *words):
    """What a program prints for --help."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def preprocess_tasks():
    return re.findall(r"^    (\w+)", printed_help(preprocess.main).partition("\ntasks:")[2], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def known_flags():
    """Every flag of this project's commands, and of accelerate's launcher."""
    texts = ["--all --config --help", parser().format_help(), launch_command_parser().format_help()]
    texts += [printed_help(evaluate.parse), printed_help(report.main), printed_help(step.read_arguments)]
    texts += [printed_help(time_to_target.parse)]
    texts += [*map(preprocess_help, preprocess_tasks())]
    texts += [f"--{name}" for name in tiny_model.TinyModelArguments.__dataclass_fields__]
    return set(re.findall(r"--\w[\w-]*", "\n".join(texts)))


def preprocess_help(task):
    return printed_help(preprocess.main, task)


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_alone_exist(page, known_flags):
    for span in spans(page):
        if span.startswith("--"):
            assert set(re.findall(r"--\w[\w-]*", span)) <= known_flags, span


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page):
    words = [word for command in commands(page) for word in command]
    for span in spans(page):
        words += span.split()
    for word in words:
        name = word.removeprefix(CLONE)
        is_file = re.fullmatch(r"[\w./-]+\.(py|sh|yaml|toml|sbatch|md)", name)
        is_folder = re.match(r"(configs|r1zero|tests|docs|benchmarks)/", name)
        if (is_file or is_folder) and name not in OF_A_RUN and not name.startswith(ELSEWHERE):
            places = [ROOT, ROOT / "configs", ROOT / "configs" / "accelerate"]
            assert any((place / name).exists() for place in places), f"{page} names {word}"


def test_tree_in_the_readme_names_what_is_there():
    (tree,) = blocks("README.md", "")
    names = [name for line in tree.splitlines() for name in re.split(r"\s{2,}", line)[0].split(", ")]
    assert len(names) >= 7
    for name in names:
        assert (ROOT / name).exists(), name


def heading_anchors(path):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", prose(page))
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in heading_anchors(target), f"{page} links to {link}"


def test_readme_is_short_and_leads_to_every_page():
    lines = read("README.md").splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= 100
    assert len(read("README.md").split()) <= 1500
    for page in PAGES[1:]:
        assert f"({page}" in read("README.md"), page


@pytest.mark.parametrize("page", PAGES[1:])
def test_page_begins_with_the_question_it_answers(page):
    heading, _, first = read(page).splitlines()[:3]
    assert "?" in heading or "?" in first


# Lists that stand in the code too


def test_table_of_rewards_is_that_of_the_code():
    found = {row[0]: row[1:] for row in tables("docs/tasks.md") if row[0].endswith("_reward")}
    assert found.keys() == rewards.TASKS.keys()
    for name, task in rewards.TASKS.items():
        columns, *values = found[name]
        assert columns == ", ".join(task.columns)
        for status, value in zip(("no answer", "wrong", "undecided", "correct"), values, strict=True):
            if status in task.rewards:
                assert value == f"{task.rewards[status]:g}", f"{name}, {status}"
            else:
                assert value in ("the share of tests passed", "-"), f"{name}, {status}"


def test_table_of_data_has_every_task_of_preprocess():
    rows = [row for row in tables("docs/tasks.md") if row[0].startswith("python preprocess.py")]
    assert [row[0].split()[2] for row in rows] == preprocess_tasks()


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_table_of_recipes_has_every_recipe(page):
    recipes = {path.name for path in ROOT.glob("configs/*.yaml")} - {"tiny_model.yaml"}
    assert recipes <= {row[0] for row in tables(page)}


def test_table_of_recipes_names_the_launcher_of_each_header():
    for row in tables("docs/recipes.md"):
        path = ROOT / "configs" / row[0]
        if path.is_file():
            launcher = re.search(r"--config_file configs/accelerate/(\S+)", path.read_text())[1]
            assert row[2] == launcher, row[0]


def test_table_of_launchers_has_every_file():
    found = {row[0] for row in tables("docs/recipes.md") if len(row) == 2 and row[0].endswith(".yaml")}
    assert found == {path.name for path in ROOT.glob("configs/accelerate/*.yaml")}


def test_table_of_behaviours_has_all_that_are_counted():
    rows = tables("docs/reading-a-run.md")
    start = rows.index(["name", "what is counted in a completion"])
    found = []
    for row in rows[start + 1 :]:
        if row[0] == "part":  # of the next table
            break
        found += row[0].split(", ")
    assert found == [*reasoning.BEHAVIOURS, "over_200_tokens"]


# The worked example of docs/tasks.md


def example_block(language, holds):
    (text,) = [block for block in blocks("docs/tasks.md", language) if holds in block]
    return text


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder as a reader has it: the file and the recipe from the page, and the data that the file has written."""
    folder = tmp_path_factory.mktemp("reverse")
    (folder / "reverse.py").write_text(example_block("python", "def reverse_reward"))
    (folder / "reverse.yaml").write_text(example_block("yaml", "reverse:reverse_reward"))
    subprocess.run([sys.executable, "reverse.py"], cwd=folder, check=True, timeout=PATIENCE)
    return folder


def test_worked_example_has_forty_lines_at_most(example):
    assert len((example / "reverse.py").read_text().splitlines()) <= 40


def test_worked_example_scores_a_right_a_wrong_and_no_answer(example):
    spec = importlib.util.spec_from_file_location("reverse", example / "reverse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logged = {}
    completions = ["<answer>dcba</answer>", "<answer>abcd</answer>", "dcba"]
    given = module.reverse_reward(
        completions, word=["abcd"] * 3, log_extra=logged.__setitem__, log_metric=lambda name, value: None
    )
    assert given == [1.0, 0.1, 0.0]
    assert logged["verdict"] == ["correct", "wrong", "no answer"]


def test_worked_example_keeps_its_held_out_words_out_of_train(example):
    words = {}
    for split in ("train", "test"):
        words[split] = set(pq.read_table(example / "data" / f"{split}.parquet")["word"].to_pylist())
    assert words["train"] and words["test"] and not words["train"] & words["test"]


def test_worked_example_passes_the_checks(example, long_model, monkeypatch, capsys):
    monkeypatch.chdir(example)
    with pytest.raises(SystemExit) as ended:
        checks.check(
            parser(), ["--config", "reverse.yaml", "--model_name_or_path", str(long_model), "--dry_run", "true"]
        )
    assert not ended.value.code
    assert "20 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_worked_example_trains_and_its_accuracy_and_verdicts_are_on_the_page(example, long_model, monkeypatch, capsys):
    flags = ["--model_name_or_path", long_model, "--max_steps", 2, "--eval_steps", 1]
    script = [sys.executable, ROOT / "train_countdown.py", "--config", "reverse.yaml", *flags]
    printed = run_to_end(script, cwd=example)
    assert "letters_in_answer" in printed

    run = example / "outputs" / "reverse"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["before"]["n"] == 64 and 0 <= metrics["after"]["accuracy"] <= 1
    page = (run / "report.html").read_text()
    reader = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert reader["steps"] == [0, 1, 2]
    for problem in reader["problems"]:
        assert len(problem["about"]["problem"]) == 4
        for completion in problem["at"].values():
            assert completion["verdict"] in ("correct", "wrong", "no answer")
    assert "letters_in_answer" in page

    monkeypatch.chdir(example)
    evaluate.main(
        ["--model", "outputs/reverse", "--data", "data/test.parquet"]
        + ["--reward_funcs", "reverse:reverse_reward", "--max_completion_length", "96"]
    )
    assert "64 problems" in capsys.readouterr().out
