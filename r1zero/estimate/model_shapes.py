"""Sizes of the models that the recipes name, to plan a run without the hub. From each model's config.json."""

from pathlib import Path

from transformers import Qwen2Config

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES += ("vocab_size", "tie_word_embeddings", "max_position_embeddings")
SHAPES = {  # SIZES of each
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-0.5B-Instruct": (896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-0.5B-warm": (896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151936, True, 131072),
    "Qwen2.5-1.5B-Instruct": (1536, 28, 12, 2, 8960, 151936, True, 32768),
    "Qwen2.5-3B": (2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen2.5-3B-Instruct": (2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152064, False, 131072),
    "Qwen2.5-7B-Instruct": (3584, 28, 28, 4, 18944, 152064, False, 32768),
    "DeepSeek-R1-Distill-Qwen-1.5B": (1536, 28, 12, 2, 8960, 151936, False, 131072),
    "SmolLM2-135M-warm": (576, 30, 9, 3, 1536, 49152, True, 8192),
    "tiny": (128, 2, 2, 2, 384, 358, True, 512),  # of configs/tiny_model.yaml, before it is made
}


def config_of(name):
    """Return the config of a model by the last part of its hub id or folder, None if the table lacks it."""
    shape = SHAPES.get(Path(name).name)
    return shape and Qwen2Config(**dict(zip(SIZES, shape, strict=True)))
