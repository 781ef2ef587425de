"""Log the seconds of each phase of an optimizer step, as `profiling/...`.

TRL times its own parts, and sends each call by itself to the trackers alone. Here the calls of a step are summed, and
logged with the step's other metrics. A GPU computes behind Python's back, so there a phase may pay for the one before.
"""

import time

import torch
from transformers import TrainerCallback

PROFILE = {  # names in TRL's profile
    "transformers.generate": "generation",
    "vLLM.generate": "generation",
    "sync_weights": "weight sync",
    "_calculate_rewards": "reward",
    "_get_per_token_logps_and_entropies": "scoring",  # if gradients are off; it is part of compute_loss too
    "compute_loss": "forward",
}
PHASES = (*dict.fromkeys(PROFILE.values()), "backward", "optimizer", "step")  # of an optimizer step; the last is all

now = time.perf_counter


def watch(trainer):
    """Make a trainer log its phases, and no longer TRL's single calls. One trainer of a process at a time."""
    from trl.extras.profiling import ProfilingContext  # here, as it takes a second

    phases = Phases(trainer)

    def enter(context):
        context._start_time = now()
        return context

    def leave(context, *error):
        phases.note(context.name.partition(".")[2], context._start_time)  # what follows the trainer's class

    ProfilingContext.__enter__, ProfilingContext.__exit__ = enter, leave
    trainer.add_callback(phases)


class Phases(TrainerCallback):
    """Sums the seconds of each phase of an optimizer step; clipping counts as backward."""

    def __init__(self, trainer):
        self.metrics = trainer._metrics["train"]  # lists, of which TRL logs the means
        self.seconds = None  # of the phases of this step, None outside of one

    def add(self, phase, since):
        end = now()
        self.seconds[phase] += end - since
        return end

    def note(self, name, since):
        phase = PROFILE.get(name)
        if self.seconds is not None and phase and not (phase == "scoring" and torch.is_grad_enabled()):
            self.forward_end = self.add(phase, since)

    def on_step_begin(self, args, state, control, **kwargs):
        self.seconds, self.began = dict.fromkeys(PHASES, 0.0), now()

    def on_substep_end(self, args, state, control, **kwargs):
        self.add("backward", self.forward_end)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.backward_end = self.add("backward", self.forward_end)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.add("optimizer", self.backward_end)

    def on_step_end(self, args, state, control, **kwargs):
        self.add("step", self.began)
        for phase, seconds in self.seconds.items():
            self.metrics[f"profiling/{phase}"].append(seconds)
        self.seconds = None
