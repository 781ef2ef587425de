"""What can be wrong with a model, found before any weight is loaded: each error is one line that says what to do.

A model is a folder or a hub id. Its weights are safetensors alone, since to unpickle a file is to run what it says.
"""

import json
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from r1zero.files import broken_line, one_line
from r1zero.preflight import machine

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


# Configuration and tokenizer


def read_config(name, trust_remote_code=False, **source):
    """The configuration of a model. Raises ValueError with a line where there is none, or none that can be used.

    trust_remote_code: whether the model's own Python code may run; source: from_pretrained's revision and
    local_files_only.
    """
    here = Path(name).is_dir()
    if machine.is_folder_name(name) and not here and not source.get("local_files_only"):
        raise ValueError(f"model {name} is a folder that does not exist: name another, or a hub id")
    if here and not Path(name, "config.json").is_file():
        if Path(name, ADAPTER_CONFIG).is_file():
            raise ValueError(adapter_line(name))
        raise ValueError(f"model {name} has no config.json: name the folder of a whole model, or a hub id")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    except OSError as error:
        raise ValueError(unavailable_line(name, error)) from error
    except Exception as error:  # a model's own code may raise anything
        raise ValueError(refused_line(name, "config.json", error)) from error
    if not config.architectures:  # TRL takes the first, to have the model's class
        raise ValueError(
            f"the config.json of model {name} names no architectures: write the class of the model there, as in "
            '"architectures": ["Qwen2ForCausalLM"]'
        )
    return config


def read_tokenizer(name, trust_remote_code=False, **source):
    """The tokenizer of a model, as for read_config. Raises ValueError with a line where none can be had."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    except Exception as error:  # for a tokenizer.json that is cut short, a plain Exception
        raise ValueError(refused_line(name, "tokenizer", error)) from error
    if not tokenizer("a 1")["input_ids"]:  # what transformers makes of some folders without a tokenizer
        raise ValueError(refused_line(name, "tokenizer", "it makes no tokens of a text"))
    return tokenizer


def without_weights(config, trust_remote_code=False, attention=None):
    """The model of a configuration on the meta device, which takes no memory. ValueError where there is none of it.

    attention: transformers' attn_implementation, whose own is taken where that is None.
    """
    try:
        with torch.device("meta"):
            trust = {"trust_remote_code": trust_remote_code}
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention, **trust)
    except Exception as error:  # a configuration may hold anything
        raise ValueError(
            f"model {config.name_or_path} is no causal language model that transformers can build "
            f"({one_line(error)[:300]}): name another model{', or leave out --attn_implementation' * bool(attention)}"
        ) from error


def unavailable_line(name, error):
    """The line of a model that is not there. error: the OSError that says so."""
    reason = str(error).splitlines()[0]
    if Path(name).is_dir():
        return f"model {name} cannot be had ({reason}): name the folder of a whole model, or a hub id"
    folder = f"models/{Path(name).name}"
    return (
        f"model {name} cannot be had ({reason}): where there is a network, type hf download {name} --local-dir "
        f"{folder}, and name {folder} here"
    )


def refused_line(name, what, reason):
    """The line of a config.json or a tokenizer that cannot be used. reason: an exception, or a text."""
    if "trust_remote_code" in str(reason):
        return (
            f"model {name} comes with Python code of its own, which would run with all your rights: read it and pass "
            "--trust_remote_code, or name another model"
        )
    return (
        f"the {what} of model {name} cannot be used ({one_line(reason)[:300]}): put those of the model that it was "
        "made from beside the weights, with hf download MODEL --include '*.json' '*.txt' '*.model' --local-dir "
        "FOLDER, or name another model"
    )


def adapter_base(name):
    """The model that the LoRA adapter in a folder is for. Raises ValueError with a line where it does not say that."""
    path = Path(name, ADAPTER_CONFIG)
    try:
        return json.loads(path.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} names no base model ({one_line(error)}): name a whole checkpoint") from error


def adapter_line(name):
    """The line of a LoRA adapter that is named where a whole model is wanted."""
    merge = (
        f"from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
        f"M.from_pretrained('{name}').merge_and_unload().save_pretrained('{name}-merged'); "
        f"T.from_pretrained('{name}').save_pretrained('{name}-merged')"
    )
    return (
        f"model {name} is a LoRA adapter of {adapter_base(name)}: name that model, or merge the two, with python -c "
        f'"{merge}", and name {name}-merged'
    )


# Weights


def weight_errors(name, config, revision=None, trust_remote_code=False):
    """Weights that are missing, pickled, cut short or of another config, as a list of lines.

    config: as read_config gives it. Of a model that only the hub has, no more is known than the names of its files.
    """
    folder, there = model_files(name, revision)
    if SAFE_WEIGHTS_NAME in there:
        files = [SAFE_WEIGHTS_NAME]
    elif SAFE_WEIGHTS_INDEX_NAME not in there:
        return [no_safetensors_line(name, there)]
    elif folder is None:
        return []
    else:
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [f"{index} cannot be read ({one_line(error)}): copy or download it again, or name another model"]
    if folder is None:
        return []
    broken = [line for line in (broken_line(folder / file) for file in files) if line]
    return broken or misfit_errors(name, folder, config, trust_remote_code)


def misfit_errors(name, folder, config, trust_remote_code):
    """Weights that a model's config asks for and its files (in folder, a Path) do not have, as a list of lines.

    transformers would draw them at random. Here it loads onto the meta device, which reads no weight.
    """
    if getattr(config, "quantization_config", None):  # its files hold more, and other shapes
        return []
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _, found = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
        )
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    misfits = [f"{key} is missing" for key in sorted(found["missing_keys"])]
    for key, stored, wanted in sorted(found["mismatched_keys"]):
        misfits.append(f"{key} is {list(stored)}, wanted {list(wanted)}")
    if not misfits:
        return []
    more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
    return [
        f"the weights of model {name} are not those that its config.json asks for ({misfits[0]}{more}): copy or "
        "download the whole folder again, or name another model"
    ]


def model_files(name, revision):
    """The folder (Path) of a model, None where the hub has it, and the names (set) of the files there."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            return None, set(HfApi().list_repo_files(name, revision=revision))
        except Exception:  # its client's own kinds. Without a network, what is in the cache is what will be loaded
            folder = Path(try_to_load_from_cache(name, "config.json", revision=revision)).parent
    return folder, {path.name for path in folder.iterdir()}


