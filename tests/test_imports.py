"""What is imported: nothing that takes seconds before there is something to compute, and no script by the package."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# What a run itself needs
OF_TRAINING = {"datasets", "matplotlib", "trl.trainer.grpo_trainer", "transformers.trainer"}
HEAVY = OF_TRAINING | {"torch", "transformers", "accelerate", "peft", "sympy"}

# Runs a script or a module as `python` and `python -m` do, and then says what has been imported
PROGRAM = """
import os, runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, os.getcwd())
sys.argv[0] = name
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("preprocess.py gsm8k --source tests/fixtures/gsm8k.jsonl --local_dir {folder}", {"datasets"}),
        ("r1zero.report --help", set()),
        ("r1zero.tiny_model --steps 1 --no_setting 1", set()),
        ("train_countdown.py --config configs/tiny_cpu.yaml --learning_ratio 1", HEAVY - OF_TRAINING),
    ],
)
def test_nothing_heavy_is_imported_if_nothing_is_computed(tmp_path, command, allowed):
    words = [sys.executable, "-c", PROGRAM, *command.format(folder=tmp_path).split()]
    output = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said, *imported = output.splitlines()[-1].split()
    assert said == "imported:" and HEAVY & set(imported) <= allowed


def test_package_imports_no_script_above_it():
    """`python -m r1zero.report` works in any folder, where the scripts are not."""
    for path in (ROOT / "r1zero").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"rewards", "preprocess", "train_countdown"} & set(names), path
