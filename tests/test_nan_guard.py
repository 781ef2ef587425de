"""Numbers that are not finite end a run before they reach the weights.   bash tests/run.sh tests/test_nan_guard.py"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from r1zero.training import nan_guard
from r1zero.training.reward_functions import Scorer

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


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_step_that_would_spoil_the_weights_is_not_taken(ended, tmp_path, monkeypatch, spoiled):
    from trl import GRPOTrainer

    compute_loss, steps = GRPOTrainer.compute_loss, []

    def spoil(trainer, model, inputs, **settings):
        loss = compute_loss(trainer, model, inputs, **settings)
        steps.append(trainer.state.global_step)
        if trainer.state.global_step < 1:
            return loss
        if spoiled == "loss":
            return loss * math.nan
        weight = next(model.parameters())
        return loss + (weight.flatten()[0] * 0).sqrt()  # the gradient of a root at 0 is infinite

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


@pytest.fixture
def guarded():
    """guarded(gathered rewards, rank): a watched trainer, as far as the guard knows it."""

    def make(gathered, rank=0, fp16=False, norm=1.0):
        trainer = SimpleNamespace(
            reward_funcs=[Scorer(lambda completions, **_: [0.0] * len(completions))],
            args=SimpleNamespace(fp16=fp16),
            accelerator=SimpleNamespace(process_index=rank),
            is_world_process_zero=lambda: rank == 0,
            _calculate_rewards=lambda *_: torch.tensor(gathered),
            _get_grad_norm=lambda model, grad_norm=None: norm,
        )
        nan_guard.watch(trainer)
        return trainer

    return make


def test_every_rank_ends_and_the_one_with_the_row_names_it(guarded):
    rewards = [[1.0], [0.0], [math.nan], [1.0]]  # two ranks of two rows
    for rank, said in ((0, ""), (1, "no reward function scored row 0 of a batch of 2, prompt 'p', completion 'c'")):
        with pytest.raises(nan_guard.BadNumber) as bad:
            guarded(rewards, rank)._calculate_rewards([], ["p", "q"], ["c", "d"], [])
        assert str(bad.value) == said
    rewards = [[1.0, math.nan], [math.nan, 0.5]]  # each row by one of two functions
    assert guarded(rewards)._calculate_rewards([], ["p", "q"], ["c", "d"], []).shape == (2, 2)


def test_infinite_norm_is_a_scalers_in_float16_alone(guarded):
    assert guarded([], fp16=True, norm=math.inf)._get_grad_norm(None) == math.inf
    for norm, said in ((math.inf, "inf"), (math.nan, "nan"), (-1.0, "nan or infinite")):  # -1 is DeepSpeed's
        with pytest.raises(nan_guard.BadNumber, match=f"the norm of the gradient is {said}$"):
            guarded([], norm=norm)._get_grad_norm(None)
