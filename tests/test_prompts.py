"""What a prompt says, how it is rendered, and which are too long.   bash tests/run.sh tests/test_prompts.py"""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trl
from conftest import FIXTURES, ROOT, each_case, train_here
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import preprocess
from r1zero import tiny_model as tiny
from r1zero.tasks import countdown
from r1zero.tasks.prompts import fill_template, load_tokenizer, render_template


@each_case("countdown_prompts.tsv", "form")
def test_countdowns_prompts_are_tinyzeros_to_the_letter(case):
    template = render_template(countdown.PROMPT, case["form"])
    assert fill_template(template, numbers=[3, 7, 5], target=16) == json.loads(case["prompt"])


def test_a_model_with_a_chat_template_of_its_own_gets_that_one():
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '{}' }}[end]{% endfor %}"
    template = render_template(countdown.PROMPT, "chat", tokenizer)
    assert template.startswith("[system]You are") and "{}[end][user]Using the numbers {numbers}" in template
    assert template.endswith("[assistant]Let me solve this step by step.\n<think>"), "the turn is left open"
    assert render_template(countdown.PROMPT, "base", tokenizer) == render_template(countdown.PROMPT, "base")
    tokenizer.chat_template = "{{ raise_exception() }}"
    with pytest.raises(ValueError, match="the chat template of --tokenizer .* fails"):
        render_template(countdown.PROMPT, "chat", tokenizer)


# All that TRL ships, but those that take no text or no system's turn, and copies that differ in what is trained
CHAT_TEMPLATES = [
    path
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not re.search("_training|^(gemma|idefics3|llava_next|smolvlm)$", path.stem)
]


@pytest.mark.parametrize("path", CHAT_TEMPLATES, ids=lambda path: path.stem)
def test_open_turn_of_a_chat_ends_in_the_one_think_that_it_has(path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = path.read_text(), tiny.END_OF_TEXT
    turn = render_template(countdown.PROMPT, "chat", tokenizer).rpartition(countdown.PROMPT.question)[2]
    assert turn.count("think>") == turn.rstrip().endswith("<think>") == 1, turn


def tokenizer_with_bos(folder, adds, writes, bos="<|bos|>"):
    """The folder of a tokenizer that adds BOS to every text or not, whose chat template writes one or not.

    With both it does as DeepSeek-R1-Distill's.
    """
    inner = tiny.build_tokenizer().backend_tokenizer
    inner.add_special_tokens([bos])
    if adds:
        number = inner.token_to_id(bos)
        inner.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    special = {"bos_token": bos, "eos_token": tiny.END_OF_TEXT, "pad_token": tiny.END_OF_TEXT}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    written = "{{ bos_token }}" if writes else ""
    tokenizer.chat_template = written + "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_a_prompt_begins_with_bos_once(tmp_path, adds, writes, form):
    """If the template writes one and the tokenizer adds another, the written one is dropped; else nothing is."""
    name = tokenizer_with_bos(tmp_path / "tokenizer", adds, writes)
    chat = ["--template", form, "--tokenizer", name, "--max_prompt_length", "1000"]
    preprocess.main(["eurus", "--source", f"{FIXTURES}/eurus.jsonl", "--local_dir", str(tmp_path / "data"), *chat])
    tokenizer, wanted = load_tokenizer(name), adds or (writes and form == "chat")
    for split in ("train", "test"):
        texts = pq.read_table(tmp_path / "data" / f"{split}.parquet")["prompt"].to_pylist()
        assert texts
        for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
            assert ids.count(tokenizer.bos_token_id) == (ids[0] == tokenizer.bos_token_id) == wanted
            assert text.startswith("[system]You" if form == "chat" else "A conversation") or (writes and not adds)


def test_data_that_was_written_with_two_bos_is_refused(tmp_path, tiny_model, tiny_data):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer_with_bos(model, adds=True, writes=True, bos=tiny.END_OF_TEXT)
    for split in ("train", "test"):
        table = pq.read_table(tiny_data / f"{split}.parquet")
        prompts = [[f"{tiny.END_OF_TEXT}{prompt}" for prompt in table["prompt"].to_pylist()]]
        table = table.set_column(table.column_names.index("prompt"), "prompt", prompts)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    flags = {"model_name_or_path": model, "output_dir": tmp_path / "run", "dry_run": True}
    with pytest.raises(SystemExit, match=re.escape(f"begin with {tiny.END_OF_TEXT} twice")):
        train_here(ROOT / "configs" / "tiny_cpu.yaml", data_dir=tmp_path, **flags)
