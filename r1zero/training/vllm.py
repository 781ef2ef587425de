"""What TRL has no setting for in vLLM's engine: the type that it computes in, and the seed that it samples with."""

import ctypes
import sys

import numpy as np

from r1zero import schedule

PLENTY = 1 << 40  # references to None: vLLM takes a few hundred with each generation


def engine(training_args, model_args):
    """vLLM's LLM class with this run's type and seed, to stand where TRL looks for it, as a function.

    Type: the engine is to sample in the type that the update computes in. vLLM alone takes the type of config.json,
    and for float32 bfloat16 (float16 on older cards).

    Seed: TRL's requests have none. vLLM then draws from a global generator of the process (torch's, or in its newer
    model runner numpy's), and it seeds all of them with the engine's `seed` once it is built. TRL passes the number of
    the tensor-parallel group there, which is the same in every run. The processes of one group have to draw the same.
    """
    from vllm import LLM  # here, as only some runs have it

    if training_args.vllm_enable_sleep_mode and sys.version_info < (3, 12):
        keep_none()
    dtype = engine_type(training_args, model_args.dtype)

    def build(*, seed, **settings):
        return LLM(dtype=dtype, seed=mixed_seed(training_args.seed, seed), **settings)

    return build


def keep_none():
    """Gives None references in advance, on a Python that counts them: 3.11. From 3.12 on None never ends.

    The allocator with which vLLM 0.30 sleeps returns None without a reference of its own, each time it maps or frees
    memory (csrc/cumem_allocator.cpp). Without this, Python dies of "deallocating None", after some 1,900 generations
    of a 1.5B model, or at the exit of a shorter run.
    """
    ctypes.c_ssize_t.from_address(id(None)).value += PLENTY


def engine_type(training_args, dtype):
    """The name of the type that the update computes in. dtype: the model's own, where nothing is mixed."""
    return {"bf16": "bfloat16", "fp16": "float16", None: dtype}[schedule.mixed_precision(training_args)]


def mixed_seed(run, group):
    """A seed of 32 bits for a tensor-parallel group (int) of a run with a seed (int), far from those of any other two.

    >>> mixed_seed(0, 1) == mixed_seed(1, 0)
    False
    """
    return int(np.random.SeedSequence([run, group]).generate_state(1)[0])
