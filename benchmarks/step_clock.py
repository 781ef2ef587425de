"""What a run of train_countdown.py spends its time on: a clock that knows which part of a step is at work.

It looks from outside: at TRL's own profile, at the trainer's callbacks, at the passes of the model, and at methods of
this one trainer, which are wrapped. Every moment belongs to one part, so that the parts add up to the whole. At the
end of a part the clock waits until the GPU has done what it was given.
"""

import contextlib
import functools
import threading
import time
from collections import defaultdict

import torch
from transformers import TrainerCallback, trainer
from trl.extras import profiling
from trl.trainer import grpo_trainer

from r1zero import schedule

SCORING = "scoring"  # the probabilities of finished completions: the old ones, and the reference model's
ELSE = "everything else"
PARTS = (
    "generation",
    "weight sync",
    "reward",
    SCORING,
    "forward",
    "backward",
    "optimizer",
    "evaluation",
    "logging",
    ELSE,
)
PROFILED = {  # what TRL's profile names, and the part that it belongs to
    "transformers.generate": "generation",
    "_calculate_rewards": "reward",
    "compute_loss": "forward",
}
SCORED = "_get_per_token_logps_and_entropies"  # in TRL's profile: the forward pass too, which has gradients


class Window:
    """A generation of completions with all its optimizer steps."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.processor_seconds = dict.fromkeys(PARTS, 0.0)  # of all threads together
        self.optimizer_steps = 0
        self.lengths = defaultdict(list)  # of a part's passes, tokens of the prompts and completions: tensors (B,)
        self.scored = defaultdict(list)  # tokens of the completions alone
        self.computed = 0  # tokens of all passes, padding included

    def rows(self, part):
        """Tokens of prompt and completion together, and of the completion, in a part's passes: (B,) float64, twice."""
        return torch.cat(self.lengths[part]).double().cpu(), torch.cat(self.scored[part]).double().cpu()

    def padding(self):
        """The share of the tokens computed in passes that were padding."""
        real = sum(float(self.rows(part)[0].sum()) for part in list(self.lengths))
        return 1 - real / self.computed


class Clock(TrainerCallback):
    """Splits the time of a run into windows, and each into the parts of a step. The first window is a warm-up."""

    def __init__(self):
        self.windows = []
        self.running = False
        self.at_work = []  # the parts that are at work, the innermost last
        self.last = self.last_processor = 0.0  # when the time was last taken
        self.trainer = None
        self.peak_bytes = 0  # of the card, whoever uses it

    def install(self):
        """Makes every trainer of this process call this clock, and TRL tell its profile to it."""
        for module in (profiling, grpo_trainer):
            module.profiling_context = self.profiling_context
        trainer.DEFAULT_CALLBACKS.append(self)

    def watch_memory(self):
        while True:
            free, total = torch.cuda.mem_get_info()
            self.peak_bytes = max(self.peak_bytes, total - free)
            time.sleep(0.02)

    def part(self):
        """The part that is at work. What an evaluation generates and scores is evaluation."""
        if "evaluation" in self.at_work:
            return "evaluation"
        return self.at_work[-1] if self.at_work else ELSE

    def take_time(self):
        """Gives the time since the last call to the part that was at work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, processor = time.perf_counter(), time.process_time()
        if self.running:
            window, part = self.windows[-1], self.part()
            window.seconds[part] += now - self.last
            window.processor_seconds[part] += processor - self.last_processor
        self.last, self.last_processor = now, processor

    @contextlib.contextmanager
    def timed(self, part):
        self.take_time()
        self.at_work.append(part)
        try:
            yield
        finally:
            self.take_time()
            self.at_work.pop()

    @contextlib.contextmanager
    def profiling_context(self, trainer, name):
        """Stands for TRL's function of this name, which tells the time to trackers alone."""
        if self.trainer is None:
            self.attach(trainer)
        part = PROFILED.get(name)
        if name == SCORED:
            part = "forward" if torch.is_grad_enabled() else SCORING
        with self.timed(part) if part else contextlib.nullcontext():
            yield

    def attach(self, trainer):
        """Wraps what TRL's profile leaves out, on this trainer alone, and sees the passes of its models."""
        self.trainer = trainer
        if torch.cuda.is_available():  # and vLLM, which is built by now, has captured its graphs
            threading.Thread(target=self.watch_memory, daemon=True).start()
        self.wrap(trainer.accelerator, "backward", "backward")
        self.wrap(trainer.accelerator, "clip_grad_norm_", "optimizer")
        self.wrap(trainer.optimizer, "step", "optimizer")
        self.wrap(trainer.model, "zero_grad", "optimizer")
        self.wrap(trainer, "evaluate", "evaluation")
        self.wrap(trainer, "log", "logging")
        if trainer.args.use_vllm:
            self.wrap(trainer.vllm_generation, "sync_weights", "weight sync")
            self.wrap(trainer.vllm_generation, "generate", "generation")
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                model.register_forward_pre_hook(self.see_pass, with_kwargs=True)

    def wrap(self, thing, name, part):
        """Makes the calls of one method of one object belong to a part."""
        method = getattr(thing, name)

        @functools.wraps(method)
        def wrapped(*args, **kwargs):
            with self.timed(part):
                return method(*args, **kwargs)

        setattr(thing, name, wrapped)

    def see_pass(self, model, args, inputs):
        """Notes the tokens of a pass over completions; one of transformers' generation has no labels."""
        part = self.part()
        if not self.running or part == "evaluation" or inputs.get("labels") is None:
            return
        window = self.windows[-1]
        window.lengths[part].append(inputs["attention_mask"].sum(1))
        window.scored[part].append((inputs["labels"] != -100).sum(1))
        window.computed += inputs["attention_mask"].numel()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % max(1, int(schedule.span(args))) == 0:
            self.take_time()
            self.windows.append(Window())
            self.running = True
        self.windows[-1].optimizer_steps += 1

    def on_train_end(self, args, state, control, **kwargs):
        self.take_time()
        self.running = False
