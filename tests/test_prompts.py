"""What a prompt says, how it is rendered, and which are too long.   bash tests/run.sh tests/test_prompts.py"""

from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from conftest import FIXTURES
from tokenizers import processors
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

import preprocess
from r1zero import tiny_model as tiny
from r1zero.preflight.model import longest_prompt
from r1zero.tasks.prompts import PROMPTS, drop_long_prompts, fill_template, load_tokenizer, render_template


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


BOS = "<|bos|>"


def tokenizer_with_bos(folder, adds, writes):
    """The folder of a tokenizer that adds BOS to every text or not, whose chat template writes one or not.

    With both it does as DeepSeek-R1-Distill's.
    """
    inner = tiny.build_tokenizer().backend_tokenizer
    inner.add_special_tokens([BOS])
    if adds:
        number = inner.token_to_id(BOS)
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, number)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=tiny.END_OF_TEXT, pad_token=tiny.END_OF_TEXT
    )
    written = "{{ bos_token }}" if writes else ""
    tokenizer.chat_template = written + "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("task", PROMPTS)
@pytest.mark.parametrize("writes", [False, True], ids=["the template writes none", "the template writes BOS"])
@pytest.mark.parametrize("adds", [False, True], ids=["the tokenizer adds none", "the tokenizer adds BOS"])
def test_a_prompt_begins_with_bos_once(tmp_path, adds, writes, task, form):
    """Where the template writes one and the tokenizer adds another, the written one is dropped; else nothing is."""
    tokenizer = load_tokenizer(str(tokenizer_with_bos(tmp_path, adds, writes)))
    text = render_template(task, form, tokenizer)
    ids = tokenizer(text)["input_ids"]
    wanted = adds or (writes and form == "chat")
    assert ids.count(tokenizer.bos_token_id) == wanted and (ids[0] == tokenizer.bos_token_id) == wanted
    assert text.startswith("[system]You" if form == "chat" else "A conversation") or (writes and not adds)


def test_prompts_in_the_data_begin_with_bos_once(tmp_path):
    """As for the recipe of DeepSeek-R1-Distill."""
    name = str(tokenizer_with_bos(tmp_path / "tokenizer", adds=True, writes=True))
    source, written = FIXTURES / "eurus.jsonl", tmp_path / "eurus"
    chat = ["--template", "chat", "--tokenizer", name, "--max_prompt_length", "1000"]
    preprocess.main(["eurus", "--source", str(source), "--local_dir", str(written), *chat])
    tokenizer = load_tokenizer(name)
    for split in ("train", "test"):
        prompts = pq.read_table(written / f"{split}.parquet", columns=["prompt"])["prompt"].to_pylist()
        assert prompts
        for ids in tokenizer(prompts)["input_ids"]:
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("adds", [False, True], ids=["the tokenizer adds none", "the tokenizer adds BOS"])
def test_data_that_was_written_with_two_bos_is_refused(tmp_path, adds):
    """A chat is tokenized without another one, by TRL as here."""
    tokenizer = load_tokenizer(str(tokenizer_with_bos(tmp_path, adds, writes=True)))
    model = SimpleNamespace(tokenizer=tokenizer, config=PretrainedConfig(vocab_size=len(tokenizer)))
    chat = [{"role": "user", "content": "hello"}]
    _, errors = longest_prompt([f"{BOS}[user]hello", chat], model)
    assert len(errors) == adds and all(f"begin with {BOS} twice" in error for error in errors)
    longest, errors = longest_prompt([chat], model)
    assert errors == []
    assert longest == len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


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
