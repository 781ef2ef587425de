"""Training without padding is that of TRL's own trainer.   bash tests/run.sh tests/test_trimmed_trainer.py"""

import json

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, TWO_STEPS
from safetensors.torch import load_file

from r1zero.training import trainer as trimmed_trainer

pytestmark = pytest.mark.gpu  # there too, if there is one

# Completions of random text, of which some end early, as the reward wants; a micro-batch is several passes
LONG = TWO_STEPS | {"use_cpu": not torch.cuda.is_available(), "max_completion_length": 32, "tokens_per_pass": 100}
LONG |= {"beta": 0.04, "lr_scheduler_type": "cosine", "log_completions": False}
ONE_MICRO_BATCH = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "save_steps": 2}
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0}
MEANS_OVER_MICRO_BATCHES = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@pytest.fixture
def both(tmp_path, train, monkeypatch):
    """Trains with padding and without; returns the logged steps and the final weights of both."""
    monkeypatch.chdir(ROOT)

    def run(**flags):
        found = []
        for trim in (False, True):
            folder = tmp_path / str(trim)
            train(folder, **LONG | flags, trim_padding=trim)
            history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
            name = "adapter_model" if flags.get("use_peft") else "model"
            steps = [entry for entry in history if "grad_norm" in entry]
            found.append((steps, load_file(folder / f"{name}.safetensors")))
        return found

    return run


def assert_equal(padded, trimmed, but=(), atol=1e-6):
    """Losses, gradients, metrics and weights to the rounding of float32."""
    (steps, weights), (trimmed_steps, trimmed_weights) = padded, trimmed
    assert len(steps) == len(trimmed_steps) == 2 and steps[0]["grad_norm"] > 0
    for one, other in zip(steps, trimmed_steps, strict=True):
        assert one.keys() == other.keys()
        measured = {name for name in one if name.startswith(("profiling/", "memory/"))}
        for name in one.keys() - {"step_time", *but, *measured}:
            expected = None if one[name] is None else pytest.approx(one[name], rel=1e-4, abs=1e-6)
            assert other[name] == expected, name  # None: the mean of nothing, where all of a batch is masked
    for name in weights:
        torch.testing.assert_close(trimmed_weights[name], weights[name], rtol=1e-4, atol=atol)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "dr_grpo", "cispo", "sapo", "luspo")]


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", *OTHERS])
def test_each_loss_is_the_same_without_padding(both, loss_type):
    """Two micro-batches make a step; where they are dealt by length, means over them weigh tokens differently."""
    but = () if loss_type == "bnpo" else (*MEANS_OVER_MICRO_BATCHES, "cispo_clip_ratio")
    assert_equal(*both(loss_type=loss_type), but)


def test_metrics_are_the_same_where_a_step_has_one_micro_batch(both):
    assert_equal(*both(**ONE_MICRO_BATCH))


def test_lora_is_the_same_without_padding(both):
    assert_equal(*both(**LORA, learning_rate=1e-3), MEANS_OVER_MICRO_BATCHES)


PACKED = {"all weights": {}, "two micro-batches": {"gradient_accumulation_steps": 2}, "LoRA": LORA}


@pytest.mark.parametrize("flags", PACKED.values(), ids=PACKED)
def test_a_prompt_computed_once_changes_nothing(both, monkeypatch, flags):
    """Several sequences a pass, and several completions a sequence."""
    sequences = []
    compute = trimmed_trainer.TrimmedGRPOTrainer.compute_packed

    def seen(self, model, input_ids, prompt_length, packs, *lengths):
        sequences.append([len(pack) for pack in packs])
        return compute(self, model, input_ids, prompt_length, packs, *lengths)

    monkeypatch.setattr(trimmed_trainer, "SAVED", 0.01)
    monkeypatch.setattr(trimmed_trainer.TrimmedGRPOTrainer, "compute_packed", seen)
    flags = ONE_MICRO_BATCH | {"tokens_per_pass": 200, "gradient_checkpointing": True} | flags
    # Adam makes steps of the rounding of keys' biases, which do nothing
    assert_equal(*both(**flags), MEANS_OVER_MICRO_BATCHES, 5e-6)
    assert max(map(max, sequences)) > 1
    assert max(map(len, sequences)) > 1 or flags["gradient_accumulation_steps"] == 2, "a micro-batch has one prompt"


