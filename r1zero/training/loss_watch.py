"""Losses and gradients that would spoil the weights, since they are NaN or infinite, caught before they do.

Trainer logs the mean of the earlier losses in the place of a NaN, and takes the step.
"""

import math

from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from r1zero.training.nan_guard import BadNumber, raise_on_all


class LossWatch(TrainerCallback):
    """Raises BadNumber, before the optimizer's step, where the loss or the gradient of a trainer is not finite.

    DeepSpeed takes its step together with the backward pass. There a gradient is seen after the step, and before a
    checkpoint. Where float16 scales the loss, steps with an infinite gradient are left out, as they are meant to be.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.compute_loss = trainer.compute_loss
        self.micro_batches = []  # of the step that is being done
        trainer.compute_loss = self.checked_loss

    def checked_loss(self, model, inputs, **settings):
        """The trainer's own compute_loss, of a micro-batch, with a look at what comes of it."""
        found = self.compute_loss(model, inputs, **settings)
        if not model.training:  # an evaluation
            return found
        self.micro_batches.append(inputs)
        loss = found[0] if isinstance(found, tuple) else found
        self.check("the loss", loss.item())
        return found

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if gradients and self.trainer.accelerator.scaler is None:
            self.check("the norm of the gradient", get_total_norm(gradients).item())

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.is_deepspeed_enabled and not args.fp16:  # DeepSpeed scales the loss by itself
            self.check("the norm of the gradient", float(self.trainer.model_wrapped.get_global_grad_norm() or 0))
        self.micro_batches = []

    def check(self, what, value):
        """Ends the run on all processes where a value (float) of one of them is not finite."""
        bad = None
        if not math.isfinite(value):
            bad = BadNumber(f"{what} is {value}", {"value": value, "micro_batches": self.micro_batches})
        raise_on_all(bad)
