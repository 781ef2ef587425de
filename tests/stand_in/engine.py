"""vLLM's own engine on the CPU, prepared for the tests: what it samples is known, and it sleeps.

- Every completion is sampled with its place in its group as the seed: it no longer depends on how many processes share
  the batch.
- A CPU build of vLLM has no sleep mode. Here a sleep discards the weights, as level 2 does on a GPU, and what would
  need them before they are there again is refused. Each call is a line of the JSON-lines file named by ENGINE_CALLS.
"""

import json
import os
import sys

import torch
import vllm
from vllm.platforms import current_platform

GROUP = 4  # num_generations of the tests


class Engine(vllm.LLM):
    def __init__(self, **settings):
        super().__init__(**settings, enforce_eager=True)  # compiling takes longer than these short runs
        sys.stdout.write(f"\nengine computes in {self.llm_engine.model_config.dtype}\n")
        self._awake = {"weights", "kv_cache"}
        self._model = self.llm_engine.model_executor.driver_worker.model_runner.model
        load_weights = self._model.load_weights

        def load_awake(weights):
            weights = list(weights)
            self._note("load_weights", [name for name, _ in weights])
            assert "weights" in self._awake, "load_weights writes to memory that a sleep has freed"
            return load_weights(weights)

        self._model.load_weights = load_awake

    def _note(self, call, details=None):
        if "ENGINE_CALLS" in os.environ:
            with open(os.environ["ENGINE_CALLS"], "a") as file:
                file.write(json.dumps([call, details]) + "\n")

    def sleep(self, level=1):
        self._note("sleep", level)
        assert level == 2, "TRL has no other"
        self._awake = set()
        for parameter in self._model.parameters():
            parameter.data.fill_(torch.nan)

    def wake_up(self, tags=None):
        self._note("wake_up", tags)
        assert set(tags) <= {"weights", "kv_cache"} - self._awake, f"{tags} while {self._awake} are awake"
        self._awake |= set(tags)

    def reset_prefix_cache(self):
        self._note("reset_prefix_cache")
        return super().reset_prefix_cache()

    def generate(self, prompts, sampling_params, **settings):
        self._note("generate", len(prompts))
        assert self._awake == {"weights", "kv_cache"}
        lost = [name for name, parameter in self._model.named_parameters() if parameter.isnan().any()]
        assert not lost, f"a sleep has discarded {lost}, and they did not come again"
        each = []
        for place in range(len(prompts)):
            own = sampling_params.clone()
            own.seed = place % GROUP
            each.append(own)
        return super().generate(prompts, each, **settings)


def put_in_place():
    """Wherever vLLM's engine is asked for from now on, it is this one."""
    vllm.LLM = Engine
    type(current_platform).is_sleep_mode_available = lambda self: True
