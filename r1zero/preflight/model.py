"""What can be wrong with a model, found before any weight is loaded: each error is one line that says what to do.

A model is a folder, whose weights are safetensors alone, or a hub id. transformers runs no code of a pickle there.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from r1zero.estimate import model_shapes
from r1zero.files import is_folder_name, one_line, shown
from r1zero.tasks.prompts import begins_with_two_bos
from r1zero.training import lora

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class Model:
    """A model without its weights.

    parameters: the model on the meta device; tokenizer: None if only the model's shape in model_shapes.py is known.
    """

    config: PretrainedConfig
    parameters: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None


def read(values, elsewhere=False):
    """Return the Model of a run, None if it cannot be had, and the errors (list of lines).

    A dry run takes the shape in model_shapes.py for a model that cannot be had. elsewhere: whether the run is for
    another machine, so that a folder may be missing here and the hub is not asked.
    """
    name = values.model_name_or_path
    if not name:
        return None, ["no model is named: pass --model_name_or_path FOLDER_OR_HUB_ID"]
    source = {"revision": values.model_revision, "local_files_only": elsewhere}
    source["trust_remote_code"] = values.trust_remote_code
    try:
        config, tokenizer = read_config(name, **source), read_tokenizer(name, **source)
        model = Model(config, without_weights(config, values.trust_remote_code), tokenizer)
    except ValueError as error:
        config = model_shapes.config_of(name)
        if values.dry_run and config is not None and not Path(name).is_dir():
            return Model(config, without_weights(config), None), []
        return None, [one_line(error)]
    errors = []
    if tokenizer.eos_token_id is None:
        errors.append(
            f"the tokenizer of model {name} has no eos_token, which ends a completion: write the one that the model "
            'knows, as "eos_token": "<|endoftext|>", into its tokenizer_config.json'
        )
    if not elsewhere:
        errors += weight_errors(name, config, values.trust_remote_code)
    return model, errors


# Configuration and tokenizer


def read_config(name, trust_remote_code=False, **source):
    """Return the configuration of a model. Raises ValueError with a line if there is none that can be used.

    trust_remote_code: whether the model's own Python code may run; source: from_pretrained's revision and
    local_files_only.
    """
    here = Path(name).is_dir()
    if is_folder_name(name) and not here and not source.get("local_files_only"):
        raise ValueError(f"model {name} is a folder that does not exist: name another, or a hub id")
    if here and not Path(name, "config.json").is_file():
        raise ValueError(
            f"model {name} has no config.json: name the folder of a whole model, or a hub id (of a LoRA adapter, its "
            "base or the two merged)"
        )
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    except Exception as error:  # a model's own code may raise anything
        raise ValueError(unusable_line(name, f"model {name} cannot be had", error)) from error


def read_tokenizer(name, trust_remote_code=False, **source):
    """Return the tokenizer of a model, as for read_config. Raises ValueError with a line if none can be had."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    except Exception as error:  # for a tokenizer.json that is cut short, a plain Exception
        raise ValueError(unusable_line(name, f"the tokenizer of model {name} cannot be used", error)) from error
    if not tokenizer("a 1")["input_ids"]:  # what transformers makes of some folders without a tokenizer
        raise ValueError(unusable_line(name, f"the tokenizer of model {name} cannot be used", "it makes no tokens"))
    return tokenizer


