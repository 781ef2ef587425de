"""The benchmark of a training step works, on a shape small enough for here, and its floors are right.

bash tests/run.sh --all tests/test_benchmarks.py
"""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, words
from test_gpu import measure
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks import random_model, step, step_floors

FULL = SimpleNamespace(use_peft=False, bf16=False, fp16=False, dtype="float32", optim="adamw_torch_fused")


def small_model(tied=True, dtype=torch.float32):
    """A model with random weights, of a vocabulary of 300."""
    config = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=300,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager"
    )  # torch counts its products


@pytest.mark.slow
def test_step_is_measured_part_by_part(tmp_path):
    flags = SMALL | {"methods": "lora", "mean_length": 6, "use_vllm": False}
    row, output = measure(tmp_path, *words(flags))
    assert (row["shape"], row["parameters"], row["optimizer steps"]) == ("tiny", 473_216, 1)
    assert all(rate > 0 for rate in row["machine"].values())
    for found in row["versions"].values():
        seconds, floors = found["seconds"], found["floors"]
        assert [part for part, taken in seconds.items() if taken <= 0] == ["weight sync"]  # which is vLLM's
        assert sum(seconds.values()) == pytest.approx(found["total"])
        assert floors.keys() == {"generation", "scoring", "forward", "backward", "optimizer"}
        # The reference scores once: as much as the forward pass; with LoRA the backward pass has no more to do
        assert floors["scoring"] == pytest.approx(floors["forward"]) == floors["backward"]
        assert (found["completions"], found["steps"]) == (8, 1)
        assert 1 <= found["mean length"] <= found["longest"] <= 16
        assert 0 <= found["padding"] < 1 and 0 < found["MFU"] < 1
    assert row["versions"].keys() == {"ours", "TRL's defaults"}
    assert "times the floor" in output and "completion" in output


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_end_completions_by_chance(tied):
    """In bfloat16, as vLLM computes; 250 of the 300 tokens are the tokenizer's."""
    model = small_model(tied, torch.bfloat16)
    chance = random_model.chance_of_the_end(mean=60, longest=100)
    random_model.end_at_random(model, vocabulary=250, end=3, chance=chance)
    probabilities = model(torch.randint(4, 250, (2, 20))).logits.float().softmax(-1)
    assert probabilities[..., 3].flatten().tolist() == pytest.approx([chance] * 40, rel=0.1)
    assert probabilities[..., 250:].sum(-1).max() < 1e-4


def test_lengths_have_the_mean_that_is_asked_for():
    chance = random_model.chance_of_the_end(mean=115, longest=288)
    ends = [chance * (1 - chance) ** (length - 1) for length in range(1, 288)]
    mean = sum(length * end for length, end in enumerate(ends, start=1)) + 288 * (1 - sum(ends))
    assert math.isclose(mean, 115, rel_tol=1e-6)
    with pytest.raises(ValueError, match="--mean_length 300"):
        random_model.chance_of_the_end(mean=300, longest=288)


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied):
    model = small_model(tied)
    tokens = torch.randint(300, (3, 40))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    described = step_floors.describe(model, FULL)
    lengths = torch.full((3,), 40, dtype=torch.float64)
    masked = 3 * 40 * 39 / 2 * described.attention  # torch also counts attention to what stands after a token
    operations = step_floors.forward_operations(described, lengths, scored=lengths) + masked
    assert operations == pytest.approx(counter.get_total_flops(), rel=0.01)  # norms and biases are no products


def test_bytes_of_decoding_are_all_weights_a_token_and_what_it_attends_to():
    model = small_model()
    described = step_floors.describe(model, FULL)
    prompts, completions = torch.tensor([5.0, 5.0]), torch.tensor([1.0, 3.0])
    read = step_floors.decoding_bytes(described, prompts + completions, completions)
    # The first completion attends to 5 tokens, the second to 5, 6 and 7. A token has keys and values of 2 layers, 2
    # heads and 16 numbers of 4 bytes.
    cached = (5 + 5 + 6 + 7) * 2 * 2 * 2 * 16 * 4
    assert read == 3 * model.num_parameters() * 4 + cached


def test_lora_has_no_gradient_of_frozen_weights():
    model = small_model()
    lora = SimpleNamespace(**vars(FULL) | {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4})
    assert step_floors.backward_share(step_floors.describe(model, FULL)) == 2
    assert step_floors.backward_share(step_floors.describe(model, lora)) == 1
    assert step_floors.optimizer_bytes(step_floors.describe(model, FULL), FULL) == 7 * 4 * model.num_parameters()


def test_floor_is_the_slower_of_computing_and_reading():
    machine = {"large_rate": 100.0, "own_rate": 50.0, "bandwidth": 10.0}
    assert step.floor(machine, (200, 10)) == 2.0
    assert step.floor(machine, (200, 30)) == 3.0
