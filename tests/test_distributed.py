"""Runs of several processes, on two machines and with vLLM's stand-in, all on the CPU, from the shipped configs.

bash tests/run.sh --all tests/test_distributed.py
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ENVIRONMENT, PATIENCE, ROOT, words
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
STRATEGIES = ROOT / "configs" / "accelerate"
STAND_IN = ROOT / "tests" / "stand_in"
# Two steps of 16 completions, 4 a group, whatever the number of processes
COMPLETIONS, ACCUMULATION = 16, 2
SMALL = {
    "num_generations": 4,
    "gradient_accumulation_steps": ACCUMULATION,
    "steps_per_generation": ACCUMULATION,
    "max_completion_length": 8,
    "max_steps": 2,
    "lr_scheduler_type": "constant",
    "reward_funcs": "tests/stand_in/letters.py:letters_reward",
    "logging_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
}


@dataclass
class Run:
    folder: Path
    console: str

    @property
    def history(self):
        """The logged entries of the two steps."""
        log = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in log if "grad_norm" in entry]

    def grad_norms(self):
        return [entry["grad_norm"] for entry in self.history]

    def weights(self):
        return load_file(self.folder / "model.safetensors")

    def ran_as(self):
        return re.findall(r"^ran as (.*)$", self.console, flags=re.MULTILINE)

    def calls(self, rank=0):
        """What a process asked of vLLM's stand-in, in order."""
        lines = (self.folder.parent / "vllm.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call["rank"] == rank]

    def arrived(self, generation, rank=0):
        """Weights that vLLM's stand-in was given before its n-th generation."""
        return load_file(self.folder.parent / f"vllm.jsonl.rank{rank}.{generation}.safetensors")


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_model, tiny_data):
    """Trains with a shipped strategy on the CPU; `machines` launchers share the processes between them."""

    def run(strategy, processes=2, machines=1, **flags):
        folder = tmp_path_factory.mktemp(strategy)
        config = yaml.safe_load((STRATEGIES / f"{strategy}.yaml").read_text())
        on_cpu = config["distributed_type"] != "FSDP"  # accelerate would make DDP of it: see stand_in/train.py
        config["use_cpu"] = on_cpu
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
        settings = SMALL | {"use_cpu": on_cpu, "per_device_train_batch_size": COMPLETIONS // processes // ACCUMULATION}
        settings |= {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": folder / "run"} | flags
        environment = ENVIRONMENT | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja, for DeepSpeed
            "VLLM_STAND_IN_LOG": str(folder / "vllm.jsonl"),
        }
        if flags.get("use_vllm"):
            environment["PYTHONPATH"] = str(STAND_IN)
        port = free_port()
        launchers = []
        for machine in range(machines):
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", folder / "accelerate.yaml"]
            command += ["--num_processes", processes, "--main_process_port", port, "--main_process_ip", "127.0.0.1"]
            command += ["--num_machines", machines, "--machine_rank", machine]
            command += ["tests/stand_in/train.py", "--config", "configs/tiny_cpu.yaml", *words(settings)]
            launchers.append(
                subprocess.Popen(
                    [str(word) for word in command],
                    cwd=ROOT,
                    env=environment,
                    stdout=(folder / f"console{machine}").open("w"),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        try:
            statuses = [launcher.wait(timeout=PATIENCE) for launcher in launchers]
        finally:
            for launcher in launchers:  # one that waits for another, which has failed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)
        consoles = [(folder / f"console{machine}").read_text() for machine in range(machines)]
        assert statuses == [0] * machines, "\n".join(console[-4000:] for console in consoles)
        return Run(folder / "run", "".join(consoles))

    return run


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def alone(train):
    """The reference: one process with the whole batch."""
    return train("single", processes=1)


def test_reference_run_learns_something_to_compare(alone, tiny_model):
    assert alone.ran_as() == ["1 processes on 1 machines, NO"]
    assert min(alone.grad_norms()) > 0.1
    assert distance(load_file(tiny_model / "model.safetensors"), alone.weights()) > 0.1


def distance(weights, others):
    """Euclidean, over all parameters of `others`."""
    return sum((weights[name] - others[name]).square().sum() for name in others).sqrt()


def assert_same(run, reference, tiny_model):
    """Both steps' gradients, and the weights they lead to, are the reference's; measured: 1e-6 and 5e-6 apart."""
    assert run.grad_norms() == pytest.approx(reference.grad_norms(), rel=1e-4)
    initial, expected, found = load_file(tiny_model / "model.safetensors"), reference.weights(), run.weights()
    assert found.keys() - {"lm_head.weight"} == expected.keys()  # some strategies write the tied head out
    assert distance(found, expected) < 1e-3 * distance(initial, expected)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", "MULTI_CPU"),  # what MULTI_GPU becomes on the CPU
        ("zero1", "DEEPSPEED 1"),
        ("zero2", "DEEPSPEED 2"),
        ("zero3", "DEEPSPEED 3"),
        ("zero3_offload", "DEEPSPEED 3"),
        ("fsdp2", "FSDP"),
    ],
)
def test_two_processes_train_as_one(train, alone, tiny_model, strategy, kind):
    run = train(strategy)
    assert run.ran_as() == [f"2 processes on 1 machines, {kind}"]
    assert_same(run, alone, tiny_model)


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "MULTI_CPU"), ("zero2", "DEEPSPEED 2")])
def test_two_machines_train_as_one(train, alone, tiny_model, strategy, kind):
    run = train(strategy, machines=2)
    assert run.ran_as() == [f"2 processes on 2 machines, {kind}"]
    assert_same(run, alone, tiny_model)


