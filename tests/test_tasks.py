"""Every task from its data to two training steps, on fixtures written by hand in the real sets' columns."""

import json
import os
import sys

import pyarrow.parquet as pq
import pytest
from conftest import ENVIRONMENT, ROOT, SMALL, run_to_end, train_here, words

from r1zero.grading import sandbox

# What a recipe's own values are overridden with: 8 completions of 2 prompts a step, on a CPU
ON_CPU = SMALL | {"use_cpu": True, "bf16": False, "use_vllm": False, "max_steps": 2, "eval_steps": 2}
ON_CPU |= {"per_device_eval_batch_size": 1, "save_strategy": "no"}


def columns_of_the_last_step(folder):
    return pq.read_table(sorted(folder.glob("completions/*.parquet"))[-1]).to_pydict()


@pytest.mark.parametrize(
    ("recipe", "task", "columns"),
    [
        ("multiply", "multiply", "multiplication_reward product stated_product product_verdict"),
        ("mixture", "mixture", "countdown_reward boxed_math_reward equation verdict gold boxed boxed_verdict"),
        ("eurus_r1_distill_1.5b", "eurus", "boxed_math_reward code_reward program tests_passed code_verdict"),
    ],
)
def test_recipe_trains_two_steps(tmp_path, long_model, data, recipe, task, columns):
    if task == "eurus" and sandbox.why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(sandbox.why_unavailable())
    flags = ON_CPU | {"model_name_or_path": long_model, "data_dir": data / task, "output_dir": tmp_path}
    train_here(ROOT / "configs" / f"{recipe}.yaml", **flags)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 2 and metrics["before"]["accuracy"] == metrics["after"]["accuracy"] == 0
    table = columns_of_the_last_step(tmp_path)
    assert set(columns.split()) <= set(table) and len(table["completion"]) == 8


@pytest.mark.slow
def test_rewards_work_in_trls_own_script(tmp_path, long_model, data):
    """The functions unchanged, by their dotted names, on a set that TRL loads itself."""
    flags = ON_CPU | {
        "model_name_or_path": long_model,
        "dataset_name": data / "x_r1_750",
        "reward_funcs": "rewards.boxed_math_reward",
        "output_dir": tmp_path,
        "report_to": "none",
        "log_completions": True,
    }
    run_to_end([sys.executable, "-m", "trl.scripts.grpo", *words(flags)], env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})
    assert {"boxed_math_reward", "gold", "boxed"} <= set(columns_of_the_last_step(tmp_path))
