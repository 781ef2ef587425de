"""The README and docs/ are true to the code: commands, flags, files, links and recipes; and the worked example runs.

bash tests/run.sh tests/test_docs.py
"""

import json
import re
import shlex
import subprocess
import sys

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import PATIENCE, ROOT, SMALL, parser, run_to_end, train_here
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts.grpo import GRPOScriptArguments

import preprocess
from benchmarks import experiment, step
from r1zero import ask, tiny_model, warm_start
from r1zero.evaluate import command as evaluate
from r1zero.report import page as report

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
ELSEWHERE = ("outputs/", "data/", "models/", "verl/")  # what runs make, and another project's files
OF_A_RUN = ("config.yaml", "config.json", "README.md", "reverse.py", "reverse.yaml", "puzzles.py", "path/to/file.py")
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


def parse_all(trl_parser, flags):
    """Fail if a TrlParser does not know a flag."""
    flags = list(flags)
    if "--config" in flags:  # TrlParser reads it apart
        at = flags.index("--config")
        del flags[at : at + 2]
    assert trl_parser.parse_known_args(flags)[1] == []


def parse_report(flags):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "compare"):
            patch.setattr(report, name, lambda *_: None)
        report.main(flags)


# Commands without flags of this project's
AS_THEY_ARE = (
    r"bash tests/(run\.sh( --all)?|gpu\.sh|vllm\.sh|audit\.sh)",
    r"python (configs/locks/make|benchmarks/rewards|reverse|puzzles)\.py",
    r"apt-get install .*|source \.venv-vllm/bin/activate|vllm serve .*|hf download .*",
)


def parse_command(command):
    """Fail if a command starts what does not exist, or if its program does not know one of its flags."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):  # a variable
        command = command[1:]
    match [word.removeprefix(CLONE) for word in command]:
        case ["accelerate", "launch", *flags]:
            launch = launch_command_parser().parse_args(flags)
            module = ["-m"] if launch.module else []
            parse_command(["python", *module, launch.training_script, *launch.training_script_args])
        case ["python", "-m", "r1zero.evaluate", *flags]:
            evaluate.parse(flags)
        case ["python", "-m", "r1zero.ask", *flags]:
            ask.read_arguments(flags)
        case ["python", "-m", "r1zero.report", *flags]:
            parse_report(flags)
        case ["python", "-m", "r1zero.tiny_model", *flags]:
            tiny_model.read_arguments(flags)
        case ["python", "-m", "r1zero.warm_start", *flags]:
            warm_start.read_arguments(flags)
        case ["python", "preprocess.py", *flags]:
            preprocess.build_parser().parse_args(flags)
        case ["python", "train_countdown.py", *flags] | ["bash", "train.sh", *flags]:
            parse_all(parser(), flags)
        case ["sbatch", "--nodes", _, "--gpus-per-node", _, "configs/slurm/nodes.sbatch", *flags]:
            parse_all(parser(), flags)
        case ["trl", "grpo", *flags]:
            parse_all(TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig)), flags)
        case ["python", "benchmarks/experiment.py", *flags]:
            parse_all(parser(), experiment.parse(flags)[1])
        case ["python", "benchmarks/step.py", *flags]:
            parse_all(parser(), step.read_arguments(flags)[1])
        case other:
            assert any(re.fullmatch(form, " ".join(other)) for form in AS_THEY_ARE), "nobody knows this command"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_exist(page, capsys):
    for command in commands(page):
        try:
            parse_command(command)
        except (SystemExit, AssertionError) as error:
            pytest.fail(f"{shlex.join(command)}\n{error}\n{capsys.readouterr().err[-300:]}")


@pytest.fixture(scope="module")
def known_flags():
    """Every flag of TRL's parser and of accelerate's launcher, and what the project's own files spell."""
    texts = [parser().format_help(), launch_command_parser().format_help()]
    texts += [f"--{name}" for name in tiny_model.TinyModelArguments.__dataclass_fields__]
    for pattern in ("*.py", "r1zero/**/*.py", "benchmarks/*.py", "tests/run.sh"):
        texts += [path.read_text() for path in ROOT.glob(pattern)]
    return set(re.findall(r"--\w[\w-]*", "\n".join(texts))) | {"--config", "--help"}


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_alone_exist(page, known_flags):
    for span in spans(page):
        if span.startswith("--"):
            assert set(re.findall(r"--\w[\w-]*", span)) <= known_flags, span


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page):
    words = [word for command in commands(page) for word in command]
    if page == "README.md":  # the tree
        tree = [re.split(r"\s{2,}", line)[0] for line in blocks(page, "")[0].splitlines()]
        words += [name.strip(",") for line in tree for name in line.split()]
    for span in spans(page):
        words += span.split()
    for word in words:
        name = word.removeprefix(CLONE)
        is_file = re.fullmatch(r"[\w./-]+\.(py|sh|yaml|toml|sbatch|md)", name)
        is_folder = re.match(r"(configs|r1zero|tests|docs|benchmarks)/", name)
        if (is_file or is_folder) and name not in OF_A_RUN and not name.startswith(ELSEWHERE):
            places = [ROOT, ROOT / "configs", ROOT / "configs" / "accelerate"]
            assert any((place / name).exists() for place in places), f"{page} names {word}"


def heading_anchors(path):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in heading_anchors(target), f"{page} links to {link}"


def test_readme_leads_to_every_page_and_recipe():
    assert [page for page in PAGES[1:] if f"({page}" not in read("README.md")] == []
    recipes = {path.name for path in ROOT.glob("configs/*.yaml")} - {"tiny_model.yaml", "warm_start.yaml"}
    assert recipes <= set(re.findall(r"^\| `([^`]+)` \|", read("README.md"), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The worked example of docs/tasks.md as a reader has it: file, recipe, and the data that the file writes."""
    folder = tmp_path_factory.mktemp("reverse")
    for name, language in (("reverse.py", "python"), ("reverse.yaml", "yaml")):
        (text,) = [block for block in blocks("docs/tasks.md", language) if "reverse_reward" in block]
        (folder / name).write_text(text)
    subprocess.run([sys.executable, "reverse.py"], cwd=folder, check=True, timeout=PATIENCE)
    return folder


def test_worked_example_passes_the_checks(example, long_model, monkeypatch, capsys):
    monkeypatch.chdir(example)
    with pytest.raises(SystemExit) as ended:
        train_here("reverse.yaml", model_name_or_path=long_model, dry_run=True)
    assert not ended.value.code and "20 steps" in capsys.readouterr().out


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


def flags_of_papers():
    """The flags of each row of the table that has papers and flags."""
    return re.findall(r"^\| [^|]*arxiv[^|]* \| `([^`]+)` \|", read("docs/recipes.md"), flags=re.MULTILINE)


def test_table_of_papers_is_read():
    assert len(flags_of_papers()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("flags", flags_of_papers())
def test_flags_of_each_paper_train(flags, tiny_model, tiny_data, tmp_path):
    small = SMALL | {"steps_per_generation": 2, "max_steps": 2, "eval_strategy": "no", "eval_on_start": False}
    paths = {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": tmp_path / "run"}
    train_here(ROOT / "configs" / "tiny_cpu.yaml", *flags.split(), **small, **paths)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2
