"""Settings that cannot be meant, found before anything is computed with them: each error is one line.

TRL's parser takes a YAML's values as they are, whatever their type, and neither TRL nor transformers looks at most
numbers: a temperature of 0 ends in a traceback, and a step that is never reached in a run without a result.
"""

import dataclasses
import math
import types
import typing
from enum import Enum

import yaml

AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("steps_per_generation", "generation_batch_size", "num_iterations", "max_completion_length"), 1),
    **dict.fromkeys(("vllm_tensor_parallel_size", "vllm_max_model_length", "lora_r", "lora_alpha"), 1),
    "num_generations": 2,
    "num_generations_eval": 1,
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon"), 0),
    **dict.fromkeys(("beta", "epsilon", "epsilon_high", "delta", "top_k", "min_p", "lora_dropout"), 0),
    **dict.fromkeys(("seed", "data_seed", "show_every", "save_total_limit", "price_per_hour", "gpus"), 0),
}
ABOVE_0 = ("temperature", "top_p", "repetition_penalty", "num_train_epochs", "save_steps", "eval_steps")
ABOVE_0 += ("logging_steps", "vllm_gpu_memory_utilization", "ddp_timeout")
AT_MOST = {
    **dict.fromkeys(("top_p", "min_p", "vllm_gpu_memory_utilization", "lora_dropout"), 1),
    **dict.fromkeys(("seed", "data_seed"), 2**32 - 1),  # numpy's greatest
}
# TRL takes them as any text, and refuses others in the middle of a run, or takes them for the last one
CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "vllm_mode": ("colocate", "server"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
PATHS = ("data_dir", "output_dir", "model_name_or_path", "resume_from_checkpoint")
IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


class UniqueLoader(yaml.SafeLoader):
    """Reads YAML as yaml.safe_load does, and refuses a key that stands there twice, of which the last would count."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def type_errors(settings, dataclass_types):
    """Values of a YAML (dict) that are not of the type that the dataclasses say, as a list of lines."""
    hints, defaults = {}, {}
    for dataclass_type in dataclass_types:
        hints |= typing.get_type_hints(dataclass_type)
        defaults |= {field.name: field.default for field in dataclasses.fields(dataclass_type)}
    errors = []
    for name, value in settings.items():
        if name not in hints or (value is None and defaults[name] is None):
            continue
        wanted = kinds(hints[name])
        if name == "lora_target_modules":
            wanted |= {str}  # peft's "all-linear", or a pattern
        if not is_of(value, wanted):
            words = " or ".join(IN_WORDS[kind] for kind in IN_WORDS if kind in wanted)
            advice = ""
            if isinstance(value, bool) and str in wanted:
                advice = ", in quotes, as YAML reads no, off, yes and on as false or true"
            elif wanted & {list}:
                advice = f": write {name}: [{value}]"
            errors.append(f"{name} is {value!r}, wanted {words}{advice}")
    return errors


def kinds(hint):
    """The types (set, of those in IN_WORDS) that a type hint takes in a YAML."""
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return set().union(*(kinds(part) for part in typing.get_args(hint)))
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    if isinstance(origin, type) and issubclass(origin, Enum):
        return {str}
    return {origin}


def is_of(value, wanted):
    """Whether a YAML's value is of one of these types. A text may stand for a number: YAML takes 1e-6 for a text."""
    if isinstance(value, str):
        return bool(wanted & {str, int, float, bool})
    if isinstance(value, int) and not isinstance(value, bool) and float in wanted:
        return True
    return type(value) in wanted


def value_errors(values):
    """Settings (a namespace) with a value that cannot be meant, as a list of lines."""
    errors = []
    for name, value in vars(values).items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            errors.append(f"{name} is {value}, wanted a finite number")
        elif name in CHOICES and value not in CHOICES[name]:
            errors.append(f"{name} is {value}, wanted {', '.join(CHOICES[name][:-1])} or {CHOICES[name][-1]}")
        elif name in PATHS and str(value).startswith("~"):
            errors.append(f"{name} is {value}, where a shell alone knows ~: write the whole path")
        elif name == "data_dir" and set(str(value)) & set("*?[]"):
            errors.append(f"{name} is {value}, and datasets takes * ? [ ] for patterns: rename the folder")
        elif isinstance(value, int | float) and not in_range(name, value):
            errors.append(f"{name} is {value}, wanted {range_in_words(name)}")
    if values.max_completion_length is None:
        errors.append("max_completion_length is null, wanted a number of tokens")
    if values.max_steps == 0 or values.max_steps < -1:
        errors.append(f"max_steps is {values.max_steps}, wanted at least 1, or -1 for those of num_train_epochs")
    return errors


def in_range(name, value):
    above = name not in ABOVE_0 or value > 0
    return above and AT_LEAST.get(name, value) <= value <= AT_MOST.get(name, value)


def range_in_words(name):
    """What in_range asks for.

    >>> range_in_words("top_p"), range_in_words("beta"), range_in_words("min_p")
    ('above 0 and at most 1', 'at least 0', 'at least 0 and at most 1')
    """
    least = "above 0" if name in ABOVE_0 else f"at least {AT_LEAST[name]}"
    return f"{least} and at most {AT_MOST[name]}" if name in AT_MOST else least