@pytest.mark.slow
def test_truncated_completions_that_are_masked_are_the_same_without_padding(both):
    assert_equal(*both(mask_truncated_completions=True), MEANS_OVER_MICRO_BATCHES)


MORE = [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in ("bnpo", "vespo"))]
FEW_SIGNALS = {"beta": 0.0, "reward_funcs": "tests/stand_in/letters.py:first_group_reward"}


@pytest.mark.parametrize("loss_type", ["dapo", *MORE])
def test_rows_without_a_signal_change_no_weight(both, loss_type):
    """One group of four has a signal; the second step has none, and moves by its momentum as TRL's does."""
    but = (*MEANS_OVER_MICRO_BATCHES, "cispo_clip_ratio", "vespo/phi_seq_mean", "grad_norm")
    padded, trimmed = both(**FEW_SIGNALS, loss_type=loss_type)
    assert_equal(padded, trimmed, but)
    (first, second), (_, of_trl) = trimmed[0], padded[0]
    assert first["grad_norm"] == pytest.approx(padded[0][0]["grad_norm"], rel=1e-4)
    assert second["grad_norm"] == 0 and of_trl["grad_norm"] < 1e-6 and second["frac_reward_zero_std"] == 1


WITH = {"LoRA": LORA, "two steps": ONE_MICRO_BATCH}
WITH["GSPO"] = {"scale_rewards": "batch", "importance_sampling_level": "sequence"}


@pytest.mark.parametrize("flags", WITH.values(), ids=WITH)
def test_rows_without_a_signal_change_no_weight_with(both, flags):
    assert_equal(*both(**FEW_SIGNALS | flags), (*MEANS_OVER_MICRO_BATCHES, "grad_norm"))


def test_rows_without_a_signal_are_not_computed(tmp_path, train, monkeypatch):
    """Four rows of sixteen have one; the entropy is that of their tokens."""
    monkeypatch.chdir(ROOT)
    computed = []
    compute = trimmed_trainer.GRPOTrainer._get_per_token_logps_and_entropies

    def seen(self, model, input_ids, attention_mask, width, **flags):
        found = compute(self, model, input_ids, attention_mask, width, **flags)
        mask = attention_mask[:, -width:]
        computed.append((len(input_ids), (found[1] * mask).sum().item(), mask.sum().item()))
        return found

    monkeypatch.setattr(trimmed_trainer.GRPOTrainer, "_get_per_token_logps_and_entropies", seen)
    train(tmp_path, **LONG | FEW_SIGNALS | {"log_completions": True})
    rows, entropies, tokens = map(sum, zip(*computed, strict=True))
    assert rows == 4, "and none of the second step"
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["entropy"] for entry in history if "entropy" in entry] == [pytest.approx(entropies / tokens), None]
    advantages = pq.read_table(tmp_path / "completions" / "completions_00001.parquet")["advantage"].to_pylist()
    assert any(advantages[:4]) and advantages[4:] == [0.0] * 12


def test_no_pass_is_wider_than_its_rows_need(tmp_path, train, monkeypatch):
    monkeypatch.chdir(ROOT)
    shapes = []
    compute = trimmed_trainer.GRPOTrainer._get_per_token_logps_and_entropies

    def seen(self, model, input_ids, attention_mask, *args, **kwargs):
        shapes.append(attention_mask.any(0).all())
        return compute(self, model, input_ids, attention_mask, *args, **kwargs)

    monkeypatch.setattr(trimmed_trainer.GRPOTrainer, "_get_per_token_logps_and_entropies", seen)
    train(tmp_path, **LONG | {"max_steps": 1})
    assert shapes and all(shapes), "no column of padding alone"
