"""Generate with transformers, and drop each completion from the batch soon after it has ended.

transformers computes all rows of a batch until the longest one ends: 256 completions of 106 tokens on average take as
long as if all had 272. Every few tokens, the loop here drops the rows that have ended from the batch and its cache.
`generate` takes such a loop as its argument `custom_generate`, and prepares its arguments.
"""

import functools

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

LOOK_EVERY = 8  # tokens between two looks for rows that have ended: dropping them copies the cache


def processes_generate_alone(trainer):
    """Return whether each process has the whole model while it generates with TRL's GRPOTrainer.

    With FSDP, and with ZeRO-3 unless it gathers the weights, all processes compute every layer together. Then none may
    stop before the others.
    """
    if trainer.is_fsdp_enabled:
        return False
    return trainer.args.ds3_gather_for_generation or not is_deepspeed_zero3_enabled()


def drop_finished_rows(model):
    """Make `model.generate` use the loop below, in place. model: of transformers, or a PEFT model around one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.generate = functools.partial(inner.generate, custom_generate=sample_unfinished)


def sample_unfinished(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """Return sequences (B, T) for left-padded prompts (B, P), as generate's own loop does.

    Greedy search returns the same tokens. Sampling draws from the same distribution, with other random numbers once a
    row has been dropped. Raises ValueError for several beams, a dict as the result, or a model without a cache.
    """
    # generate would not prepare them if they were named parameters
    cache = model_kwargs.pop("past_key_values", None)
    attention_mask, position_ids = model_kwargs.pop("attention_mask", None), model_kwargs.pop("position_ids", None)
    if generation_config.num_beams != 1 or generation_config.return_dict_in_generate or cache is None:
        raise ValueError(
            "dropping completions that have ended needs one beam, a model with a cache, and sequences as the result: "
            "--drop_finished false leaves generation to transformers"
        )
    prompt_length, longest = input_ids.size(1), stopping_criteria.max_length
    pad = generation_config.pad_token_id or 0
    sequences = input_ids.new_full((len(input_ids), longest), pad)
    sequences[:, :prompt_length] = input_ids
    rows = torch.arange(len(input_ids), device=input_ids.device)  # (U,): those still in the batch
    ended = torch.zeros_like(rows, dtype=torch.bool)  # (U,)
    tokens, length = input_ids, prompt_length

    while length < longest and not ended.all():
        optional = {"attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        logits = model(input_ids=tokens, past_key_values=cache, **given, **model_kwargs).logits[:, -1]
        scores = logits_processor(sequences[rows, :length], logits.float())  # (U, V)
        if generation_config.do_sample:
            chosen = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
        else:
            chosen = scores.argmax(-1)
        sequences[rows, length] = chosen.masked_fill(ended, pad)
        length += 1
        ended = ended | stopping_criteria(sequences[rows, :length], None)
        tokens = sequences[rows, length - 1 : length]
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(tokens)], dim=1)
        if position_ids is not None:
            position_ids = position_ids[:, -1:] + 1

        if (length - prompt_length) % LOOK_EVERY == 0 and ended.any():
            kept = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, tokens, ended = rows[kept], tokens[kept], ended[kept]
            attention_mask = None if attention_mask is None else attention_mask[kept]
            position_ids = None if position_ids is None else position_ids[kept]
    return sequences[:, :length]
