"""Settings that cannot be meant, found before anything is computed with them: each error is one line.

TRL's parser takes a YAML's values as they are, whatever their type, and neither TRL nor transformers looks at most
numbers: a temperature of 0 ends in a traceback, and a step that is never reached in a run without a result.
"""

import typing
from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

RANGES = {
    Interval(ge=1): (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("completions_per_step", "steps_per_generation", "generation_batch_size", "num_generations_eval"),
        *("num_iterations", "max_completion_length", "vllm_tensor_parallel_size", "vllm_max_model_length"),
        *("lora_r", "lora_alpha", "tokens_per_pass"),
    ),
    Interval(ge=2): ("num_generations",),
    Interval(ge=0): (
        *("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "beta", "epsilon"),
        *("epsilon_high", "delta", "top_k", "show_every", "save_total_limit", "price_per_hour", "gpus"),
    ),
    Interval(ge=0, le=1): ("min_p", "lora_dropout"),
    Interval(ge=0, lt=1): ("adam_beta1", "adam_beta2"),
    Interval(ge=0, le=2**32 - 1): ("seed", "data_seed"),  # numpy's greatest
    Interval(gt=0): (
        *("temperature", "repetition_penalty", "num_train_epochs", "save_steps", "eval_steps", "logging_steps"),
        "ddp_timeout",
    ),
    Interval(gt=0, le=1): ("top_p", "vllm_gpu_memory_utilization"),
}
# What TRL and peft take beside their own type hints, or refuse in the middle of a run
TYPES = {
    "lora_target_modules": list[str] | str | None,  # peft's "all-linear", or a pattern
    "max_completion_length": int,
    "loss_type": Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"],
    "importance_sampling_level": Literal["token", "sequence"],
    "scale_rewards": Literal["group", "batch", "none"],
    "vllm_mode": Literal["colocate", "server"],
    "vllm_importance_sampling_mode": Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
}


def errors(given, dataclass_types):
    """Return a line for each setting with a value of another type, or out of its range.

    given: dict of the settings of a YAML and of flags. A text may stand for a number: YAML takes 1e-6 for a text.
    """
    hints = {}
    for dataclass_type in dataclass_types:
        hints |= typing.get_type_hints(dataclass_type)
    hints |= TYPES
    for interval, names in RANGES.items():
        hints |= {name: Annotated[hints[name], interval] for name in names}
    lines = []
    for name, value in given.items():
        try:
            adapter = TypeAdapter(hints[name], config=ConfigDict(allow_inf_nan=False))
            adapter.validate_python(value, strict=not isinstance(value, str))
        except ValidationError as error:
            wanted = [each["msg"].removeprefix("Input should be ") for each in error.errors()]
            wanted = [words for words in wanted if not words.startswith("an instance of")]  # or its name as text
            line = f"{name} is {value!r}, wanted {' or '.join(wanted)}"
            if isinstance(value, bool) and "a valid string" in wanted:
                line += ", in quotes, as YAML reads no, off, yes and on as false or true"
            lines.append(line)
        if isinstance(value, str) and value.startswith("~"):
            lines.append(f"{name} is {value}, and only a shell knows ~: write the whole path")
    if given.get("max_steps") == 0:
        lines.append("max_steps is 0, wanted at least 1, or -1 for those of num_train_epochs")
    if given.get("load_best_model_at_end") and not given.get("metric_for_best_model"):
        found = "load_best_model_at_end goes by eval_loss, about 0 in GRPO whatever the model"
        lines.append(f"{found}: pass --metric_for_best_model eval_reward")
    return lines
