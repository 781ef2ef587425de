"""Run TRL's GRPO trainer without passes over padding.

TRL pads all completions of a generation to the longest of them and shuffles them, so that one long completion makes
every row of every pass that wide. Here each pass sorts its rows by length, takes some at a time, and cuts off the
padding. Each token's log-probability stays the same, up to the rounding of sums, and so do the loss and its gradient.
"""

import torch
from torch.nn.functional import pad
from trl import GRPOTrainer

from r1zero.schedule import ROWS


class TrimmedGRPOTrainer(GRPOTrainer):
    """Trains like GRPOTrainer, and computes no padding.

    It also sorts the rows of one optimizer step into its micro-batches by length. `entropy`, `kl` and `clip_ratio/*`
    are means over micro-batches of means over tokens, so they then weigh tokens a little differently. If the loss
    itself is such a mean, the micro-batches stay as TRL drew them.
    """

    def _prepare_inputs(self, generation_batch):
        buffered_before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is buffered_before:  # an evaluation, or completions that are sorted already
            return inputs
        self._buffered_inputs = self.dealt_by_length(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def dealt_by_length(self, micro_batches):
        """Return the micro-batches with the rows of each optimizer step sorted into them by completion length.

        micro_batches: list of dicts of tensors (B, ...), all those of a generation, in order.
        """
        together = min(self.args.gradient_accumulation_steps, len(micro_batches))
        depends_on_micro_batch = (
            self.loss_type == "bnpo" or self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0
        )
        if (
            together == 1
            or len(micro_batches) % together
            or depends_on_micro_batch
            or "num_images" in micro_batches[0]
        ):
            return micro_batches
        dealt = []
        for first in range(0, len(micro_batches), together):
            window = micro_batches[first : first + together]
            lengths = torch.cat([batch["completion_mask"].sum(1) for batch in window])
            for rows in lengths.argsort(descending=True).chunk(together):
                dealt.append({name: pick(rows, [batch[name] for batch in window]) for name in window[0]})
        return dealt

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **images,
    ):
        compute = super()._get_per_token_logps_and_entropies
        if compute_aux_loss or any(value is not None for value in images.values()):
            everything = (model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
            return compute(*everything, compute_aux_loss, **images)
        prompt_length = input_ids.size(1) - logits_to_keep
        prompts = attention_mask[:, :prompt_length].sum(1).tolist()  # tokens, padded on the left
        completions = attention_mask[:, prompt_length:].sum(1)  # tokens, padded on the right
        order = completions.argsort(descending=True)
        completions = completions.tolist()
        logps, entropies = [], []
        for rows in order.split(min(batch_size or ROWS, ROWS)):
            width = max(1, *(completions[row] for row in rows.tolist()))
            first = prompt_length - max(prompts[row] for row in rows.tolist())
            columns = slice(first, prompt_length + width)
            found, entropy, _ = compute(
                model, input_ids[rows, columns], attention_mask[rows, columns], width, compute_entropy=compute_entropy
            )
            logps.append(pad(found, (0, logits_to_keep - width)))
            if compute_entropy:
                entropies.append(pad(entropy, (0, logits_to_keep - width)))
        back = order.argsort()
        return torch.cat(logps)[back], torch.cat(entropies)[back] if compute_entropy else None, None


def pick(rows, parts):
    """Return rows (R,) of the concatenated parts (tensors (B, ...)). One value for a whole generation stays as is."""
    if parts[0] is None or parts[0].ndim == 0:
        return parts[0]
    return torch.cat(parts)[rows]
