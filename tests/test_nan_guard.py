"""Numbers that are not finite end a run before they reach the weights; test_endings.py has two processes."""

import json
import math
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from trl import GRPOTrainer

from r1zero.training import nan_guard

OWN = """
calls = 0

def own_reward(completions, **columns):
    global calls
    calls += 1
    return [{bad} if row == 5 and calls > 2 else float(row) for row in range(len(completions))]
"""


QUIET = {"eval_strategy": "no", "eval_on_start": False, "max_steps": 3, "save_steps": 1}


@pytest.fixture
def ended(train, tmp_path, capsys):
    """Three steps with a checkpoint after each, which end early; the line that says why."""

    def run(**flags):
        with pytest.raises(SystemExit) as ended:
            train(tmp_path / "run", **QUIET | flags)
        assert ended.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_countdown.py")]
        return line

    return run


def test_step_that_would_spoil_the_weights_is_not_taken(ended, tmp_path, monkeypatch):
    """By a gradient: the loss is finite."""
    compute_loss, steps = GRPOTrainer.compute_loss, []

    def spoil(trainer, model, inputs, **settings):
        loss = compute_loss(trainer, model, inputs, **settings)
        steps.append(trainer.state.global_step)
        weight = next(model.parameters())
        # The gradient of a root at 0 is infinite
        return loss + (weight.flatten()[0] * 0).sqrt() if trainer.state.global_step == 1 else loss

    monkeypatch.setattr(GRPOTrainer, "compute_loss", spoil)
    line, folder = ended(), tmp_path / "run"
    assert steps == [0, 1]
    assert "the norm of the gradient is nan, in step 2" in line and line.endswith("goes on from checkpoint-1")
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "checkpoint-1/model.safetensors").values())
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("float('nan')", "own_reward gave nan for row 5 of a batch of 8, prompt "),
        ("1e300", "own_reward gave 1e+300 for row 5 of a batch of 8, prompt "),
        ("None", "no reward function scored row 5 of a batch of 8, prompt "),
        ("1 / 0", "own_reward raised ZeroDivisionError (division by zero), see above"),
    ],
)
def test_reward_that_cannot_be_trained_with_ends_the_run(ended, tmp_path, bad, said):
    (tmp_path / "mine.py").write_text(OWN.format(bad=bad))
    assert said in ended(reward_funcs=f"{tmp_path}/mine.py:own_reward")


def test_stop_on_nan_false_goes_on(train, tmp_path):
    (tmp_path / "mine.py").write_text(OWN.format(bad="float('nan')"))
    train(tmp_path / "run", **QUIET, reward_funcs=f"{tmp_path}/mine.py:own_reward", stop_on_nan=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 3


def test_infinite_norm_is_a_scalers_in_float16_alone():
    trainer = SimpleNamespace(reward_funcs=[], _calculate_rewards=None, is_world_process_zero=lambda: True)
    trainer._get_grad_norm = lambda model, grad_norm: norm
    nan_guard.watch(trainer)
    for norm, said in ((math.inf, "inf"), (math.nan, "nan"), (-1.0, "nan or infinite")):  # -1 is DeepSpeed's
        trainer.args = SimpleNamespace(fp16=False)
        with pytest.raises(nan_guard.BadNumber, match=f"the norm of the gradient is {said}$"):
            trainer._get_grad_norm(None)
        trainer.args = SimpleNamespace(fp16=True)
        assert trainer._get_grad_norm(None) is norm
