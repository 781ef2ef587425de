"""Generate with transformers, and drop each completion that has ended from the batch; prepare vLLM.

transformers computes all rows of a batch until the longest one ends: 256 completions of 106 tokens on average take as
long as if all had 272. Every few tokens, the loop here drops the rows that have ended from the batch and its cache. It
computes the prompt of a group once, and on a CPU it samples with one random number a row.
`generate` takes such a loop as its argument `custom_generate`, and prepares its arguments.
"""

import contextlib
import ctypes
import sys

import numpy as np
import torch
from tqdm import tqdm
from transformers.cache_utils import DynamicLayer
from transformers.integrations import is_deepspeed_zero3_enabled

from r1zero import processes, schedule

LOOK_EVERY = 8  # tokens between two looks for rows that have ended: dropping them copies the cache
SPARE = 64  # tokens that a cache has space for when it is copied
PLENTY = 1 << 40  # references to None: vLLM takes a few hundred with each generation


def processes_generate_alone(trainer):
    """Return whether each process has the whole model while it generates with TRL's GRPOTrainer.

    With FSDP, and with ZeRO-3 unless it gathers the weights, all processes compute every layer together. Then none may
    stop before the others.
    """
    if trainer.is_fsdp_enabled:
        return False
    return trainer.args.ds3_gather_for_generation or not is_deepspeed_zero3_enabled()


def drop_finished_rows(model, autocast=contextlib.nullcontext):
    """Make `model.generate` use the loop below, in place. model: of transformers, or a PEFT model around one.

    autocast: the context in which accelerate computes every forward pass. Around all tokens of a generation, it casts
    the weights once, and not for each token.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    generate = inner.generate

    def generate_in_context(*args, **settings):
        with autocast():
            return generate(*args, custom_generate=sample_unfinished, **settings)

    inner.generate = generate_in_context


def sample_unfinished(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """Return sequences (B, T) for left-padded prompts (B, P), as generate's own loop does.

    Greedy search returns the same tokens. Sampling draws from the same distribution, with other random numbers. Raises
    ValueError for several beams, a dict as the result, or a model without a cache.
    """
    # generate would not prepare them if they were named parameters
    cache = model_kwargs.pop("past_key_values", None)
    attention_mask, position_ids = model_kwargs.pop("attention_mask", None), model_kwargs.pop("position_ids", None)
    if generation_config.num_beams != 1 or generation_config.return_dict_in_generate or cache is None:
        raise ValueError(
            "dropping completions that have ended needs one beam, a model with a cache, and sequences as the result: "
            "--drop_finished false leaves generation to transformers"
        )
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    prompt_length, longest = input_ids.size(1), stopping_criteria.max_length
    pad = generation_config.pad_token_id or 0
    sequences = input_ids.new_full((len(input_ids), longest), pad)
    sequences[:, :prompt_length] = input_ids
    rows = torch.arange(len(input_ids), device=input_ids.device)  # (U,): those still in the batch
    ended = torch.zeros_like(rows, dtype=torch.bool)  # (U,)
    length = prompt_length
    first, prompt_of_row = first_of_each(input_ids, attention_mask)  # a group has one prompt
    tokens = input_ids[first]
    form = "generation: {n} of {total} completions have ended{postfix} [{elapsed}]"
    hidden = None if processes.is_main_process() else True  # None: shown on a terminal alone
    how = {"disable": hidden, "delay": 1, "leave": False, "miniters": 0, "dynamic_ncols": True}
    bar = tqdm(total=len(input_ids), bar_format=form, **how)

    while length < longest and not ended.all():
        optional = {"attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        if length == prompt_length:
            given = {name: value[first] for name, value in given.items()}
        logits = model(input_ids=tokens, past_key_values=cache, **given, **model_kwargs).logits[:, -1]
        if length == prompt_length:
            cache.batch_select_indices(prompt_of_row)
            logits = logits[prompt_of_row]
        scores = logits_processor(sequences[rows, :length], logits.float())  # (U, V)
        chosen = draw(scores.softmax(-1)) if generation_config.do_sample else scores.argmax(-1)
        sequences[rows, length] = chosen.masked_fill(ended, pad)
        length += 1
        ended = ended | stopping_criteria(sequences[rows, :length], None)
        tokens = sequences[rows, length - 1 : length]
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(tokens)], dim=1)
        if position_ids is not None:
            position_ids = position_ids[:, -1:] + 1

        if (length - prompt_length) % LOOK_EVERY == 0:
            kept = (~ended).nonzero().squeeze(1)
            bar.set_postfix_str(f"{length - prompt_length} tokens", refresh=False)
            bar.update(len(rows) - len(kept))
            if len(kept) < len(rows):
                cache.batch_select_indices(kept)
                rows, tokens, ended = rows[kept], tokens[kept], ended[kept]
                attention_mask = None if attention_mask is None else attention_mask[kept]
                position_ids = None if position_ids is None else position_ids[kept]
    bar.close()
    return sequences[:, :length]


class GrowingLayer(DynamicLayer):
    """Keys and values (B, heads, T, width) with space for more tokens: DynamicLayer copies all of them every token."""

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [self.keys, self.values]
        length = self.get_seq_length()
        end = length + key_states.size(2)
        for number, (old, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
            buffer = self.buffers[number]
            if length == 0 or buffer.size(2) < end:
                buffer = new.new_empty(*new.shape[:2], end + SPARE, new.size(3))
                if length:
                    buffer[:, :, :length] = old
                self.buffers[number] = buffer
            buffer[:, :, length:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.buffers = [self.keys, self.values]


def first_of_each(input_ids, attention_mask):
    """Return the first row (N,) of each different prompt, and for each row (B,) the number of its prompt.

    input_ids, attention_mask: (B, P), or None as the mask.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    _, prompt_of_row = torch.cat([input_ids, mask], dim=1).unique(dim=0, return_inverse=True)
    first = [(prompt_of_row == prompt).nonzero()[0, 0] for prompt in range(prompt_of_row.max() + 1)]
    return torch.stack(first), prompt_of_row


def draw(probabilities):
    """Return an entry (U,) of each row of probabilities (U, V), drawn at random.

    On a CPU, torch.multinomial draws a random number for each entry, here each row has one. The rounding of the sums
    changes no probability by more than 2^-23.
    """
    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    sums = probabilities.cumsum(-1)
    drawn = torch.rand(len(sums), 1) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True).squeeze(1)  # right: an entry of probability 0 is never drawn


# vLLM


def prepare_vllm(training_args, model_args):
    """Have TRL build a colocated vLLM with the run's arithmetic type and seed: it has a setting for neither."""
    if training_args.use_vllm and training_args.vllm_mode == "colocate":
        from trl.generation import vllm_generation  # here, as it takes a second

        vllm_generation.LLM = vllm_engine(training_args, model_args)


def vllm_engine(training_args, model_args):
    """Return a function that builds vLLM's LLM with this run's type and seed.

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
        mixed = np.random.SeedSequence([training_args.seed, seed]).generate_state(1)[0]  # 32 bits
        return LLM(dtype=dtype, seed=int(mixed), **settings)

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
