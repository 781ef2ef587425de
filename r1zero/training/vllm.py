"""Give vLLM's engine the run's arithmetic type and seed: TRL has a setting for neither."""

import ctypes
import sys

import numpy as np

from r1zero import schedule

PLENTY = 1 << 40  # references to None: vLLM takes a few hundred with each generation


def engine(training_args, model_args):
    """Return a function that builds vLLM's LLM with this run's type and seed, to replace the class in TRL.

    Type: the engine has to sample in the update's type. By itself vLLM takes the type of config.json, and bfloat16
    instead of float32 (float16 on older cards).

    Seed: TRL's requests have none, so vLLM draws from a global generator of the process (torch's, or numpy's in its
    newer model runner). It seeds these with the engine's `seed` once it is built. TRL passes the number of the
    tensor-parallel group as `seed`, the same in every run. The processes of one group have to draw the same.
    """
    from vllm import LLM  # here, as only some runs have it

    if training_args.vllm_enable_sleep_mode and sys.version_info < (3, 12):
        keep_none()
    dtype = engine_type(training_args, model_args.dtype)

    def build(*, seed, **settings):
        return LLM(dtype=dtype, seed=mixed_seed(training_args.seed, seed), **settings)

    return build


def keep_none():
    """Add references to None in advance, for Python 3.11. From 3.12 on None is immortal.

    The allocator of vLLM 0.30's sleep mode returns None without taking a reference, each time it maps or frees memory
    (csrc/cumem_allocator.cpp). Without this, Python dies of "deallocating None" after some 1,900 generations of a 1.5B
    model, or at the exit of a shorter run.
    """
    ctypes.c_ssize_t.from_address(id(None)).value += PLENTY


def engine_type(training_args, dtype):
    """Return the name of the type that the update uses. dtype: the model's own, for a run without mixed precision."""
    return {"bf16": "bfloat16", "fp16": "float16", None: dtype}[schedule.mixed_precision(training_args)]


def mixed_seed(run, group):
    """Return a seed of 32 bits for a tensor-parallel group (int) of a run with the seed `run` (int).

    Any other pair has an unrelated seed.

    >>> mixed_seed(0, 1) == mixed_seed(1, 0)
    False
    """
    return int(np.random.SeedSequence([run, group]).generate_state(1)[0])
