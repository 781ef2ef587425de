"""The plan of steps and memory before a run.   bash tests/run.sh tests/test_estimate.py"""

import json
from argparse import Namespace
from contextlib import nullcontext

import pyarrow.parquet as pq
import pytest
import torch
from conftest import CONFIGS, each_case, settings
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils

from r1zero import schedule
from r1zero.estimate import hours, memory, model_shapes, plan
from r1zero.preflight.machine import read_strategy
from r1zero.preflight.model import without_weights
from r1zero.report import run_folder


def deepspeed(stage, processes, offload="none"):
    environment = {"WORLD_SIZE": str(processes), "ACCELERATE_USE_DEEPSPEED": "true"}
    environment |= {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": offload}
    return read_strategy(environment | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)})


ONE = read_strategy({})
STRATEGIES = {
    "one": ONE,
    "DDP": read_strategy({"WORLD_SIZE": "8"}),
    "FSDP2": read_strategy({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
    "ZeRO-0 alone": deepspeed(0, 1),
    "ZeRO-2 of two": deepspeed(2, 2),
    "ZeRO-2": deepspeed(2, 8),
    "ZeRO-3": deepspeed(3, 8),
    "offload": deepspeed(2, 8, offload="cpu"),
}
BASE = settings("--beta", 0.001, config=CONFIGS / "qwen2.5-1.5b.yaml")


def values(**changed):
    """Return the settings of configs/qwen2.5-1.5b.yaml with TinyZero's beta, and less for vLLM."""
    smaller = {"vllm_gpu_memory_utilization": 0.3, "per_device_eval_batch_size": 64, "max_steps": 500, "lora_r": 32}
    return Namespace(**vars(BASE) | smaller | changed)


@pytest.fixture(scope="module")
def model():
    return without_weights(model_shapes.config_of("Qwen2.5-1.5B"))


@pytest.mark.parametrize(
    ("a_generation", "iterations", "accumulation", "steps"),
    [
        pytest.param(2, 2, 1, 32, id="two steps a generation, each of them twice"),
        pytest.param(4, 1, 3, 6, id="a generation of a step and a third, and an epoch of two and two thirds"),
        pytest.param(1, 1, 3, 6, id="three generations a step, and an epoch of two and two thirds"),
    ],
)
def test_steps_and_completions_are_those_of_trl(
    tmp_path, tiny_model, tiny_data, a_generation, iterations, accumulation, steps
):
    """Two epochs of 16 problems, 2 a micro-batch; Trainer accumulates nothing beyond the end of an epoch."""
    sampled = []
    batch = {"num_train_epochs": 2, "num_generations": 4, "per_device_train_batch_size": 8}
    batch |= {"steps_per_generation": a_generation, "gradient_accumulation_steps": accumulation}
    batch |= {"num_iterations": iterations, "logging_steps": 1}
    cpu = {"use_cpu": True, "bf16": False, "max_completion_length": 2, "save_strategy": "no", "disable_tqdm": True}
    trainer = GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=lambda completions, **columns: sampled.extend(completions) or [0.0] * len(completions),
        args=GRPOConfig(output_dir=str(tmp_path), **batch | cpu),
        train_dataset=Dataset(pq.read_table(tiny_data / "train.parquet", columns=["prompt"]).slice(0, 16)),
    )
    trainer.train()
    planned = schedule.schedule(trainer.args, 16, processes=1)
    assert planned["steps"] == 2 * planned["steps_an_epoch"] == trainer.state.global_step == steps
    an_epoch = len(trainer.get_train_dataloader())
    counted, _ = run_folder.count_completions(trainer.state.log_history, trainer.args, an_epoch)
    assert planned["completions_in_all"] == counted == len(sampled) == 128


@each_case("memory.tsv")
def test_memory_of_a_card_is_said_in_parts_and_peaks(model, case):
    """1,543,714,304 parameters of 4 bytes are 5.75 GiB, divided by the shards of the strategy."""
    changed = values(**json.loads(case["changed"]))
    planned = plan.make_plan(changed, model, 327_680, 256, STRATEGIES[case["strategy"]], 80 * memory.GIB)
    (line,) = [line for line in planned.lines if line.startswith("memory")]
    assert line == f"memory a card, estimate in GiB: {case['said']}"


def small_model(dtype="float32", **shape):
    config = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 512, "vocab_size": 512}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "model_type": "qwen2"}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config | shape), dtype=dtype).train()


