"""Log the seconds of each phase of an optimizer step, as `profiling/...`, and what else a run measures of itself.

TRL times its own parts, and sends each call by itself to the trackers alone. Here the calls of a step are summed, and
logged with the step's other metrics. A GPU computes behind Python's back, so there a phase may pay for the one before.
"""

import resource
import sys
import time

import torch
from transformers import TrainerCallback

from r1zero import schedule

PROFILE = {  # names in TRL's profile
    "transformers.generate": "generation",
    "vLLM.generate": "generation",
    "sync_weights": "weight sync",
    "_calculate_rewards": "reward",
    "_get_per_token_logps_and_entropies": "scoring",  # if gradients are off; it is part of compute_loss too
    "compute_loss": "forward",
}
PHASES = (*dict.fromkeys(PROFILE.values()), "backward", "optimizer", "step")  # of an optimizer step; the last is all
GIB = 2**30
OF_PROCESS = 1 if sys.platform == "darwin" else 2**10  # bytes in the unit of ru_maxrss

now = time.perf_counter


def watch(trainer, show):
    """Make a trainer log what it measures, and no longer TRL's single calls. One trainer of a process at a time.

    show: a function that is called with the name of each phase (str) as it begins, and with "" as the last one ends.
    """
    from trl.extras.profiling import ProfilingContext  # here, as it takes a second

    phases = Phases(trainer, show)
    generate = trainer._generate_and_score_completions

    def enter(context):
        phases.begin(phase_of(context))
        context._start_time = now()
        return context

    def leave(context, *error):
        phases.note(phase_of(context), context._start_time)

    def measured(inputs):
        output = generate(inputs)
        if trainer.model.training:
            phases.measure_batch(output)
        return output

    ProfilingContext.__enter__, ProfilingContext.__exit__ = enter, leave
    trainer._generate_and_score_completions = measured
    trainer.add_callback(phases)


def phase_of(context):
    """Return the phase of a part that TRL times, None if it is none or belongs to another."""
    phase = PROFILE.get(context.name.partition(".")[2])  # what follows the trainer's class
    return None if phase == "scoring" and torch.is_grad_enabled() else phase


class Phases(TrainerCallback):
    """Sums the seconds of each phase of an optimizer step; clipping counts as backward. It also logs the extremes."""

    def __init__(self, trainer, show):
        self.trainer = trainer
        self.show = show
        self.metrics = trainer._metrics["train"]  # lists, of which TRL logs the means
        self.seconds = None  # of the phases of this step, None outside of one
        self.card = 0.0  # GiB
        self.able = getattr(trainer.args, "peak_operations", None)  # of preflight's Card a second, None: no MFU
        self.tokens, self.spent = None, 0.0  # that were generated before this generation, seconds of its steps

    def add(self, phase, since):
        end = now()
        self.seconds[phase] += end - since
        return end

    def begin(self, phase):
        if phase:
            self.show(phase if self.seconds is not None else f"evaluation: {phase}")

    def note(self, phase, since):
        if self.seconds is not None and phase:
            self.forward_end = self.add(phase, since)
            if phase == "forward":
                self.begin("backward")
        self.measure_memory()

    def measure_memory(self):
        """Log the most memory so far in GiB: of this process, and of its card with all that others hold there.

        torch keeps what it has freed, so the end of a phase shows what the card held during it.
        """
        peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * OF_PROCESS / GIB}
        if self.trainer.accelerator.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            self.card = peaks["card"] = max(self.card, (total - free) / GIB)
        for metrics in self.trainer._metrics.values():  # of training and of evaluation
            for what, peak in peaks.items():
                metrics[f"memory/{what}"] = [peak]

    def measure_batch(self, batch):
        """Log the longest prompt and the extremes of the reward. batch: what TRL has generated on this process."""
        lengths = self.trainer.accelerator.gather(batch["prompt_mask"].sum(1).max())
        given = torch.tensor([list(rewards) for rewards in self.trainer._logs["rewards"].values()])  # of all processes
        rewards = (given * self.trainer.reward_weights.cpu()[:, None]).nansum(0)  # NaN for None
        for name, of, value in (
            ("prompts/max_length", max, lengths.max().item()),
            ("reward_min", min, rewards.min().item()),
            ("reward_max", max, rewards.max().item()),
        ):
            self.metrics[name] = [of([*self.metrics[name], value])]  # since the last logging step

    def measure_utilization(self, args, state):
        """Log the MFU of a generation at its last step: operations of its update over what the cards can do.

        A token takes 2 operations a parameter forward, 2 backward, and 2 more for the gradient of a trained one.
        """
        if self.able is None or state.global_step % max(1, int(schedule.span(args))):
            return
        operations = 0
        for weight in self.trainer.model.parameters():
            operations += (6 if weight.requires_grad else 4) * getattr(weight, "ds_numel", weight.numel())  # of ZeRO-3
        operations *= (state.num_input_tokens_seen - self.tokens) * args.num_iterations
        self.metrics["mfu"].append(operations / (self.spent * self.able * args.world_size))
        self.tokens, self.spent = state.num_input_tokens_seen, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.tokens is None:
            self.tokens = state.num_input_tokens_seen
        self.seconds, self.began = dict.fromkeys(PHASES, 0.0), now()

    def on_substep_end(self, args, state, control, **kwargs):
        self.add("backward", self.forward_end)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.backward_end = self.add("backward", self.forward_end)
        self.measure_memory()
        self.begin("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.add("optimizer", self.backward_end)

    def on_step_end(self, args, state, control, **kwargs):
        self.add("step", self.began)
        for phase, seconds in self.seconds.items():
            self.metrics[f"profiling/{phase}"].append(seconds)
        self.spent += self.seconds["step"]
        self.measure_utilization(args, state)
        self.seconds = None
        self.measure_memory()
        self.show("")

    def on_evaluate(self, args, state, control, **kwargs):
        self.show("")
