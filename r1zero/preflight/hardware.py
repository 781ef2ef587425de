"""What this machine and its launcher cannot do for a run: GPU, vLLM, compilers, strategy; each error is one line."""

import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from pathlib import Path

import torch
from trl.import_utils import is_vllm_available

from r1zero import processes, schedule
from r1zero.preflight import cards

BITSANDBYTES_OPTIMIZERS = (  # of transformers' OptimizerNames, those that bitsandbytes has; a test compares the two
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
VLLM_CAPABILITY = (7, 5)  # the oldest that vLLM 0.30's wheel of the package index is compiled for


def hardware_errors(values):
    """What the machine cannot do: a type of arithmetic, vLLM, several GPUs in one process, optimizers in 8 bits."""
    cuda = torch.cuda.is_available()
    half = schedule.mixed_precision(values)
    unseen = None if cuda or values.use_cpu else cards.why_unseen()
    errors = []
    if unseen:
        errors.append(unseen)
    elif not cuda and half and (half == "fp16" or not values.use_cpu):
        errors.append(f"{half} is on and there is no GPU: pass --use_cpu --{half} false, or leave out --config")
    if cuda and not values.use_cpu:
        errors += gpu_errors(half)
    if values.use_vllm and not unseen:
        errors += vllm_errors(values, cuda)
    needs = [f"optim {values.optim}"] if values.optim in BITSANDBYTES_OPTIMIZERS else []
    needs += [name for name in ("load_in_4bit", "load_in_8bit") if getattr(values, name)]
    if needs and importlib.util.find_spec("bitsandbytes") is None:
        errors.append(
            f"{' and '.join(needs)} needs bitsandbytes, which is not installed: type pip install -e '.[gpu]'"
        )
    return errors


def gpu_errors(half):
    """What keeps a run from the GPU that torch sees. half: bf16, fp16 or None, the type of the arithmetic."""
    errors = []
    too_old = cards.why_too_old()
    if too_old:
        errors.append(too_old)
    elif half == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        errors.append(f"bf16 is on and {torch.cuda.get_device_name(0)} has no bfloat16: pass --bf16 false --fp16 true")
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        errors.append(
            f"one process sees {torch.cuda.device_count()} GPUs and would split its batches over them: set "
            "CUDA_VISIBLE_DEVICES to one of them, or start with accelerate launch and a file of configs/accelerate"
        )
    return errors + triton_errors()


def vllm_errors(values, cuda):
    """Whether vLLM is there, in a version that TRL knows, and can compute here. cuda: whether torch sees a GPU."""
    with warnings.catch_warnings(record=True) as caught:  # how TRL says that it does not know a version
        warnings.simplefilter("always")
        available = is_vllm_available()
    if not available:
        if not cuda:
            return ["use_vllm is on and there is no GPU: pass --use_vllm false"]
        return ["use_vllm is on and vllm is not installed: type pip install -e '.[gpu]', or --use_vllm false"]
    errors = [f"{warning.message} Type pip install -e '.[gpu]', or pass --use_vllm false" for warning in caught]
    if not cuda:
        return errors + vllm_errors_without_gpu(values)
    if torch.cuda.get_device_capability(0) < VLLM_CAPABILITY and not cards.why_too_old():  # which says it already
        errors.append(
            f"use_vllm is on and vLLM has nothing for {torch.cuda.get_device_name(0)}, of compute capability "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(0)))}: pass --use_vllm false"
        )
    return errors


def vllm_errors_without_gpu(values):
    """Whether vLLM is built for the CPU, and what such a build cannot do."""
    from vllm.platforms import current_platform  # takes seconds, and is there only where vLLM is

    if not current_platform.is_cpu():
        return ["use_vllm is on and there is no GPU, which this build of vLLM needs: pass --use_vllm false"]
    if values.vllm_mode == "server":
        return ["vllm_mode is server, which gets its weights from a GPU, and there is none: pass --vllm_mode colocate"]
    errors = []
    if values.vllm_enable_sleep_mode and not current_platform.is_sleep_mode_available():
        errors.append(
            "vllm_enable_sleep_mode is on, which vLLM has on a GPU only: pass --vllm_enable_sleep_mode false"
        )
    return errors + compiler_errors("g++", "vLLM on a CPU", ("CXX", "g++"))


def triton_errors():
    """Whether there is what compiles for Triton, with which both TRL and vLLM compute on a GPU."""
    return compiler_errors("gcc", "Triton, with which TRL and vLLM compute,", ("CC", "gcc", "clang"))


def compiler_errors(package, who, names):
    """Whether there is what compiles for torch when vLLM starts: a compiler, and Python's headers.

    package: apt's for the compiler; names: an environment variable that names one, then the commands that are looked
    for. The headers are looked for where Triton looks for them.
    """
    variable, *commands = names
    lacking = []
    if not os.environ.get(variable) and not any(shutil.which(command) for command in commands):
        lacking.append(package)
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's own, without headers
        scheme = "posix_prefix"
    if not Path(sysconfig.get_path("include", scheme), "Python.h").is_file():
        lacking.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    if not lacking:
        return []
    return [f"{who} compiles with a C compiler and Python's headers: type apt-get install {' '.join(lacking)}"]


def strategy_errors(values, strategy):
    """What does not go with how the processes share the model. strategy: machine.Strategy."""
    ranks, parallel = processes.count(), values.vllm_tensor_parallel_size
    errors = []
    if values.use_vllm and values.vllm_mode == "colocate" and ranks % parallel:
        sizes = [str(size) for size in range(1, ranks + 1) if ranks % size == 0]
        errors.append(
            f"vllm_tensor_parallel_size {parallel} does not divide the {ranks} process{'es' * (ranks > 1)}: "
            f"set --vllm_tensor_parallel_size to {' or '.join(sizes)}"
        )
    if "FSDP" in strategy.name and values.optim in BITSANDBYTES_OPTIMIZERS:
        errors.append(
            f"optim {values.optim} of bitsandbytes does not work with FSDP: take configs/accelerate/zero2.yaml"
        )
    if strategy.deepspeed and importlib.util.find_spec("deepspeed") is None:
        errors.append("the launcher asks for DeepSpeed, which is not installed: type pip install -e .")
    # DeepSpeed compiles its operators for the CPU (communication, AdamW of an offloaded optimizer) when first used
    if strategy.deepspeed and (values.use_cpu or strategy.offload):
        packages = {"g++": "g++", "ninja": "ninja-build"}
        lacking = [package for tool, package in packages.items() if not shutil.which(tool)]
        if lacking:
            errors.append(
                f"DeepSpeed compiles an operator with g++ and ninja; type apt-get install {' '.join(lacking)}"
            )
    return errors
