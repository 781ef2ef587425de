"""The shapes of the models that the recipes name, so that a run can be planned where neither hub nor model is.

From the config.json of each on the hub; tests/test_model_shapes.py compares them with those that can be had.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import Qwen2Config


class Shape(NamedTuple):
    """What of a Qwen2 model's config.json its sizes follow from. context: max_position_embeddings, in tokens."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    context: int

    def config(self, **settings):
        """transformers' Qwen2Config of this shape. settings: what is to stand in it beside or instead."""
        shape = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.context,
        }
        return Qwen2Config(**shape | settings)


SHAPES = {
    "Qwen2.5-0.5B": Shape(896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-0.5B-Instruct": Shape(896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen2.5-1.5B": Shape(1536, 28, 12, 2, 8960, 151936, True, 131072),
    "Qwen2.5-1.5B-Instruct": Shape(1536, 28, 12, 2, 8960, 151936, True, 32768),
    "Qwen2.5-3B": Shape(2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen2.5-3B-Instruct": Shape(2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen2.5-7B": Shape(3584, 28, 28, 4, 18944, 152064, False, 131072),
    "Qwen2.5-7B-Instruct": Shape(3584, 28, 28, 4, 18944, 152064, False, 32768),
    "DeepSeek-R1-Distill-Qwen-1.5B": Shape(1536, 28, 12, 2, 8960, 151936, False, 131072),
    "tiny": Shape(128, 2, 2, 2, 384, 358, True, 512),  # of configs/tiny_model.yaml, before it is made
}


def config_of(name):
    """The config of a model by the last part of its hub id or folder, None where the table does not have it."""
    shape = SHAPES.get(Path(name).name)
    return shape.config() if shape else None