def peak_bytes(compute, path):
    """Return the most bytes that a function allocates at a time on the CPU, beside what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute()
    profile.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@each_case("passes.tsv")
def test_bound_of_a_pass_is_what_torch_allocates_or_up_to_twice_that(tmp_path, monkeypatch, case):
    """Counted on a CPU, whose passes allocate what those of a GPU do. On a GPU, test_gpu.py compares a whole run.

    The head has small tiles here, whose folding and sums allocate nothing, as TRL's kernels for a GPU do not.
    """

    def add(total, left, right):
        if total.dtype == left.dtype:
            total.addmm_(left, right)

    for name, function in {"_forward_tile": None, "_backward_tile": None, "_addmm_fp32": add}.items():
        monkeypatch.setattr(chunked_logprob, name, function or (lambda *arguments, **settings: None))
    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 512)
    monkeypatch.setattr(memory, "TILE_ENTRIES", 512)

    rows = int(case["rows"])
    batch = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows}
    settings = values(beta=0, use_vllm=False, **batch | json.loads(case["changed"]))
    model = small_model(settings.dtype, **json.loads(case["shape"]))
    parts, peaks = memory.memory(settings, model, ONE, 128, None).values()
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if settings.use_peft:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        model.enable_input_require_grads()
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.randint(0, 512, (rows, 128))
    mask = torch.ones_like(ids)
    mask[:, :5] = 0  # without padding attention has no mask

    def score():
        total = 0
        for some in torch.arange(rows).split(memory.rows_of_a_pass(settings, ONE, rows, 128)):
            labels = ids[some].masked_fill(mask[some] == 0, -100)
            with torch.autocast("cpu", dtype=torch.bfloat16) if settings.bf16 else nullcontext():
                found = model(input_ids=ids[some], attention_mask=mask[some], labels=labels, fused_lm_head=True)
            total = total + found.log_probs.sum()
        return total

    score().backward()  # so that the gradients are there
    update = peak_bytes(lambda: score().backward(), tmp_path / "update.json")
    before = sum(parts[part] for part in ("weights", "gradients", "optimizer", "context"))
    assert 1 <= (peaks["update"] - before) / update <= 2
    with torch.no_grad():
        assert 1 <= parts["evaluation"] / peak_bytes(score, tmp_path / "evaluation.json") <= 2


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "up_proj"], r".*\.(q|v)_proj", ["layers.1.self_attn.q_proj"]], ids=str
)
def test_adapters_have_the_parameters_that_peft_makes(tiny_model, targets):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    counted = memory.trained_parameters(model, values(use_peft=True, lora_target_modules=targets))
    adapted = get_peft_model(model, LoraConfig(r=32, target_modules=targets))
    assert counted == adapted.get_nb_trainable_parameters()[0] > 0


def test_plan_says_what_fits_and_what_is_not_known_yet(model):
    """Its other lines are in tests/test_preflight.py."""
    planned = plan.make_plan(values(), model, 327_680, 256, ONE, 80 * memory.GIB)
    steps, _, machine, _, disk = planned.lines
    assert steps.endswith("10,240 steps an epoch of 327,680 problems, 500 steps and 128,000 completions in this run")
    assert machine == "machine: one process; vLLM in the same processes, tensor parallel 1"
    assert disk == "disk: 61.75 GB for 3 checkpoints at once and the final model"
    smaller = plan.make_plan(values(), model, 327_680, 256, ONE, 24 * memory.GIB)
    assert any(line.startswith("will not fit in update: try a smaller --per_device_train") for line in smaller.lines)
    assert planned.fits and not smaller.fits
    endless = values(max_steps=-1, num_train_epochs=3, vllm_mode="server")
    steps, _, machine, card, *_ = plan.make_plan(endless, model, None, 0, ONE, 80 * memory.GIB).lines
    assert steps.endswith("; the number of problems is not known yet, nor is that of the steps in 3 epochs")
    assert "a vLLM server at http://0.0.0.0:8000, awaited for 240 s" in machine
    assert "estimate in GiB without the prompts, whose length is not known yet: weights 5.8" in card
    able = hours.find_card("h100")._asdict()
    assert plan.time_line(able, endless, model, None, None, 0, ONE).startswith("time: not known")


def test_shapes_have_the_parameters_that_the_hub_counts():
    counted = {"Qwen2.5-3B-Instruct": 3_085_938_688, "Qwen/Qwen3-1.7B-Base": 1_720_574_976}
    counted |= {"meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400, "models/SmolLM2-360M-warm": 361_821_120}
    assert {name: without_weights(model_shapes.config_of(name)).num_parameters() for name in counted} == counted


@each_case("least_hours.tsv")
def test_least_hours_are_those_counted_by_hand(model, case):
    """One generation of 256 completions of 256 tokens, after 32 prompts of 64, at 312 TFLOPS.

    A pass over all tokens is 2 x (1.310 billion x 256 x 320 + the head's 0.233 billion x 256 x 256) operations, 0.7861
    seconds; sampling computes each prompt once, 0.6657 seconds. A batch of 64 problems takes 0.9848: the weights are
    read 256 times at 2 TB/s, 0.3952, and three passes take a quarter of 0.7861 each.
    """
    changed = values(**{"max_steps": 1, "eval_strategy": "no"} | json.loads(case["changed"]))
    able, held_out = {"operations": 312e12, "bytes": float(case["bandwidth"])}, int(case["held_out"] or 0) or None
    found, tokens = hours.least_hours(able, changed, model, None, held_out, 256, ONE)
    seconds = float(case["sampling"]) + int(case["passes"]) * 0.7861 + int(case["batches"]) * 0.9848
    assert found * 3600 == pytest.approx(seconds, rel=1e-4) and tokens == (64, 256)


def test_card_is_found_by_torchs_name():
    named = {"NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100-PCIE-40GB": "a100-40", "Tesla T4": "t4"}
    named |= {"NVIDIA L4": "l4", "NVIDIA GeForce RTX 4090": "rtx-4090"}
    assert {name: hours.find_card(name) for name in named} == {name: hours.CARDS[card] for name, card in named.items()}
    assert hours.find_card("NVIDIA GB200") is None, "faster than a B200"
    assert hours.find_card("a100") is None, "of two memories"
