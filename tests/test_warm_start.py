"""The supervised warm start, and the whole way of a pretrained model.   bash tests/run.sh tests/test_warm_start.py

REAL_MODEL=FOLDER names a folder of real weights, with a chat template, for the last test.
"""

import json
import os
import random
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import CONFIGS, ENVIRONMENT, ROOT, run_to_end, words
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoTokenizer
from trl import SFTTrainer

from r1zero import warm_start
from r1zero.grading.arithmetic import solves_countdown
from r1zero.preflight import prepare
from r1zero.tiny_model import write_trace

TRAIN = [sys.executable, ROOT / "train_countdown.py", "--config", CONFIGS / "smollm2-135m.yaml"]
SMALL = {"completions_per_step": 4, "per_device_train_batch_size": 4, "num_generations": 2, "logging_steps": 1}
SMALL |= {"max_completion_length": 16, "per_device_eval_batch_size": 4}
REAL_MODEL = os.environ.get("REAL_MODEL")


@pytest.fixture
def args():
    return warm_start.read_arguments([])[0]


@pytest.mark.parametrize("hit_within", [0, 4])
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("problem", ["3 7 5 16", "7 7 1 49", "2 3 7 8 50", "25 3 4 90 97"])
def test_searches_state_true_equations_and_break_off_at_the_rate_given(args, problem, is_whole, hit_within):
    *nums, target = map(int, problem.split())
    args.hit_within = hit_within
    rng = random.Random(0)
    tries, firsts, solved = [], set(), 0
    for _ in range(300):
        tried, is_solved = warm_start.draw_search(nums, target, is_whole, args, rng)
        *failed, (value, _, _, answer) = tried
        assert is_solved == (value == target) == solves_countdown(answer, nums, target)
        assert len(tried) <= args.longest and not any(candidate[0] == target for candidate in failed)
        text = write_trace(tried, is_solved)
        for left, operator, right, value in re.findall(r"(\d+)([-+*/])(\d+) = (\d+)", text):
            assert solves_countdown(left + operator + right, [int(left), int(right)], int(value))
        tries.append(text.count(" no"))
        firsts.add(text.split(":")[0])
        solved += is_solved
        assert is_solved or not is_whole or len(tried) == args.longest
    assert len(firsts) > 5 if hit_within else len(firsts) == 1
    if not is_whole:
        assert (300 - solved) / sum(tries) == pytest.approx(args.give_up_rate, abs=0.05)
        assert not hit_within or 0.2 < solved / 300 < 0.8


