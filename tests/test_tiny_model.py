"""The embedded default's data, tokenizer and traces.   bash tests/run.sh tests/test_tiny_model.py"""

import itertools
import random
import re
from functools import partial

import pyarrow.parquet as pq
import pytest
import torch
from conftest import words
from safetensors.torch import load_file
from transformers import AutoTokenizer

from r1zero import tiny_model as tiny
from r1zero.grading.arithmetic import solves_countdown
from r1zero.tasks.countdown import problem_id


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def rows(tiny_data):
    return {split: pq.read_table(tiny_data / f"{split}.parquet").to_pylist() for split in ("train", "test")}


def every_order(rows):
    return [(nums, row["target"]) for row in rows for nums in sorted(set(itertools.permutations(row["nums"])))]


def warm_up_examples(rows, tokenizer, count):
    args = tiny.read_arguments(["--curriculum", "0"])
    examples = tiny.warm_up_examples(every_order(rows["train"]), tokenizer, args, random.Random(0))
    return itertools.islice(examples, count)


def test_no_held_out_problem_is_in_the_warm_up_or_the_rl_data(rows, tokenizer):
    """Read back from the very token ids that the warm-up trains on, and from the RL prompts."""
    held_out = {problem_id(row["nums"], row["target"]) for row in rows["test"]}
    train = {problem_id(row["nums"], row["target"]) for row in rows["train"]}
    seen = set(train)
    for ids, _, _ in warm_up_examples(rows, tokenizer, count=5000):
        stated = re.search(r"numbers \[([\d, ]+)\], create an equation that equals (\d+)", tokenizer.decode(ids))
        nums, target = [int(number) for number in stated[1].split(",")], int(stated[2])
        seen.add(problem_id(nums, target))
        if problem_id(nums, target) not in train:
            assert not tiny.search(nums, target), "only a fruitless search is for another problem"
    assert len(held_out) == 256 and len(train) == 913 < len(seen)
    assert not held_out & seen


def test_search_solves_every_problem_and_never_states_a_wrong_equation(rows):
    for nums, target in every_order(rows["train"] + rows["test"]):
        tried = tiny.search(nums, target)
        assert solves_countdown(tried[-1][3], nums, target)
        assert not any(solves_countdown(answer, nums, target) for *_, answer in tried[:-1])
        for _, before, candidate, _ in tried:
            for equation in re.findall(r"(\d+)([-+*/])(\d+) = (\d+)", before + candidate):
                left, operator, right, value = equation
                assert solves_countdown(left + operator + right, [int(left), int(right)], int(value))


def test_prompt_is_nine_tokens_each_number_one_and_any_text_is_encoded(rows, tokenizer):
    for row in rows["test"]:
        ids = tokenizer(row["prompt"])["input_ids"]
        assert len(ids) == 9 and tokenizer.decode(ids) == row["prompt"]
    assert all(len(tokenizer(str(number))["input_ids"]) == 1 for number in range(100))
    for text in ("Hällo wörld", "x = 1.5 🙂\n\n\t 123456", "<think> no yes </think>", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_seed_decides_the_warm_up(tmp_path, tiny_data):
    def weights(name, seed):
        flags = {"data_dir": tiny_data, "output_dir": tmp_path / name, "steps": 2, "batch_size": 4, "seed": seed}
        tiny.main(words(flags))
        return load_file(tmp_path / name / "model.safetensors")

    first, again, other = weights("first", 1), weights("again", 1), weights("other", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim == 2)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_takes_the_step_of_torchs_muon(shape):
    """Which works in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    start, gradients, steps = torch.randn(shape), torch.randn(3, *shape), []
    for optimizer in (tiny.Muon, partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")):
        p = torch.nn.Parameter(start.clone())
        stepper = optimizer([p], lr=1e-2, weight_decay=0.1)
        for gradient in gradients:
            p.grad = gradient.clone()
            stepper.step()
        steps.append((p.detach() - start).flatten())
    assert torch.nn.functional.cosine_similarity(*steps, dim=0) > 0.999
    assert steps[0].norm() == pytest.approx(steps[1].norm().item(), rel=0.02)
