"""Run TRL's GRPO trainer without passes over padding, and without passes over completions that teach nothing.

TRL pads all completions of a generation to the longest of them and shuffles them, so that one long completion makes
every row of every pass that wide. Here each pass sorts its rows by length, takes as many as its tokens allow, and cuts
off the padding. Completions of a group share their prompt: if that saves much, it is computed once for several of
them, in one sequence. Each token's log-probability stays the same, up to the rounding of sums, and so do the loss and
its gradient.

A group whose rewards are all equal has no signal: its advantages are 0, and the update leaves its rows out.
"""

import torch
from accelerate.utils import DistributedType
from torch.nn.functional import pad
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context

from r1zero.schedule import ROWS
from r1zero.training.generation import first_of_each

EQUAL = 1e-6  # between the rewards of a group: sums of the same rewards differ by less
PACKED = 2  # tokens of a packed sequence, over the model's width: attention is a third of the work then
SAVED = 0.25  # least share of the tokens that packing must save


class TrimmedGRPOTrainer(GRPOTrainer):
    """Trains like GRPOTrainer, and computes no padding and no row without a signal.

    It also sorts the rows of one optimizer step into its micro-batches, by length or by prompt. `entropy`, `kl` and
    `clip_ratio/*` are means over micro-batches of means over tokens, so they then weigh tokens a little differently.
    If the loss itself is such a mean, the micro-batches stay as TRL drew them.

    tokens_per_pass: the most tokens that one forward pass computes, padding included. A longer row has its own pass.
    """

    tokens_per_pass: int
    _updated = None  # the micro-batch whose loss is being computed, if its rows may be left out

    @property
    def gathers_weights(self):
        """Whether every forward pass gathers weights from all ranks, so that all must run the same number of them."""
        return self.is_fsdp_enabled or is_deepspeed_zero3_enabled()

    @property
    def leaves_rows_out(self):
        """Whether a row with an advantage of 0 adds nothing to the loss, and no rank waits for its pass."""
        return (
            self.beta == 0
            and not self._entropy_bonus_enabled
            and self.top_entropy_quantile == 1
            and not self.aux_loss_enabled
            and not self.gathers_weights
        )

    def _calculate_rewards(self, *batch):
        self._rewards = super()._calculate_rewards(*batch)  # (B * ranks, functions), NaN for None
        return self._rewards

    def _generate_and_score_completions(self, inputs):
        """Set the advantages of each group without a signal to 0, where TRL has the rounding of their mean."""
        output = super()._generate_and_score_completions(inputs)
        if self.multi_objective_aggregation != "sum_then_normalize":
            return output
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = rewards.view(-1, size)
        silent = (groups.amax(1) - groups.amin(1) <= EQUAL).repeat_interleave(size)  # (B * ranks,)
        rows = len(output["advantages"])
        first = self.accelerator.process_index * rows
        output["advantages"] = output["advantages"].masked_fill(silent[first : first + rows], 0)
        logged = self._logs["advantages"]
        for place, is_silent in zip(range(1, len(logged) + 1), reversed(silent.tolist()), strict=False):
            if is_silent:
                logged[-place] = 0.0
        return output

    def _compute_loss(self, model, inputs):
        if not (self.model.training and self.leaves_rows_out):
            return super()._compute_loss(model, inputs)
        self._updated = inputs
        loss = super()._compute_loss(model, inputs)
        self._updated = None
        # TRL's entropy is a mean over all tokens: make it one over those that were computed
        counts = torch.stack([inputs["completion_mask"].sum(), self._computed_tokens]).float()
        tokens, computed = self.accelerator.reduce(counts, reduction="sum").tolist()
        self._metrics["train"]["entropy"][-1] *= tokens / computed if computed else float("nan")  # TRL's log skips NaN
        return loss

    def _prepare_inputs(self, generation_batch):
        buffered_before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is buffered_before:  # an evaluation, or completions that are sorted already
            return inputs
        self._buffered_inputs = self.dealt_by_length(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def dealt_by_length(self, micro_batches):
        """Return the micro-batches with the rows of each optimizer step sorted into them by completion length.

        Rows of one prompt stand together if that saves much.

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
            has_signal = torch.ones_like(lengths, dtype=torch.bool)
            if self.leaves_rows_out:  # rows without a signal last, in micro-batches of their own
                has_signal = torch.cat([batch["advantages"] for batch in window]) != 0
            order = (lengths * has_signal).argsort(descending=True)
            prompts = [torch.cat([batch[name] for batch in window]) for name in ("prompt_ids", "prompt_mask")]
            packs = self.packs(order[: has_signal.sum()].tolist(), *prompts, lengths.tolist())
            if packs:
                order[: has_signal.sum()] = torch.tensor([row for pack in packs for row in pack], device=order.device)
            for rows in order.chunk(together):
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
        lengths = attention_mask[:, prompt_length:].sum(1)  # tokens of completions, padded on the right
        order = lengths.argsort(descending=True)
        left_out = order[:0]
        if self._updated is not None:
            has_signal = self._updated["advantages"][order] != 0
            if self.accelerator.distributed_type != DistributedType.NO and not has_signal.any():
                has_signal[-1] = True  # DDP and DeepSpeed want a pass of each rank: that of the shortest row
            order, left_out = order[has_signal], order[~has_signal]
            self._computed_tokens = lengths[order].sum()
        completions = lengths.tolist()

        logps, entropies = [], []

        def add(found, entropy):
            missing = (0, logits_to_keep - found.size(1))
            logps.append(pad(found, missing))
            entropies.append(pad(entropy, missing) if compute_entropy else None)

        packs = self.packs(
            order.tolist(), input_ids[:, :prompt_length], attention_mask[:, :prompt_length], completions
        )
        if packs:
            order = torch.tensor([row for pack in packs for row in pack], device=order.device)
            sizes = [packed_length(pack, prompts, completions) for pack in packs]
            for numbers in self.chunks(range(len(packs)), [0] * len(packs), sizes):
                rows = [packs[number] for number in numbers]
                output, places = self.compute_packed(model, input_ids, prompt_length, rows, prompts, completions)
                for number, place in places:
                    entropy = output.entropy[number : number + 1, place] if compute_entropy else None
                    add(output.log_probs[number : number + 1, place], entropy)
        else:
            for rows in self.chunks(order.tolist(), prompts, completions):
                width = max(1, completions[rows[0]])
                first = prompt_length - max(prompts[row] for row in rows)
                columns = slice(first, prompt_length + width)
                inputs = (model, input_ids[rows, columns], attention_mask[rows, columns], width)
                add(*compute(*inputs, compute_entropy=compute_entropy)[:2])
        if len(left_out):
            # The ratio of a row that is left out is 1, its loss 0
            old = self._updated.get("old_per_token_logps")
            nothing = torch.zeros(len(left_out), logits_to_keep, device=input_ids.device)
            entropies.append(nothing)
            logps.append(nothing if old is None else old[left_out])
            if not len(order):  # gradients of 0 and not None, so that the optimizer takes its step
                logps[-1] = logps[-1] + 0 * sum(weight.sum() for weight in model.parameters() if weight.requires_grad)
        back = torch.cat([order, left_out]).argsort()
        return torch.cat(logps)[back], torch.cat(entropies)[back] if compute_entropy else None, None

    def packs(self, rows, prompt_ids, prompt_mask, completions):
        """Return lists of rows with one prompt, each for one sequence, from the longest; [] if they save too little.

        rows: from the longest completion to the shortest; prompt_ids, prompt_mask: (B, P); completions: the tokens of
        each row.
        """
        config = self.model.config.get_text_config()
        has_full_attention = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        if self.gathers_weights or config._attn_implementation != "sdpa" or not has_full_attention or not rows:
            return []
        prompts = prompt_mask.sum(1).tolist()
        most = (1 - SAVED) * sum(prompts[row] + completions[row] for row in rows)
        if sum(completions[row] for row in rows) >= most:  # even without any prompt
            return []
        prompt_of_row = first_of_each(prompt_ids, prompt_mask)[1].tolist()
        longest = min(self.tokens_per_pass, PACKED * config.hidden_size)
        packs, open_packs = [], {}
        for row in rows:
            pack = open_packs.get(prompt_of_row[row], [])
            if not pack or packed_length([*pack, row], prompts, completions) > longest:
                pack = open_packs[prompt_of_row[row]] = []
                packs.append(pack)
            pack.append(row)
        sizes = [packed_length(pack, prompts, completions) for pack in packs]
        if sum(sizes) > most:
            return []
        return [packs[number] for number in sorted(range(len(packs)), key=sizes.__getitem__, reverse=True)]

    def compute_packed(self, model, input_ids, prompt_length, packs, prompts, completions):
        """Return the model's output for sequences of rows, and where in it each row's completion stands, pack by pack.

        A sequence is the prompt but for its last token, and for each row that token and the completion, which see the
        prompt and themselves. packs: lists of rows, from the longest sequence; prompts, completions: their tokens.
        """
        longest = packed_length(packs[0], prompts, completions)
        ids = input_ids.new_zeros(len(packs), longest)
        labels = torch.full_like(ids, -100)
        positions, owners = torch.zeros_like(ids), torch.full_like(ids, -1)  # padding sees the prompt and itself
        places = []  # of each row: its sequence, and the places whose outputs are of the next tokens
        for number, pack in enumerate(packs):
            prompt = prompts[pack[0]]
            end = prompt - 1
            ids[number, :end] = input_ids[pack[0], prompt_length - prompt : prompt_length - 1]
            positions[number, :end] = torch.arange(end)
            owners[number, :end] = 0
            for owner, row in enumerate(pack, 1):
                start, end = end, end + 1 + completions[row]
                ids[number, start:end] = input_ids[row, prompt_length - 1 : prompt_length + completions[row]]
                labels[number, start + 1 : end] = ids[number, start + 1 : end]
                positions[number, start:end] = prompt - 1 + torch.arange(end - start)
                owners[number, start:end] = owner
                places.append((number, slice(start, end - 1)))
        sees = (owners[:, None] == owners[:, :, None]) | (owners[:, None] == 0)  # (B, queries, keys)
        sees &= torch.ones(longest, longest, dtype=torch.bool, device=ids.device).tril()
        with self.accelerator.autocast(), profiling_context(self, "_get_per_token_logps_and_entropies"):
            output = model(
                input_ids=ids, attention_mask=sees[:, None], position_ids=positions, labels=labels, fused_lm_head=True
            )
        return output, places

    def chunks(self, rows, prompts, completions):
        """Return lists of rows, each for one forward pass.

        rows: from the longest completion to the shortest; prompts, completions: the tokens of each row.
        """
        if self.gathers_weights:
            return [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]
        chunks = []
        for row in rows:
            if chunks:
                widest = max(prompts[other] for other in (row, *chunks[-1])) + completions[chunks[-1][0]]
                if (len(chunks[-1]) + 1) * widest <= self.tokens_per_pass:
                    chunks[-1].append(row)
                    continue
            chunks.append([row])
        return chunks


def pick(rows, parts):
    """Return rows (R,) of the concatenated parts (tensors (B, ...)). One value for a whole generation stays as is."""
    if parts[0] is None or parts[0].ndim == 0:
        return parts[0]
    return torch.cat(parts)[rows]


def packed_length(rows, prompts, completions):
    """Return the tokens of a sequence that holds the prompt of these rows once, without its last, which all repeat."""
    return prompts[rows[0]] - 1 + sum(1 + completions[row] for row in rows)
