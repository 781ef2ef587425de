"""How a prompt is made of what a task says: what the model is told and asked, and how its answer begins."""

from typing import NamedTuple

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

    instruction: str  # what the assistant is told of the format, after CONVERSATION or SYSTEM
    question: str  # what the user asks
    beginning: str  # of the assistant's turn, which the model goes on from


def render_template(prompt, form, tokenizer=None):
    """Return a Prompt as text with its {slots} left open.

    form: "base" for a base model. By any other name the prompt is a chat, rendered by the tokenizer's own chat
    template, or by Qwen's ChatML if no tokenizer is given. The assistant's turn stays open either way. Raises
    ValueError if that template fails.
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
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"the chat template of --tokenizer {tokenizer.name_or_path} fails ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): give another, or --template base"
        ) from error
    return without_second_bos(text, tokenizer)


def without_second_bos(text, tokenizer):
    """A rendered chat without its written BOS where the tokenizer adds another, as with DeepSeek-R1-Distill.

    Every prompt is tokenized as any text is, which puts BOS before it where the tokenizer is made so.
    """
    if begins_with_two_bos(tokenizer(text)["input_ids"], tokenizer):
        return text.removeprefix(tokenizer.bos_token)
    return text


def begins_with_two_bos(token_ids, tokenizer):
    """Whether a tokenized prompt begins with the token of its beginning twice."""
    return tokenizer.bos_token_id is not None and token_ids[:2] == [tokenizer.bos_token_id] * 2


def fill_template(template, **slots):
    """The prompt of one problem. Not by str.format: a chat template or a problem may hold other braces."""
    for name, value in slots.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def load_tokenizer(name):
    """The tokenizer of a model folder or hub id, None for None. Raises ValueError where it cannot be had."""
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"tokenizer {name} cannot be had ({reason}): give the folder of one with --tokenizer"
        ) from error


def drop_long_prompts(rows, tokenizer, max_prompt_length, counts):
    """Yields the rows whose prompt has at most max_prompt_length tokens, all where it is None; counts the others."""
    if not max_prompt_length:
        yield from rows
        return
    reason = f"prompts over {max_prompt_length:,} tokens"
    for some in chunked(rows):
        token_ids = tokenizer([row["prompt"] for row in some])["input_ids"]
        kept = [row for row, ids in zip(some, token_ids, strict=True) if len(ids) <= max_prompt_length]
        counts[reason] += len(some) - len(kept)
        yield from kept
