"""train_countdown.py for the tests of several processes and of vLLM: the same script, prepared and then run as it is.

- Sampling takes a row's place in its group where it would take a random number, and vLLM takes it for a seed: the
  completions, and with them the gradient, no longer depend on how many processes share the batch.
- FSDP: accelerate has it only between GPUs, so it is told that gloo is between GPUs.

The last line of a run says what accelerate made of the launcher's configuration.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as if the script itself had been started

import torch  # noqa: E402
from accelerate.state import AcceleratorState, DistributedType, PartialState  # noqa: E402

from r1zero.training import generation  # noqa: E402

GROUP = 4  # num_generations of the tests


def place_in_group(probabilities, num_samples):
    """torch.multinomial where the random number is the row's place in its group: 0.1, 0.35, 0.6 or 0.85.

    probabilities: (B, V); num_samples: 1. Returns token ids (B, 1). In the tests' runs no cumulative probability comes
    nearer to these than 2e-5, so that rounding, which may differ with the size of the batch, never decides a token.
    """
    assert num_samples == 1
    places = (torch.arange(len(probabilities)) % GROUP + 0.4) / GROUP  # (B,)
    below = probabilities.double().cumsum(-1)  # (B, V)
    return (below < places[:, None] * below[:, -1:]).sum(-1, keepdim=True)


torch.multinomial = place_in_group
generation.draw = lambda probabilities: place_in_group(probabilities, 1).squeeze(1)
if "--use_vllm" in sys.argv:
    import vllm

    class Engine(vllm.LLM):
        def __init__(self, **settings):
            super().__init__(**settings, enforce_eager=True)  # compiling takes longer than these short runs
            sys.stdout.write(f"\nengine computes in {self.llm_engine.model_config.dtype}\n")

        def generate(self, prompts, sampling_params, **settings):
            each = [sampling_params.clone() for _ in prompts]
            for place, own in enumerate(each):
                own.seed = place % GROUP
            return super().generate(prompts, each, **settings)

    vllm.LLM = Engine
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)

runpy.run_path(str(ROOT / "train_countdown.py"), run_name="__main__")

state = AcceleratorState()
if state.is_main_process:
    stage = f" {state.deepspeed_plugin.zero_stage}" if state.distributed_type == DistributedType.DEEPSPEED else ""
    machines = os.environ.get("GROUP_WORLD_SIZE", 1)
    kind = f"{state.distributed_type.value}{stage}"
    # In one piece, and on a line of its own whatever another process writes
    sys.stdout.write(f"\nran as {state.num_processes} processes on {machines} machines, {kind}\n")