def without_weights(config, trust_remote_code=False):
    """Return the model of a configuration on the meta device, where it takes no memory. Raises ValueError if none."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a configuration may hold anything
        raise ValueError(
            f"model {config.name_or_path} is no causal language model that transformers can build "
            f"({one_line(error)[:300]}): name another model"
        ) from error


def unusable_line(name, what, reason):
    """Return the line of a configuration or a tokenizer that cannot be used. reason: an exception, or a text."""
    if "trust_remote_code" in str(reason):
        return (
            f"model {name} comes with Python code of its own, which would run with all your rights: read it and pass "
            "--trust_remote_code, or name another model"
        )
    line = f"{what} ({one_line(reason)[:300]})"
    if Path(name).is_dir():
        return f"{line}: copy the files of a whole model there, or name another folder or a hub id"
    folder = f"models/{Path(name).name}"
    return f"{line}: with a network, type hf download {name} --local-dir {folder}, and name {folder} here"


def adapter_base(name):
    """Return the model that the LoRA adapter in a folder is for. Raises ValueError with a line if it does not say."""
    path = Path(name, ADAPTER_CONFIG)
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
        if not isinstance(base, str):
            raise TypeError(f"base_model_name_or_path is {base}")
        return base
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} names no base model ({one_line(error)}): name a whole checkpoint") from error


# Weights


def weight_errors(name, config, trust_remote_code=False):
    """Return why the weights in a model's folder cannot be loaded, or which of them it lacks (list of one line).

    transformers would draw the latter at random. Loading onto the meta device reads no weight. config: as read_config
    gives it. Weights of the hub, and quantized ones, whose files hold other shapes, are not looked at.
    """
    if not Path(name).is_dir() or getattr(config, "quantization_config", None):
        return []
    advice = "copy or download the whole folder again, or name another model"
    settings = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its own report has many lines
    logging.disable_progress_bar()
    try:
        _, loaded = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=trust_remote_code, **settings
        )
    except Exception as error:  # of safetensors, json or transformers
        found = f"{type(error).__name__}: {one_line(error)[:300]}"
        return [f"the weights of model {name} cannot be loaded ({found}): {advice}"]
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    misfits = [f"{key} is missing" for key in sorted(loaded["missing_keys"])]
    for key, stored, wanted in sorted(loaded["mismatched_keys"]):
        misfits.append(f"{key} is {list(stored)}, wanted {list(wanted)}")
    if not misfits:
        return []
    more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
    return [f"the weights of model {name} are not those that its config.json asks for ({misfits[0]}{more}): {advice}"]


# Prompts and the model together


def longest_prompt(prompts, model):
    """Return the tokens of the longest prompt, 0 if it is not known, and the errors (list of lines).

    prompts: list of texts and chats; model: Model, or None.
    """
    if model is None or model.tokenizer is None:
        return 0, []
    longest, highest = 0, 0
    for prompt in prompts:
        is_chat = not isinstance(prompt, str)
        if is_chat:
            try:
                prompt = model.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template may raise anything
                return 0, [
                    f"the chat template of the model fails ({type(error).__name__}: {one_line(error)}) on a prompt "
                    f"with {shown(prompt)}: write the prompts as text, or mend chat_template.jinja"
                ]
        token_ids = model.tokenizer(prompt, add_special_tokens=not is_chat)["input_ids"]  # as TRL does
        if begins_with_two_bos(token_ids, model.tokenizer):
            return 0, [
                f"prompts begin with {model.tokenizer.bos_token} twice, as the text has one and the tokenizer adds "
                "another: write the data anew, with preprocess.py and this model's --tokenizer or without the first"
            ]
        longest, highest = max(longest, len(token_ids)), max([highest, *token_ids])
    return longest, vocabulary_errors(model.config, model.tokenizer, highest)


def vocabulary_errors(config, tokenizer, highest):
    """Return a token that the model has no embedding for (list of lines). highest: of the ids in the prompts."""
    ids = [highest, *(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None)]
    size = config.get_text_config().vocab_size
    if max(ids) < size:
        return []
    return [
        f"model {config.name_or_path} has embeddings for {size:,} tokens, and its tokenizer writes prompts or pads "
        f"them with the token {max(ids)}, {tokenizer.convert_ids_to_tokens(max(ids))!r}: put the tokenizer that it "
        f"was trained with into its folder, or enlarge it with resize_token_embeddings({len(tokenizer)})"
    ]


def fit_errors(values, model, longest):
    """Return a context that is too short, and layers that LoRA does not find (list of lines).

    model: Model, or None; longest: tokens of the longest prompt.
    """
    if model is None:
        return []
    context = getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)
    whose, otherwise = "the model's context", ""
    colocate = values.use_vllm and values.vllm_mode == "colocate"  # a server has its own length
    if colocate and values.vllm_max_model_length and values.vllm_max_model_length < context:
        context, whose = values.vllm_max_model_length, "vllm_max_model_length"
        otherwise = ", or raise --vllm_max_model_length"
    errors = context_errors(longest, values.max_completion_length, context, whose, otherwise)
    return errors + lora.target_errors(values, model.parameters)


def context_errors(longest, completion, context, whose, otherwise=""):
    """Return a prompt of `longest` tokens that does not fit with a completion into a context (list of lines).

    whose: the context is; otherwise: what else to do, as the end of a line.
    """
    if longest + completion <= context:
        return []
    advice = f"set --max_completion_length to at most {context - longest}"
    if longest >= context:
        advice = "write the data without it, with preprocess.py and --max_prompt_length, or name another model"
    found = f"a prompt of {longest} tokens and --max_completion_length {completion} exceed {whose} of {context}"
    return [f"{found}: {advice}{otherwise}"]
