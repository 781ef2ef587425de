"""A model of any shape with random weights, whose completions end by themselves, and problems for it.

Random weights practically never sample the end of a text: all completions would have the greatest length, and none
would be padded. Here the chance of the end is the same at every token, so that lengths are geometric, as if a coin
were tossed. Nothing has to be patched for it, and it holds for transformers, for vLLM and for a server alike.
"""

import math

import torch
from transformers import AutoModelForCausalLM

import preprocess
from r1zero import tiny_model
from r1zero.estimate import model_shapes

TINY = "tiny"  # the shape of the embedded default; all others stand in r1zero/estimate/model_shapes.py
CONSTANT = 1024.0  # of the hidden state's first number, beside which all others are small
LOGIT = 10.0  # of a token of the tokenizer; every other id of the model's vocabulary has -LOGIT


def chance_of_the_end(mean, longest):
    """The chance a token with which completions have `mean` tokens, where they are cut off at `longest` tokens.

    Raises ValueError where no chance does that.

    >>> round(chance_of_the_end(mean=115, longest=288), 4)
    0.0077
    """
    if not 1 < mean < longest:
        raise ValueError(f"--mean_length {mean:g}: wanted more than 1 and less than {longest}, the longest completion")
    low, high = 1e-9, 1.0
    for _ in range(60):
        chance = (low + high) / 2
        if (1 - (1 - chance) ** longest) / chance > mean:
            low = chance
        else:
            high = chance
    return chance


@torch.no_grad()
def end_at_random(model, vocabulary, end, chance):
    """Makes a model, in place, sample the tokens below `vocabulary` (int) evenly, and `end` (int) with this chance.

    The first number of every hidden state becomes a constant, and the last norm lets nothing else through: so the
    logits no longer depend on the text. All weights before it stay random, and are computed as ever.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight  # (V, hidden) both
    embedding[:, 0] = CONSTANT
    for layer in model.model.layers:  # which are to add nothing to the constant
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    norm = model.model.norm.weight
    norm.zero_()
    norm[0] = LOGIT / (CONSTANT * math.sqrt(len(norm)))  # the normed constant is the root of the width
    others = vocabulary - 1
    head[:vocabulary, 0] = CONSTANT
    head[vocabulary:, 0] = -CONSTANT
    head[end, 0] = CONSTANT * (1 + math.log(others * chance / (1 - chance)) / LOGIT)


def make_model(shape, folder, chance):
    """Writes a model folder of a shape (str), on the CPU, in bfloat16, with the tiny model's tokenizer."""
    tokenizer = tiny_model.build_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if shape == TINY:
        config = tiny_model.build_config(tiny_model.read_arguments([]), tokenizer)
    else:
        config = model_shapes.SHAPES[shape].config(max_position_embeddings=4096, **ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    end_at_random(model, len(tokenizer), tokenizer.eos_token_id, chance)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(shape, folder):
    """Writes Countdown problems: the embedded default's for its shape, else 1,024 to train on and 1,024 held out."""
    words = ["countdown", "--train_size", "1024", "--test_size", "1024", "--local_dir", str(folder)]
    if shape == TINY:
        words = tiny_model.data_flags(tiny_model.read_arguments(["--data_dir", str(folder)]))
    preprocess.main(words)
