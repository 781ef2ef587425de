"""What a run is given, read before it is trained with: reward functions, data and model.

Each function returns what it found and a list of errors, one line each, for checks.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from r1zero import files
from r1zero.estimate import model_shapes
from r1zero.files import one_line
from r1zero.preflight import data as data_checks
from r1zero.preflight import model as model_checks
from r1zero.preflight.model import without_weights
from r1zero.tasks.prompts import begins_with_two_bos
from r1zero.training import reward_functions

ROWS_TRIED = 1024  # rows of each file that the reward functions are tried on ...
ROWS_TRIED_ON_OWN = 64  # ... and where one of them is a user's own, which may take its time


@dataclass
class File:
    """One file of the data. rows: how many it has; first: dict of every column to its first values."""

    path: Path
    rows: int
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


def read_rewards(values):
    """The reward functions (list, None where one cannot be had) and the errors."""
    names, weights = values.reward_funcs, values.reward_weights
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
    tried = ROWS_TRIED
    if any(":" in name for name in values.reward_funcs):
        tried = ROWS_TRIED_ON_OWN
    data, errors = Data(), []
    for path in paths:
        survey, found = data_checks.examine(path, values.reward_funcs, how_to_write(values), tried)
        errors += found
        if survey is not None:
            data.files.append(File(path, survey.rows, survey.first))
            data.prompts += survey.prompts
            if path.stem == "train":
                data.rows = survey.rows
    if len(data.files) == 2:
        train, test = data.files
        more = [column for column in test.first if column not in train.first]
        if more:  # datasets would not read the two together
            errors.append(f"{test.path} has the columns {more}, which {train.path} lacks: remove them from it")
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
    source = {"revision": values.model_revision, "local_files_only": elsewhere}
    source["trust_remote_code"] = values.trust_remote_code
    try:
        config = model_checks.read_config(name, **source)
        tokenizer = model_checks.read_tokenizer(name, **source)
        attention = None if elsewhere else values.attn_implementation  # which needs a package of its own, or none
        model = Model(config, without_weights(config, values.trust_remote_code, attention), tokenizer)
    except ValueError as error:
        config = model_shapes.config_of(name)
        if values.dry_run and config is not None and not Path(name).is_dir():
            return Model(config, without_weights(config), None), []
        return None, [one_line(error)]
    errors = model_checks.tokenizer_errors(name, tokenizer)
    if not elsewhere:
        errors += model_checks.weight_errors(name, config, values.model_revision, values.trust_remote_code)
    return model, errors


def longest_prompt(data, model):
    """Tokens of the longest prompt, 0 where none is known, and the errors. A prompt is a text, or chat messages."""
    if model is None or model.tokenizer is None:
        return 0, []
    longest, highest = 0, 0
    for prompt in data.prompts:
        is_chat = not isinstance(prompt, str)
        if is_chat:
            if not model.tokenizer.chat_template:
                return 0, ["the prompts are chats and the model has no chat template: write the prompts as text"]
            try:
                prompt = model.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template may raise anything
                return 0, [
                    f"the chat template of the model fails ({type(error).__name__}: {one_line(error)}) on a prompt "
                    f"with {files.shown(prompt)}: write the prompts as text, or mend chat_template.jinja"
                ]
        token_ids = model.tokenizer(prompt, add_special_tokens=not is_chat)["input_ids"]  # as TRL does
        if begins_with_two_bos(token_ids, model.tokenizer):
            return 0, [
                f"prompts begin with {model.tokenizer.bos_token} twice, as the text has one and the tokenizer adds "
                "another: write the data anew, with preprocess.py and this model's --tokenizer or without the first"
            ]
        longest, highest = max(longest, len(token_ids)), max([highest, *token_ids])
    return longest, model_checks.vocabulary_errors(model.config, model.tokenizer, highest)
