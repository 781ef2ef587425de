"""What commands import before they have anything to compute: none of what takes seconds, where that can be had.

bash tests/run.sh tests/test_imports.py
"""

import subprocess
import sys

import pytest
from conftest import ROOT

# What a run itself needs
OF_TRAINING = {"datasets", "matplotlib", "trl.trainer.grpo_trainer", "transformers.trainer"}
HEAVY = OF_TRAINING | {"torch", "transformers", "accelerate", "peft", "sympy"}
PREPROCESS = ["gsm8k", "--source", "tests/fixtures/gsm8k.jsonl", "--local_dir"]

# Runs a script or a module as `python` and `python -m` do, and then says what of sys.argv[2] has been imported
PROGRAM = """
import os, runpy, sys
name, heavy, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, os.getcwd())
sys.argv[0] = name
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print("imported:", *sorted(set(heavy.split()) & set(sys.modules)))
"""


def imported(name, *arguments, heavy=HEAVY):
    """The modules of `heavy` that a script or a module has imported when it ends, as a set of their names."""
    command = [sys.executable, "-c", PROGRAM, name, " ".join(heavy), *map(str, arguments)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = output.splitlines()[-1].split()
    assert words[0] == "imported:", output
    return set(words[1:])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("preprocess.py", ["eurus", "--help"], id="help on data"),
        pytest.param("r1zero.report", ["--help"], id="help on the page"),
        pytest.param("r1zero.tiny_model", ["--steps", "1", "--no_setting", "1"], id="a misspelt setting of the model"),
    ],
)
def test_nothing_heavy_is_imported_where_nothing_is_computed(name, arguments):
    assert imported(name, *arguments) == set()


def test_problems_in_a_file_are_read_without_torch(tmp_path):
    found = imported("preprocess.py", *PREPROCESS, tmp_path)
    assert found == {"datasets"} and (tmp_path / "test.parquet").is_file()


def test_misspelt_flag_of_a_run_is_answered_before_the_trainer_is_imported():
    flags = ["--config", "configs/tiny_cpu.yaml", "--learning_ratio", "1"]
    assert imported("train_countdown.py", *flags, heavy=OF_TRAINING) == set()