def no_safetensors_line(name, there):
    """The line of a model without safetensors. there: the names of its files."""
    pickled = sorted(file for file in there if file.startswith("pytorch_model") and file.endswith(".bin"))
    if not pickled:
        return f"model {name} has no weights ({SAFE_WEIGHTS_NAME}): name the folder of a whole model, or a hub id"
    folder, first = name, ""
    if not Path(name).is_dir():
        folder = f"models/{Path(name).name}"
        first = f"hf download {name} --local-dir {folder}, then "
    return (
        f"model {name} has pickled weights ({pickled[0]}), which may run code when they are loaded, wanted "
        f'{SAFE_WEIGHTS_NAME}: name another model or, where you trust this one, type {first}python -c "from '
        "transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\", and name {folder}"
    )


def adapter_errors(name):
    """Weights of the LoRA adapter in a folder that are missing, pickled or cut short, as a list of lines."""
    path = Path(name, ADAPTER_WEIGHTS)
    if not path.is_file():
        return [f"the LoRA adapter {name} has no {ADAPTER_WEIGHTS}: name the folder of a whole checkpoint"]
    line = broken_line(path)
    return [line] if line else []


# Tokens


def tokenizer_errors(name, tokenizer):
    """What TRL cannot train with, as a list of lines: a tokenizer that has no token to end a completion with."""
    if tokenizer.eos_token_id is not None:
        return []
    return [
        f"the tokenizer of model {name} has no eos_token, which ends a completion and pads where there is no "
        'pad_token: write "eos_token": "<|endoftext|>", or the one that the model knows, into its '
        "tokenizer_config.json"
    ]


def vocabulary_errors(config, tokenizer, highest):
    """A token that the model has no embedding for, as a list of lines. highest: of the ids in the prompts."""
    ids = [highest, *(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None)]
    size = config.get_text_config().vocab_size
    if max(ids) < size:
        return []
    name, token = config.name_or_path, tokenizer.convert_ids_to_tokens(max(ids))
    return [
        f"model {name} has embeddings for {size:,} tokens, and its tokenizer writes prompts or pads them with the "
        f"token {max(ids)}, {token!r}: put the tokenizer that it was trained with into its folder, or enlarge it, "
        'with python -c "from transformers import AutoModelForCausalLM as M; '
        f"m = M.from_pretrained('{name}'); m.resize_token_embeddings({len(tokenizer)}); "
        f"m.save_pretrained('{name}')\""
    ]


def context_errors(longest, completion, context, where, otherwise=""):
    """A prompt of `longest` tokens that does not fit with a completion into a context, as a list of lines.

    where: whose context that is; otherwise: what else to do, as the end of a line.
    """
    if longest + completion <= context:
        return []
    if longest >= context:
        return [
            f"a prompt of {longest} tokens leaves no room for a completion in {where} of {context}: write the data "
            f"without it, with preprocess.py and --max_prompt_length, or name another model{otherwise}"
        ]
    return [
        f"a prompt of {longest} tokens and --max_completion_length {completion} exceed {where} of {context}: set "
        f"--max_completion_length to at most {context - longest}{otherwise}"
    ]
