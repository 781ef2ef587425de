"""What a prompt says, how it is rendered, and which are too long.   bash tests/run.sh tests/test_prompts.py"""

from collections import Counter

import pytest
from transformers import AutoTokenizer

from r1zero.prompts import PROMPTS, drop_long_prompts, fill_template, load_tokenizer, render_template


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def test_countdowns_base_prompt_is_tinyzeros_to_the_letter():
    prompt = fill_template(render_template("countdown", "base"), numbers=[3, 7, 5], target=16)
    assert prompt == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
        "User: Using the numbers [3, 7, 5], create an equation that equals 16. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And "
        "return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.\n"
        "Assistant: Let me solve this step by step.\n<think>"
    )


def test_countdowns_chat_is_tinyzeros_to_the_letter():
    prompt = fill_template(render_template("countdown", "qwen-instruct"), numbers=[3, 7, 5], target=16)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant. You first thinks about the reasoning process in the mind "
        "and then provides the user with the answer.<|im_end|>\n"
        "<|im_start|>user\nUsing the numbers [3, 7, 5], create an equation that equals 16. You can use basic "
        "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> "
        "tags. And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
        "<|im_end|>\n<|im_start|>assistant\nLet me solve this step by step.\n<think>"
    )


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("countdown", "in <answer> </answer> tags"),
        ("multiply", "<answer> RESULT_NUMBER </answer>."),
        ("maths", r"within <think> </think> and \boxed{} tags, respectively, i.e., <think> reasoning process here "),
        ("maths", r"The answer is \boxed{your answer}."),
        ("code", "```python\nprogram here\n```"),
    ],
)
@pytest.mark.parametrize("form", ["base", "chat"])
def test_every_prompt_says_its_format_and_ends_in_the_turn_that_the_model_goes_on_from(task, says, form):
    template = render_template(task, form)
    assert says in template
    assert template.endswith(PROMPTS[task].beginning) and template.endswith("<think>")


def test_a_model_with_a_chat_template_of_its_own_gets_that_one(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '{}' }}[end]{% endfor %}"
    template = render_template("countdown", "chat", tokenizer)
    assert template.startswith("[system]You are") and "{}[end][user]Using the numbers {numbers}" in template
    assert template.endswith("[assistant]Let me solve this step by step.\n<think>"), "the turn is left open"
    assert render_template("countdown", "base", tokenizer) == render_template("countdown", "base")


def test_braces_of_a_problem_and_of_a_template_are_left_alone():
    assert fill_template("{} {problem} {x}", problem=r"\boxed{2} {x}") == r"{} \boxed{2} {x} {x}"


def test_prompts_up_to_the_limit_are_kept_in_order_and_longer_ones_counted(tokenizer):
    template = render_template("countdown", "base")
    rows = [{"prompt": fill_template(template, numbers=[1] * k, target=9)} for k in (3, 4, 3, 5, 3)]
    counts = Counter()
    kept = list(drop_long_prompts(iter(rows), tokenizer, 9, counts))  # three numbers are 9 tokens
    assert kept == [rows[0], rows[2], rows[4]] and counts == {"prompts over 9 tokens": 2}
    assert list(drop_long_prompts(iter(rows), tokenizer, None, counts)) == rows


def test_tokenizer_that_cannot_be_had_is_named():
    assert load_tokenizer(None) is None
    with pytest.raises(
        ValueError, match="tokenizer ./nowhere cannot be had .*give the folder of one with --tokenizer"
    ):
        load_tokenizer("./nowhere")
