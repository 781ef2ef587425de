"""Each fault of a model, with its line; no weights are loaded.   bash tests/run.sh tests/test_model.py"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import each_case
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from r1zero.evaluate import engines
from r1zero.preflight import model as of_models


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tests' model, to break."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


@pytest.fixture
def line():
    """The one line that is said of a model before training, and before an evaluation too."""

    def run(path, trust_remote_code=False):
        values = {"model_name_or_path": str(path), "model_revision": "main", "dry_run": True}
        values |= {"trust_remote_code": trust_remote_code}
        _, (error,) = of_models.read(SimpleNamespace(**values))
        assert "\n" not in error
        with pytest.raises(ValueError) as refused:
            engines.read_model(str(path), trust_remote_code)
        assert " ".join(str(refused.value).split()) == error
        return error

    return run


# What breaks a model's folder


def edit(folder, settings):
    """Change settings (JSON) of a model's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(settings)))


def shard(folder):
    """Split a model's weights into two files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(where.values()):
        save_file({name: weights[name] for name in where if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remove_tensors(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder, file, size):
    (folder / file).write_bytes((folder / file).read_bytes()[: int(size)])


def remove(folder, pattern):
    for path in folder.glob(pattern):
        path.unlink()


def write(folder, file, text):
    (folder / file).write_text(text)


BREAKS = (edit, shard, pickle_weights, remove_tensors, cut, remove, write)
BREAKS = {function.__name__: function for function in BREAKS}


@each_case("broken_models.tsv", "breaks")
def test_model_that_is_not_whole_is_told_on_one_line(line, folder, capfd, case):
    """said: {folder} is its path."""
    for step in case["breaks"].split(" then "):
        name, *arguments = step.split(" ", 2)
        BREAKS[name](folder, *arguments)
    assert case["said"].replace("{folder}", str(folder)) in line(folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())  # transformers' own, which has many lines


def test_adapter_alone_is_none_and_one_with_a_base_has_its_weights_looked_at(folder, tiny_model):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="copy/adapter_model.safetensors is no whole safetensors file"):
        engines.read_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"copy has no config.json: name .* \(of a LoRA adapter, its base"):
        of_models.read_config(str(folder))


@pytest.mark.parametrize("is_allowed", [False, True])
def test_code_of_a_model_runs_with_the_flag_alone(line, folder, tmp_path, is_allowed):
    """It would ask a terminal for permission for 15 seconds."""
    edit(folder, '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import Qwen2Config\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own'\n"
    )
    if is_allowed:
        assert of_models.read_config(str(folder), trust_remote_code=True).model_type == "own"
    else:
        said = line(folder)
        assert "comes with Python code of its own" in said and "pass --trust_remote_code" in said
    assert (tmp_path / "ran").exists() == is_allowed


class TestTokenizer:
    def test_without_an_end_token_cannot_be_trained_with(self, tiny_model, monkeypatch):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.eos_token = None
        monkeypatch.setattr(of_models, "read_tokenizer", lambda *_, **__: tokenizer)
        named = {"model_name_or_path": str(tiny_model), "model_revision": "main", "trust_remote_code": False}
        _, (said,) = of_models.read(SimpleNamespace(**named, dry_run=False))
        assert "has no eos_token, which ends a completion: write" in said

    def test_whose_tokens_have_no_embedding_is_told_where_they_are_used(self, folder):
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        size, model = config.vocab_size, SimpleNamespace(config=config, tokenizer=tokenizer)
        tokenizer.add_tokens(["<new>"])
        assert of_models.vocabulary_errors(config, tokenizer, highest=size - 1) == []
        assert of_models.longest_prompt(["Using"], model)[1] == []
        (said,) = of_models.longest_prompt(["Using", "<new>"], model)[1]
        assert f"has embeddings for {size:,} tokens" in said and "'<new>'" in said and "resize_token" in said
        tokenizer.pad_token = "<new>"
        assert len(of_models.vocabulary_errors(config, tokenizer, highest=0)) == 1

    def test_fails_on_some_chats(self, tiny_model):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        model = SimpleNamespace(config=AutoConfig.from_pretrained(tiny_model), tokenizer=tokenizer)
        chat = [{"role": "user", "content": "Using the numbers " * 40}]
        for template in (None, "{{ raise_exception('no system role') }}", "{{ messages[9].role }}", "{% if %}"):
            tokenizer.chat_template = template
            longest, (error,) = of_models.longest_prompt([chat], model)
            assert longest == 0 and error.startswith("the chat template of the model fails (") and "\n" not in error
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
        expected = len(tokenizer("user:" + chat[0]["content"])["input_ids"])
        assert of_models.longest_prompt(["short", chat], model) == (expected, [])
