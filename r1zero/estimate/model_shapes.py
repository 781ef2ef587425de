"""Sizes of the recipes' models and of like ones, to plan a run without the hub. From each model's config.json."""

import re
from pathlib import Path

from transformers import LlamaConfig, Qwen2Config, Qwen3Config

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES += ("vocab_size", "tie_word_embeddings", "max_position_embeddings")
SHAPES = {  # SIZES of each
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151936, True, 131072),
    "Qwen2.5-1.5B-Instruct": (1536, 28, 12, 2, 8960, 151936, True, 32768),
    "Qwen2.5-3B": (2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152064, False, 131072),
    "Qwen2.5-7B-Instruct": (3584, 28, 28, 4, 18944, 152064, False, 32768),
    "DeepSeek-R1-Distill-Qwen-1.5B": (1536, 28, 12, 2, 8960, 151936, False, 131072),
    "Qwen3-0.6B": (1024, 28, 16, 8, 3072, 151936, True, 40960),
    "Qwen3-1.7B": (2048, 28, 16, 8, 6144, 151936, True, 40960),
    "Qwen3-4B": (2560, 36, 32, 8, 9728, 151936, True, 40960),
    "Qwen3-8B": (4096, 36, 32, 8, 12288, 151936, False, 40960),
    "Llama-3.2-1B": (2048, 16, 32, 8, 8192, 128256, True, 131072),
    "Llama-3.2-3B": (3072, 28, 24, 8, 8192, 128256, True, 131072),
    "Llama-3.1-8B": (4096, 32, 32, 8, 14336, 128256, False, 131072),
    "SmolLM2-135M": (576, 30, 9, 3, 1536, 49152, True, 8192),
    "SmolLM2-360M": (960, 32, 15, 5, 2560, 49152, True, 8192),
    "SmolLM2-1.7B": (2048, 24, 32, 32, 8192, 49152, True, 8192),
    "tiny": (128, 2, 2, 2, 384, 358, True, 512),  # of configs/tiny_model.yaml, before it is made
}
CLASSES = {"Qwen3": Qwen3Config, "Llama": LlamaConfig, "SmolLM2": LlamaConfig}  # else Qwen2Config


def config_of(name):
    """Return the config of a model by the last part of its hub id or folder, None if the table lacks it.

    A model without a row has that of the one from which it was made, by its name less -Base, -Instruct and -warm.
    """
    name = Path(name).name
    shape = SHAPES.get(name) or SHAPES.get(re.sub("(-Base|-Instruct|-warm)+$", "", name))
    return shape and CLASSES.get(name.split("-")[0], Qwen2Config)(**dict(zip(SIZES, shape, strict=True)))
