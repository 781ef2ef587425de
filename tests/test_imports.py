"""What is imported: nothing that takes seconds before there is something to compute, and no script by the package."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

# What a run itself needs
OF_TRAINING = {"datasets", "matplotlib", "trl.trainer.grpo_trainer", "transformers.trainer"}
HEAVY = OF_TRAINING | {"torch", "transformers", "accelerate", "peft", "sympy"}


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("preprocess.py gsm8k --source tests/fixtures/gsm8k.jsonl --local_dir {folder}", {"datasets"}),
        ("-m r1zero.report --help", set()),
        ("-m r1zero.tiny_model --steps 1 --no_setting 1", set()),
        ("train_countdown.py --config configs/tiny_cpu.yaml --learning_ratio 1", HEAVY - OF_TRAINING),
    ],
)
def test_nothing_heavy_is_imported_if_nothing_is_computed(tmp_path, command, allowed):
    words = [sys.executable, "-X", "importtime", *command.format(folder=tmp_path).split()]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", ended.stderr, flags=re.MULTILINE))
    assert "argparse" in imported and HEAVY & imported <= allowed


def test_package_imports_no_script_above_it():
    """`python -m r1zero.report` works in any folder, where the scripts are not."""
    for path in (ROOT / "r1zero").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.MULTILINE)
        assert not {"rewards", "preprocess", "train_countdown"} & set(imports), path
