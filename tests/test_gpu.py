"""What only a GPU shows: the embedded default learns there in 16 bits, and the memory estimate holds."""

import importlib.util
import json
import sys

import pytest
import torch
from conftest import run_to_end, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1zero.estimate import model_shapes

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
pytestmark = [pytest.mark.slow, pytest.mark.gpu, NO_GPU]
VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")


def measure(folder, *flags):
    """Return what benchmarks/step.py writes, and all that it prints."""
    command = [sys.executable, "benchmarks/step.py", "--output_dir", folder, "--generations", "1", *flags]
    output = run_to_end(command)
    return json.loads((folder / "step.json").read_text()), output


def test_embedded_default_learns_in_16_bits(tmp_path):
    """On the CPU in float32, over three seeds: 12.9 to 18.4 % before and 73.8 to 80.9 % after."""
    paths = {"output_dir": tmp_path / "model", "data_dir": tmp_path / "data"}
    run_to_end([sys.executable, "-m", "r1zero.tiny_model", *words(paths)])
    is_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    settings = {"use_cpu": False, "bf16": is_bf16, "fp16": not is_bf16}
    settings |= paths | {"model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run"}
    run_to_end([sys.executable, "train_countdown.py", "--config", "configs/tiny_cpu.yaml", *words(settings)])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"]["accuracy"] <= 0.25 and metrics["after"]["accuracy"] >= 0.6


@pytest.mark.parametrize("generation", ["transformers", pytest.param("vllm", marks=VLLM)])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_peak_of_memory_is_estimated_from_above(tmp_path, method, generation, tiny_model, tiny_data):
    """Random weights, whose completions practically never end. vLLM sleeps during the update."""
    config = model_shapes.config_of("Qwen2.5-0.5B")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    flags = {"model": tmp_path / "model", "data": tiny_data, "versions": "ours", "eval_strategy": "no"}
    flags |= {"use_vllm": generation == "vllm", "vllm_gpu_memory_utilization": 0.3}
    flags |= {"gradient_accumulation_steps": 8, "use_peft": method == "lora"}  # 64 completions
    if method == "lora":
        flags |= {"lora_r": 32, "lora_target_modules": "all-linear", "lora_dropout": 0, "dtype": "bfloat16"}
    result, _ = measure(tmp_path, *words(flags))
    found = result["versions"]["ours"]
    assert found["peak GiB"] <= found["estimated GiB"] <= 1.5 * found["peak GiB"]
