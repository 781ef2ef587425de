"""What a machine and its launcher cannot do for a run, each error as one line; its speed, and its vLLM server."""

import json
import os
import shlex
import subprocess
import timeit
from functools import partial
from importlib.metadata import version
from urllib.parse import urlsplit

import torch
from trl.import_utils import is_vllm_available

from r1zero import schedule
from r1zero.training import generation

DRIVER = 580  # the oldest of NVIDIA's drivers for CUDA 13; also in setup.sh
ON_THE_CPU = "--config configs/tiny_cpu.yaml trains the tiny model on the CPU"


def why_unseen(on_the_cpu=ON_THE_CPU):
    """Return a line (str) if nvidia-smi shows a GPU, for when torch sees none; otherwise None.

    on_the_cpu: how to do without the GPU, as the end of the line.
    """
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):  # not installed, no driver, or no card
        return None
    if not shown or ", " not in shown[0]:
        return None
    name, driver = shown[0].rsplit(", ", 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f", with CUDA_VISIBLE_DEVICES={visible!r}"
    return (
        f"found a {name} with driver {driver}, and torch {torch.__version__}, built for CUDA {torch.version.cuda}, "
        f"sees no GPU{hidden}: wanted a build for CUDA (pip install -e '.[gpu]'), driver {DRIVER} or newer for CUDA "
        f"13 (apt-get install nvidia-driver-{DRIVER}) and the GPU in CUDA_VISIBLE_DEVICES; {on_the_cpu}"
    )


def product_rate(dtype):
    """Return the operations a second (float) of this processor's matrix products in a torch.dtype."""
    matrix = torch.ones(512, 512, dtype=dtype)
    return 2 * 512**3 / min(timeit.repeat(partial(torch.mm, matrix, matrix), number=1, repeat=3))


def bfloat16_speed():
    """Return how many times as fast this processor multiplies matrices in bfloat16 as in float32 (float)."""
    return product_rate(torch.bfloat16) / product_rate(torch.float32)


def errors(values, machine):
    """Return what a machine.Machine cannot do for a run (list of lines). values: every setting."""
    lines = []
    if "FSDP" in machine.strategy.name and any(part in str(values.optim) for part in ("8bit", "bnb", "paged")):
        lines.append(f"optim {values.optim} does not work with FSDP: take configs/accelerate/zero2.yaml")
    half = schedule.mixed_precision(values)
    if machine.card is not None and not values.use_cpu and half == "bf16" and not machine.bf16:
        lines.append(f"bf16 is on and {machine.name} has no bfloat16: pass --bf16 false --fp16 true")
    if not machine.is_here:
        if machine.card is None and not values.use_cpu:
            lines.append("the recipe is for a GPU and that machine has none: pass --gpus and --gpu_memory")
        return lines
    if machine.unseen and not values.use_cpu:
        return [*lines, machine.unseen]
    if machine.card is None and half and (half == "fp16" or not values.use_cpu):
        lines.append(f"{half} is on and there is no GPU: pass --use_cpu --{half} false, or leave out --config")
    if values.use_vllm:
        is_there = is_vllm_available()
        if machine.card is None and not (is_there and version("vllm").endswith("+cpu")):
            lines.append("use_vllm is on and there is no GPU: pass --use_vllm false")
        elif not is_there:
            lines.append("use_vllm is on and vllm is not installed: type pip install -e '.[gpu]', or --use_vllm false")
    return lines


def serve_command(values):
    """Return what starts vLLM's server for this run (str), on this machine unless the settings name another.

    The settings are those with which `trl vllm-serve` starts it, which ends with TRL 2.0, but for the endpoints for
    images and the address: it answers whoever reaches it, and its development endpoints would obey them. The seed is
    the run's, since the server has one of its own, 0, and TRL's requests have none.
    """
    url = urlsplit(values.vllm_server_base_url or f"http://{values.vllm_server_host}:{values.vllm_server_port}")
    words = ["vllm", "serve", values.model_name_or_path]
    words += ["--host", "127.0.0.1" if url.hostname == "0.0.0.0" else url.hostname, "--port", str(url.port or 80)]
    words += ["--dtype", str(generation.engine_type(values, values.dtype)), "--seed", str(values.seed)]
    if values.vllm_max_model_length:
        words += ["--max-model-len", str(values.vllm_max_model_length)]
    words += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    words += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(words)}"
