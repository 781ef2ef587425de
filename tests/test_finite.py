"""Numbers that are not finite end a run before they reach the weights.   bash tests/run.sh tests/test_finite.py"""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SMALL, train_here
from safetensors.torch import load_file

from r1zero.training import loss_watch, reward_functions
from r1zero.training.nan_guard import BadNumber

TINY = ROOT / "configs" / "tiny_cpu.yaml"
OWN = """
calls = 0

def own_reward(completions, **columns):
    global calls
    calls += 1
    return [{bad} if row == 5 and calls > 2 else float(row) for row in range(len(completions))]
"""


@pytest.fixture
def train(tmp_path, tiny_model, tiny_data, capsys, monkeypatch):
    """Three steps with a checkpoint after each, which end early; the line that says why, and the run's folder."""

    def run(**flags):
        paths = {"output_dir": tmp_path / "run", "model_name_or_path": tiny_model, "data_dir": tiny_data}
        quiet = {"eval_strategy": "no", "eval_on_start": False, "max_steps": 3, "save_steps": 1}
        with pytest.raises(SystemExit) as ended:
            train_here(TINY, **SMALL | quiet | flags | paths)
        assert ended.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_countdown.py")]
        return line, tmp_path / "run"

    return run


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_that_would_spoil_the_weights_is_not_taken(train, monkeypatch, where):
    from trl import GRPOTrainer

    compute_loss, steps = GRPOTrainer.compute_loss, []

    def spoil(trainer, model, inputs, **settings):
        loss = compute_loss(trainer, model, inputs, **settings)
        steps.append(trainer.state.global_step)
        if trainer.state.global_step == 1:
            if where == "loss":
                return loss * math.nan
            weight = next(model.parameters())
            return loss + (weight.flatten()[0] * 0).sqrt()  # the gradient of a root at 0 is infinite
        return loss

    monkeypatch.setattr(GRPOTrainer, "compute_loss", spoil)
    line, folder = train()
    assert steps == [0, 1]
    said = "the loss is nan" if where == "loss" else "the norm of the gradient is nan"
    assert said in line and "in step 2" in line and line.endswith("goes on from checkpoint-1")
    (saved,) = folder.glob("bad_number_step2_*")
    assert str(saved) in line
    batch = torch.load(saved, weights_only=True)
    assert math.isnan(batch["value"]) and batch["micro_batches"][0]["completion_ids"].shape[0] == 8
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "checkpoint-1/model.safetensors").values())
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("fp16", [True, False])
def test_infinite_gradient_that_deepspeed_leaves_out_in_float16_ends_nothing(fp16):
    """Its scaler's, which accelerate does not know of. In bfloat16 such a gradient is a fault."""
    trainer = SimpleNamespace(compute_loss=None, is_deepspeed_enabled=True, accelerator=SimpleNamespace(scaler=None))
    trainer.model_wrapped = SimpleNamespace(get_global_grad_norm=lambda: math.inf)
    watch = loss_watch.LossWatch(trainer)
    with contextlib.nullcontext() if fp16 else pytest.raises(BadNumber, match="norm of the gradient is inf"):
        watch.on_step_end(SimpleNamespace(fp16=fp16), None, None)


@pytest.mark.parametrize(
    ("bad", "said"), [("float('nan')", "gave nan"), ("float('inf')", "gave inf"), ("1e300", "gave 1e+300")]
)
def test_reward_that_is_not_finite_ends_the_run_with_its_row(train, tmp_path, bad, said):
    (tmp_path / "mine.py").write_text(OWN.format(bad=bad))
    line, folder = train(reward_funcs=f"{tmp_path}/mine.py:own_reward")
    assert f"own_reward {said} for row 5 of a batch of 8, prompt " in line and ", completion '" in line
    (saved,) = folder.glob("bad_number_step*")
    assert torch.load(saved, weights_only=True)["row"] == 5


def test_stop_on_nan_false_goes_on(tmp_path, tiny_model, tiny_data):
    (tmp_path / "mine.py").write_text(OWN.format(bad="float('nan')"))
    paths = {"output_dir": tmp_path / "run", "model_name_or_path": tiny_model, "data_dir": tiny_data}
    quiet = {"eval_strategy": "no", "eval_on_start": False, "max_steps": 2, "save_strategy": "no"}
    own = {"reward_funcs": f"{tmp_path}/mine.py:own_reward", "stop_on_nan": False}
    train_here(TINY, **SMALL | quiet | own | paths)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2


class TestWatch:
    """Reward functions that are called as TRL calls them."""

    def score(self, *functions, size=3):
        columns = {"target": list(range(size)), "log_extra": None, "log_metric": None}
        texts = [f"text {row}" for row in range(size)]
        return [
            function(prompts=[f"prompt {row}" for row in range(size)], completions=texts, **columns)
            for function in reward_functions.watch(functions)
        ]

    def test_function_that_raises_names_its_first_bad_row(self):
        def fragile(completions, target, **columns):
            return [1 / (value - 1) for value in target]

        with pytest.raises(BadNumber, match="fragile raised ZeroDivisionError .* for row 1 of a batch of 3, .*text 1"):
            self.score(fragile)

    def test_error_of_the_whole_batch_alone_is_raised_as_it_is(self):
        def whole(completions, **columns):
            if len(completions) > 1:
                raise KeyError("only together")
            return [0.0]

        with pytest.raises(KeyError, match="only together"):
            self.score(whole)

    def test_row_without_a_reward_from_any_function_is_named(self):
        def even(completions, target, **columns):
            return [1.0 if value % 2 == 0 else None for value in target]

        def odd(completions, target, **columns):
            return [1.0 if value == 1 else None for value in target]

        assert self.score(even, odd) == [[1.0, None, 1.0], [None, 1.0, None]]
        with pytest.raises(BadNumber, match="no reward function scored row 3 of a batch of 4, prompt 'prompt 3'"):
            self.score(even, odd, size=4)
