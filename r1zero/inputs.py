"""What a run is given, read before it is trained with: reward functions, data and model.

Each function returns what it found and a list of errors, one line each, for checks.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from r1zero import machine, model_shapes, reward_functions
from r1zero.prompts import begins_with_two_bos

ROWS_TRIED = 1024  # rows of each file that the reward functions are tried on ...
ROWS_TRIED_ON_OWN = 64  # ... and where one of them is a user's own, which may take its time
LONGEST = 16  # prompts of each file, the longest in characters, whose tokens are counted


@dataclass
class File:
    """One file of the data.

    rows: how many it has; prompts: list of its longest; first: dict of every column to its first values.
    """

    path: Path
    rows: int
    prompts: list
    first: dict


@dataclass
class Data:
    """The training data. rows: of train, None where not known; prompts: list of the longest; files: list[File]."""

    rows: int | None = None
    prompts: list = field(default_factory=list)
    files: list = field(default_factory=list)


@dataclass
class Model:
    """A model's configuration, the model of it on the meta device, which has no weights, and its tokenizer.

    The tokenizer is None where all that is known of the model is its shape in model_shapes.py.
    """

    config: PretrainedConfig
    parameters: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None


def one_line(error):
    """The text of an exception on one line."""
    return " ".join(str(error).split())


def read_rewards(values):
    """The reward functions (list, None where one cannot be had) and the errors."""
    names, weights = values.reward_funcs, values.reward_weights
    for setting, given in (("reward_funcs", names), ("reward_weights", weights)):
        if given is not None and not isinstance(given, list):
            return None, [f"{setting} is {given}, wanted a list: write {setting}: [{given}]"]
    functions, errors = None, []
    try:
        functions = reward_functions.resolve(names, values.data_dir, values.allow_unsandboxed_code)
    except ValueError as error:
        errors.append(one_line(error))
    except RuntimeError as error:
        errors.append(f"code_reward: {one_line(error)}")
    if weights is not None and len(weights) != len(names):
        errors.append(
            f"reward_weights has {len(weights)} numbers and reward_funcs {len(names)} names: give one weight for each"
        )
    return functions, errors


def read_data(values, missing):
    """The Data of a run and the errors. missing: machine.Missing, of which a dry run makes nothing."""
    if missing.data:
        return Data(missing.rows, missing.prompts), []
    paths = data_files(values)
    lacking = [str(path) for path in paths if not path.is_file()]
    if lacking:
        where = "name the folder that has it with --data_dir"
        return Data(), [f"missing data: {' and '.join(lacking)}; {how_to_write(values)}, or {where}"]
    data, errors = Data(), []
    for path in paths:
        try:
            file = read_file(path, values)
        except (OSError, ValueError) as error:
            errors.append(one_line(error))
            continue
        data.files.append(file)
        data.prompts += file.prompts
        if path.stem == "train":
            data.rows = file.rows
    return data, errors


def data_files(values):
    """The files (list[Path]) that a run's data is in."""
    return [Path(values.data_dir, f"{split}.parquet") for split in ("train", "test")]


def has_data(values):
    """Whether the data of a run is here."""
    return all(path.is_file() for path in data_files(values))


def how_to_write(values):
    """What to type to have the data."""
    return f"type python {values.prepare or 'preprocess.py TASK'}"


def read_file(path, values):
    """The File at a path. Raises OSError or ValueError, with what to type, where it cannot be trained on."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        write = f"{how_to_write(values)} to have it anew"
        raise ValueError(f"{path} is no readable parquet file ({error}): {write}") from error
    columns, rows = file.schema_arrow.names, file.metadata.num_rows
    if "prompt" not in columns:
        raise ValueError(f"{path} has the columns {columns} and lacks prompt: {how_to_write(values)}")
    if rows == 0:
        raise ValueError(f"{path} has no rows: {how_to_write(values)} to have it anew")
    tried = ROWS_TRIED
    if any(":" in name for name in values.reward_funcs):
        tried = ROWS_TRIED_ON_OWN
    first = next(file.iter_batches(tried)).to_pydict()
    prompts = pq.read_table(path, columns=["prompt"])["prompt"].to_pylist()
    prompts.sort(key=lambda prompt: len(str(prompt)))
    return File(path, rows, prompts[-LONGEST:], first)


def read_model(values, missing, elsewhere=False):
    """The Model of a run, None where it cannot be had, and the errors. missing: machine.Missing, as for the data.

    A dry run takes a model of the hub that cannot be had by its shape in model_shapes.py. elsewhere: whether it is for
    another machine, where a folder may be that is not here; the hub is not asked then.
    """
    if missing.model:
        if missing.config is None:  # a script that does not say what it would make
            return None, []
        return Model(missing.config, without_weights(missing.config), missing.tokenizer), []
    name = values.model_name_or_path
    if not name:
        return None, ["no model is named: pass --model_name_or_path FOLDER_OR_HUB_ID"]
    if machine.is_folder_name(name) and not Path(name).is_dir() and not elsewhere:
        return None, [f"model {name} is a folder that does not exist: pass --model_name_or_path FOLDER_OR_HUB_ID"]
    try:
        source = {"revision": values.model_revision, "local_files_only": elsewhere}
        config = AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        return Model(config, without_weights(config), tokenizer), []
    except (OSError, ValueError) as error:
        config = model_shapes.config_of(name)
        if values.dry_run and config is not None:
            return Model(config, without_weights(config), None), []
        folder = f"models/{Path(name).name}"
        return None, [
            f"model {name} cannot be had ({str(error).splitlines()[0]}): where there is a network, type hf download "
            f"{name} --local-dir {folder}; here, pass --model_name_or_path {folder}"
        ]


def without_weights(config):
    """The model of a configuration on the meta device, which takes no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def longest_prompt(data, model):
    """Tokens of the longest prompt, 0 where none is known, and the errors. A prompt is a text, or chat messages."""
    if model is None or model.tokenizer is None:
        return 0, []
    longest = 0
    for prompt in data.prompts:
        is_chat = not isinstance(prompt, str)
        if is_chat:
            if not model.tokenizer.chat_template:
                return 0, ["the prompts are chats and the model has no chat template: write the prompts as text"]
            prompt = model.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        token_ids = model.tokenizer(prompt, add_special_tokens=not is_chat)["input_ids"]  # as TRL does
        if begins_with_two_bos(token_ids, model.tokenizer):
            return 0, [
                f"prompts begin with {model.tokenizer.bos_token} twice, as the text has one and the tokenizer adds "
                "another: write the data anew, with preprocess.py and this model's --tokenizer or without the first"
            ]
        longest = max(longest, len(token_ids))
    return longest, []