VLLM = {
    key: value
    for key, value in yaml.safe_load((ROOT / "configs" / "qwen2.5-3b.yaml").read_text()).items()
    if "vllm" in key
} | {"vllm_max_model_length": 256}  # the tiny model has 512


@pytest.fixture(scope="module")
def colocated(train):
    """One process with vLLM's stand-in, a checkpoint after each step, and evaluations before and after both."""
    return train(
        "single",
        processes=1,
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=100,
        per_device_eval_batch_size=256,
        save_strategy="steps",
        save_steps=1,
        **VLLM,
    )


def test_vllm_is_built_as_the_recipe_says(colocated, tiny_model):
    (engine,) = [call for call in colocated.calls() if call["call"] == "LLM"]
    assert engine["model"] == str(tiny_model)
    assert engine["gpu_memory_utilization"] == VLLM["vllm_gpu_memory_utilization"]
    assert engine["enable_sleep_mode"] is VLLM["vllm_enable_sleep_mode"] is True
    assert engine["max_model_len"] == 256 and engine["tensor_parallel_size"] == 1
    assert engine["max_num_seqs"] == COMPLETIONS


def test_vllm_wakes_takes_weights_generates_and_sleeps(colocated, tiny_model):
    calls = [(call["call"], call.get("tags") or call.get("level")) for call in colocated.calls()]
    weights = len(load_file(tiny_model / "model.safetensors"))
    generation = [
        ("wake_up", ["weights"]),
        *[("load_weights", None)] * weights,
        ("reset_prefix_cache", None),
        ("wake_up", ["kv_cache"]),
        ("generate", None),
        ("sleep", 2),
    ]
    assert calls == [("LLM", None), ("sleep", 2), *generation * 4]  # two steps between two evaluations


def test_vllm_samples_with_the_weights_of_each_step(colocated, tiny_model):
    folders = [tiny_model, tiny_model, colocated.folder / "checkpoint-1", colocated.folder]
    for generation, folder in enumerate(folders):
        expected, arrived = load_file(folder / "model.safetensors"), colocated.arrived(generation)
        assert arrived.keys() == expected.keys()
        assert all(torch.equal(arrived[name], expected[name]) for name in expected)
    generations = [call for call in colocated.calls() if call["call"] == "generate"]
    assert [len(call["completions"]) for call in generations] == [256, COMPLETIONS, COMPLETIONS, 256]
    recipe = yaml.safe_load((ROOT / "configs" / "tiny_cpu.yaml").read_text())
    assert all(call["sampling_params"]["temperature"] == recipe["temperature"] for call in generations)
    assert all(call["sampling_params"]["max_tokens"] == SMALL["max_completion_length"] for call in generations)


def test_vllm_in_float32_trains_as_transformers_own_generation(colocated, alone, tiny_model):
    assert_same(colocated, alone, tiny_model)


def test_zero3_with_tensor_parallel_gives_each_engine_whole_weights(train, colocated, tiny_model):
    run = train("zero3", **VLLM | {"vllm_tensor_parallel_size": 2})
    assert run.ran_as() == ["2 processes on 1 machines, DEEPSPEED 3"]
    ranks = [[call for call in run.calls(rank) if call["call"] != "LLM"] for rank in (0, 1)]
    assert [{**call, "rank": 1} for call in ranks[0]] == ranks[1], "both engines of a pair see the same calls"
    engines = [call for rank in (0, 1) for call in run.calls(rank) if call["call"] == "LLM"]
    assert [(engine["tensor_parallel_size"], engine["seed"]) for engine in engines] == [(2, 0), (2, 0)]
    for generation in (0, 1):
        expected = colocated.arrived(generation + 1)  # its first was the evaluation
        for rank in (0, 1):
            arrived = run.arrived(generation, rank)
            assert arrived.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(arrived[name], expected[name], rtol=0, atol=1e-5)
    assert_same(run, colocated, tiny_model)


def test_lora_reaches_vllm_merged_into_the_base_weights(train, tiny_model):
    flags = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}
    run = train("single", processes=1, save_strategy="steps", save_steps=1, learning_rate=1e-3, **flags, **VLLM)
    base = load_file(tiny_model / "model.safetensors")
    adapter = load_file(run.folder / "checkpoint-1" / "adapter_model.safetensors")
    merged = dict(base)
    for name, low in adapter.items():
        if "lora_A" in name:  # (r, in); lora_B is (out, r)
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            merged[f"{module}.weight"] = base[f"{module}.weight"] + 8 / 4 * adapter[name.replace("_A", "_B")] @ low
    assert sum(not torch.equal(merged[name], base[name]) for name in base) == 14  # 7 matrices in each of 2 layers
    for generation, expected in enumerate([base, merged]):
        arrived = run.arrived(generation)
        assert arrived.keys() == expected.keys(), "base names alone, and all of them"
        for name in expected:
            torch.testing.assert_close(arrived[name], expected[name], rtol=0, atol=1e-6)


def test_vllm_holds_float32_where_the_run_computes_in_it(colocated):
    (engine,) = [call for call in colocated.calls() if call["call"] == "LLM"]
    assert engine["engine_dtype"] == "float32"


@pytest.mark.parametrize(
    ("flag", "checkpoint", "dtype"), [("bf16", "float16", "bfloat16"), ("fp16", "bfloat16", "float16")]
)
def test_vllm_holds_the_dtype_of_autocast_whatever_the_checkpoint(
    train, tiny_model, tmp_path, flag, checkpoint, dtype
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text()) | {"dtype": checkpoint}
    (model / "config.json").write_text(json.dumps(config))
    run = train("single", processes=1, max_steps=1, model_name_or_path=model, **{flag: True}, **VLLM)
    (engine,) = [call for call in run.calls() if call["call"] == "LLM"]
    assert engine["engine_dtype"] == dtype
