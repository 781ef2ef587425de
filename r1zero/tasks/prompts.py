"""The prompts: what the model is told, what it is asked, and how its answer begins.

Training and evaluation both start from these. Countdown's and the multiplication's are TinyZero's
(examples/data_preprocess), those of boxed maths are the x_r1_750 recipe's.
"""

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
    instruction: str  # what the assistant is told of the format, after CONVERSATION or SYSTEM
    question: str  # what the user asks
    beginning: str  # of the assistant's turn, which the model goes on from


PROMPTS = {
    "countdown": Prompt(
        "",
        "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And "
        "return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.",
        "Let me solve this step by step.\n<think>",
    ),
    "multiply": Prompt(
        " The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> RESULT_NUMBER </answer>.",
        "Give me the answer of the following equation: {left} * {right} =",
        "Let me solve this step by step.\n<think>",
    ),
    "maths": Prompt(
        r" The reasoning process and answer are enclosed within <think> </think> and \boxed{} tags, "
        r"respectively, i.e., <think> reasoning process here </think> The answer is \boxed{your answer}.",
        "{problem}",
        "Let me solve this step by step. <think>",
    ),
    "code": Prompt(
        " The reasoning process is enclosed within <think> </think> tags, and the answer is one whole Python program "
        "in a ```python block, i.e., <think> reasoning process here </think>\n```python\nprogram here\n```",
        "{problem}",
        "Let me solve this step by step. <think>",
    ),
}


def render_template(task, form, tokenizer=None):
    """A task's prompt as text with its {slots} left open.

    task: a key of PROMPTS. form: "base" for a base model; for any other name the prompt is a chat, rendered by the
    tokenizer's own chat template where a tokenizer is given, and by Qwen's ChatML where none is. The assistant's turn
    stays open either way. Raises ValueError where that template fails.
    """
    prompt = PROMPTS[task]
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