def test_search_starts_after_the_very_tokens_that_grpo_starts_from(args, tiny_model, tiny_data):
    """With a tokenizer that merges the prompt's end with the search's beginning, as Qwen's does.

    Of a whole search all is trained but whether it goes on after a failed try: " no", and the line's end after it.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = pq.read_table(tiny_data / "train.parquet").slice(0, 1).to_pylist()[0]
    prompt_ids = tokenizer(row["prompt"])["input_ids"]
    tokenizer.add_tokens([AddedToken(tokenizer.decode(prompt_ids[-1:]) + "\n", normalized=False)])
    assert tokenizer(f"{row['prompt']}\n3")["input_ids"][: len(prompt_ids)] != prompt_ids
    for args.whole_share in (0.0, 1.0):
        made = warm_start.example(row, tokenizer, args, random.Random(0))
        ids, mask = made["input_ids"], made["completion_mask"]
        assert ids[: len(prompt_ids)] == prompt_ids and ids[-1] == tokenizer.eos_token_id
        assert re.match(r"\n\d+[-+*/]\d+ = ", tokenizer.decode(ids[len(prompt_ids) :]))
        untrained = [tokenizer.decode(ids[:i]) for i in range(len(ids)) if not mask[i]]
        assert mask[: len(prompt_ids)] == [0] * len(prompt_ids) and len(mask) == len(ids)
        assert bool(untrained[len(prompt_ids) :]) == bool(args.whole_share)
        assert all(text.endswith((" no", " no\n")) for text in untrained[len(prompt_ids) :])


def test_prompt_is_not_trained_and_what_is_interrupted_is_no_model(tmp_path, tiny_model, tiny_data, monkeypatch):
    """The labels are read where Trainer has them."""

    def train(trainer):
        for row in trainer.train_dataset:
            assert row["labels"] == [-100] * 9 + row["input_ids"][9:]
        assert trainer.train_dataset.num_rows == 4
        trainer.save_model()
        raise KeyboardInterrupt

    monkeypatch.setattr(SFTTrainer, "train", train)
    with pytest.raises(KeyboardInterrupt):
        flags = {"model": tiny_model, "output_dir": tmp_path / "warm", "data_dir": tiny_data, "searches": 4}
        warm_start.main(words(flags | {"whole_share": 0}))
    assert (tmp_path / "warm.part").exists() and not (tmp_path / "warm").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"searchez": 3}, "found --searchez 3: no such setting; --help lists them all"),
        ({"config": "nowhere.yaml"}, "the settings cannot be read .*nowhere.yaml"),
        ({"output_dir": "made"}, "made is there already: remove it"),
        ({"model": "models/where"}, "model models/where is a folder that does not exist"),
    ],
)
def test_what_does_not_do_ends_in_one_line(tmp_path, monkeypatch, tiny_model, tiny_data, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").symlink_to(tiny_model)
    with pytest.raises(SystemExit, match=f"^r1zero.warm_start: {message}"):
        warm_start.main(words({"data_dir": tiny_data} | flags))


def test_what_prepares_is_no_rank_of_the_run(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit, match=r"failed \(3\)"):
        prepare.run("-c \"import os; os._exit(3 * (not {'RANK', 'WORLD_SIZE'} & set(os.environ)))\"")
    prepare.run("-c \"import os; os._exit(any('RANK' in name or 'ACCELERATE' in name for name in os.environ))\"")


def test_recipe_makes_its_problems_and_its_model_and_trains_on(tmp_path, tiny_model):
    """With random weights in the place of the pretrained ones. Its second start finds both made."""
    warm = f"-m r1zero.warm_start --model {tiny_model} --output_dir models/SmolLM2-135M-warm --searches 8"
    flags = SMALL | {"max_steps": 1, "save_steps": 1, "eval_steps": 1, "bf16": True}
    flags |= {"prepare": f"{warm} --max_steps 2"}
    printed = run_to_end([*TRAIN, *words(flags)], cwd=tmp_path)
    assert "8 searches, " in printed and "wrote models/SmolLM2-135M-warm" in printed
    assert re.search(r"processor: multiplies matrices \S+ times as fast in bfloat16 as in float32", printed)
    assert pq.read_metadata(tmp_path / "data" / "countdown_tiny" / "test.parquet").num_rows == 256
    start, warm, trained = (
        load_file(folder / "model.safetensors")
        for folder in (tiny_model, tmp_path / "models/SmolLM2-135M-warm", tmp_path / "outputs/smollm2-135m")
    )
    assert start.keys() == warm.keys() and not any(torch.equal(start[name], warm[name]) for name in start)
    assert warm.keys() == trained.keys()
    assert "wrote" not in run_to_end([*TRAIN, *words(flags), "--dry_run"], cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MODEL, reason="needs real weights: REAL_MODEL=FOLDER")
def test_real_model_trains_resumes_and_is_scored_with_its_own_chat_template(tmp_path):
    """Two steps, of which the second is resumed."""
    folder = Path(REAL_MODEL).resolve()
    make = [sys.executable, ROOT / "preprocess.py", "countdown", "--template", "chat", "--tokenizer", folder]
    printed = run_to_end([*make, "--train_size", 8, "--test_size", 4], cwd=tmp_path)
    assert "Let me solve this step by step.\n<think>" in printed
    flags = SMALL | {"model_name_or_path": folder, "data_dir": "data/countdown", "output_dir": "run"}
    flags |= {"save_steps": 1, "eval_steps": 1}
    for step in (1, 2):
        more = ["--resume_from_checkpoint", "auto"] if step == 2 else []
        printed = run_to_end([*TRAIN, *words(flags | {"max_steps": step}), *more], cwd=tmp_path)
    assert "resumes from run/checkpoint-1" in printed
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert all(entry["grad_norm"] >= 0 for entry in state["log_history"] if "grad_norm" in entry)
    score = [sys.executable, "-m", "r1zero.evaluate", "--model", "run", "--data", "data/countdown/test.parquet"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    printed = run_to_end([*score, "--max_completion_length", 16, "--use_cpu"], environment, tmp_path)
    assert "4 problems" in printed
