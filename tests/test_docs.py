"""Commands in the README and docs/ exist, and the worked example runs.   bash tests/run.sh tests/test_docs.py"""

import json
import re
import shlex
import subprocess
import sys

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import PATIENCE, ROOT, SMALL, TINY, parser, reader_of, run_to_end, train_here
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts.grpo import GRPOScriptArguments

import preprocess
from benchmarks import experiment, step
from r1zero import ask, tiny_model, warm_start
from r1zero.evaluate import command as evaluate

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
CLONE = "~/countdown-r1-zero/"  # where the worked example takes this project to be


def blocks(page, language):
    """The texts of a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page):
    """The commands of a page as lists of words: those of its code blocks, and those between backticks in its prose."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```|````.*?````", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        if span.split()[0] in ("python", "bash", "accelerate", "trl") and span != "accelerate launch":
            lines.append(" ".join(span.split()))
    found = [shlex.split(line, comments=True) for line in lines]
    return [command for command in found if command]


def parse_all(trl_parser, flags):
    """Fail if a TrlParser does not know a flag."""
    flags = list(flags)
    if "--config" in flags:  # TrlParser reads it apart
        at = flags.index("--config")
        del flags[at : at + 2]
    assert trl_parser.parse_known_args(flags)[1] == []


PARSERS = {  # {program: what fails if it does not know one of the flags}
    "python -m r1zero.evaluate": evaluate.parse,
    "python -m r1zero.ask": ask.read_arguments,
    "python -m r1zero.tiny_model": tiny_model.read_arguments,
    "python -m r1zero.warm_start": warm_start.read_arguments,
    "python preprocess.py": preprocess.build_parser().parse_args,
    "python benchmarks/experiment.py": lambda flags: parse_all(parser(), experiment.parse(flags)[1]),
    "python benchmarks/step.py": lambda flags: parse_all(parser(), step.read_arguments(flags)[1]),
    r"python train_countdown\.py|bash train\.sh|sbatch --nodes \d+ --gpus-per-node \d+ configs/slurm/nodes\.sbatch": (
        lambda flags: parse_all(parser(), flags)
    ),
    "trl grpo": lambda flags: parse_all(TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig)), flags),
    # Without flags of this project's
    r"bash tests/(run\.sh( --all)?|gpu\.sh|vllm\.sh|audit\.sh)": None,
    r"python (configs/locks/make|benchmarks/rewards|reverse|puzzles)\.py": None,
    r"apt-get install .*|python -m r1zero\.report .*|source \.venv-vllm/bin/activate|vllm serve .*": None,
    r"hf download .*": None,
}


def parse_command(command):
    """Fail if nobody knows a command, or its program one of its flags."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):  # a variable
        command = command[1:]
    command = [word.removeprefix(CLONE) for word in command]
    if command[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(command[2:])
        module = ["-m"] if launch.module else []
        command = ["python", *module, launch.training_script, *launch.training_script_args]
    for count in range(len(command), 1, -1):
        for program, parse in PARSERS.items():
            if re.fullmatch(program, " ".join(command[:count])) and (parse or count == len(command)):
                return parse and parse(command[count:])
    raise AssertionError("nobody knows this command")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_exist(page, capsys):
    for command in commands(page):
        try:
            parse_command(command)
        except (SystemExit, AssertionError) as error:
            pytest.fail(f"{shlex.join(command)}\n{error}\n{capsys.readouterr().err[-300:]}")


@pytest.mark.slow
def test_worked_example_trains_and_its_accuracy_and_verdicts_are_on_the_page(
    tmp_path, long_model, monkeypatch, capsys
):
    """As a reader of docs/tasks.md has it: file, recipe, and the data that the file writes."""
    for name, language in (("reverse.py", "python"), ("reverse.yaml", "yaml")):
        (text,) = [block for block in blocks("docs/tasks.md", language) if "reverse_reward" in block]
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "reverse.py"], cwd=tmp_path, check=True, timeout=PATIENCE)
    flags = ["--model_name_or_path", long_model, "--max_steps", 2, "--eval_steps", 1]
    script = [sys.executable, ROOT / "train_countdown.py", "--config", "reverse.yaml", *flags]
    assert "letters_in_answer" in run_to_end(script, cwd=tmp_path)

    run = tmp_path / "outputs" / "reverse"
    assert 0 <= json.loads((run / "metrics.json").read_text())["after"]["accuracy"] <= 1
    assert "letters_in_answer" in (run / "report.html").read_text()
    for problem in reader_of(run)["problems"]:
        assert len(problem["about"]["problem"]) == 4
        assert {at["verdict"] for at in problem["at"].values()} <= {"correct", "wrong", "no answer"}

    monkeypatch.chdir(tmp_path)
    own = ["--reward_funcs", "reverse:reverse_reward", "--max_completion_length", "96"]
    evaluate.main(["--model", "outputs/reverse", "--data", "data/test.parquet", *own])
    assert "64 problems" in capsys.readouterr().out


@pytest.mark.slow
def test_flags_of_each_paper_train(tiny_model, tiny_data, tmp_path):
    row = r"^\| [^|]*arxiv[^|]* \| `([^`]+)` \|"
    papers = re.findall(row, (ROOT / "docs" / "recipes.md").read_text(), flags=re.MULTILINE)
    assert len(papers) == 5
    small = SMALL | {"steps_per_generation": 2, "max_steps": 2, "eval_strategy": "no", "eval_on_start": False}
    for number, flags in enumerate(papers):
        run = tmp_path / f"run{number}"
        paths = {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": run}
        train_here(TINY, *flags.split(), **small, **paths)
        assert json.loads((run / "metrics.json").read_text())["steps"] == 2
