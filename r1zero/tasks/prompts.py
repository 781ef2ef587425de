"""Make prompts from a task's instruction, question and beginning of the answer."""

import hashlib
import importlib
from pathlib import Path
from typing import NamedTuple

from r1zero.files import is_folder_name, one_line
from r1zero.tasks.problem_files import chunked

CONVERSATION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer."
)
SYSTEM = (
    "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides the user "
    "with the answer."
)


class Prompt(NamedTuple):
    """The texts of a task's prompt, with {slots} for a problem's own."""

    instruction: str  # on the format, after CONVERSATION or SYSTEM
    question: str  # the user's
    beginning: str  # of the assistant's turn: the model continues it


def render_template(prompt, form, tokenizer=None):
    """Return a Prompt as text with its {slots} left open.

    form: "base" for a base model. Any other form makes a chat, by the tokenizer's own chat template, or by Qwen's
    ChatML without a tokenizer. The assistant's turn stays open, and has one <think>: that of a template that opens it
    itself, otherwise the prompt's. Raises ValueError if the template fails.
    """
    if form == "base":
        return f"{CONVERSATION}{prompt.instruction}\nUser: {prompt.question}\nAssistant: {prompt.beginning}"
    messages = [
        {"role": "system", "content": SYSTEM + prompt.instruction},
        {"role": "user", "content": prompt.question},
        {"role": "assistant", "content": prompt.beginning},
    ]
    if tokenizer is None:
        turns = [f"<|im_start|>{message['role']}\n{message['content']}" for message in messages]
        return "<|im_end|>\n".join(turns)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        asked = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"the chat template of --tokenizer {tokenizer.name_or_path} fails ({type(error).__name__}: "
            f"{one_line(error)}): give another, or --template base"
        ) from error
    if asked.rstrip().endswith("<think>"):
        text = asked
    elif text.count("</think>") > asked.count("</think>"):  # an empty block, for an answer without thinking
        text = asked + prompt.beginning
    if begins_with_two_bos(tokenizer(text)["input_ids"], tokenizer):  # as DeepSeek-R1-Distill's: drop the written one
        text = text.removeprefix(tokenizer.bos_token)
    return text


def stamp(form, templates):
    """Return the metadata (dict) of a file with prompts of these templates: the form and a checksum of each.

    templates: rendered in this form, by the place of their Prompt in this package, such as "countdown.PROMPT".
    """
    return {f"template {place}": f"{form} {checksum(text)}" for place, text in templates.items()}


def checksum(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outdated(metadata, form, tokenizer):
    """Return the places of the prompts (list[str]) that would be written otherwise now than in a file.

    metadata: the file's, None if it has none; form: the one wanted, None for the file's; tokenizer: of the model.
    """
    places = []
    for key, value in (metadata or {}).items():
        if not key.startswith(b"template "):
            continue
        place, (written, found) = key.decode().split()[1], value.decode().split()
        module, _, name = place.partition(".")
        try:
            prompt = getattr(importlib.import_module(f"r1zero.tasks.{module}"), name)
            now = render_template(prompt, form or written, tokenizer if tokenizer.chat_template else None)
        except (ImportError, AttributeError, ValueError):  # the prompt is gone, or the model's template fails
            now = ""
        if checksum(now) != found:
            places.append(place)
    return places


def begins_with_two_bos(token_ids, tokenizer):
    """Return whether a tokenized prompt begins with two BOS tokens."""
    return tokenizer.bos_token_id is not None and token_ids[:2] == [tokenizer.bos_token_id] * 2


def fill_template(template, **slots):
    """Fill in the {slots} of a problem. Not by str.format: a chat template or a problem may hold other braces."""
    for name, value in slots.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def load_tokenizer(name):
    """Load the tokenizer of a model folder or hub id, None for None. Raises ValueError if it cannot be loaded."""
    if name is None:
        return None
    if is_folder_name(name) and not Path(name).is_dir():
        raise ValueError(f"tokenizer {name} is a folder that does not exist: give another with --tokenizer")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"tokenizer {name} cannot be had ({reason}): give the folder of one with --tokenizer"
        ) from error


def drop_long_prompts(rows, tokenizer, max_prompt_length, counts):
    """Yield the rows whose prompt has at most max_prompt_length tokens, all if it is None. Count the others."""
    if max_prompt_length is None:
        yield from rows
        return
    reason = f"prompts over {max_prompt_length:,} tokens"
    for some in chunked(rows):
        token_ids = tokenizer([row["prompt"] for row in some])["input_ids"]
        short = [row for row, ids in zip(some, token_ids, strict=True) if len(ids) <= max_prompt_length]
        counts[reason] += len(some) - len(short)
        yield from short
