"""A model as the evaluation reads it, and what the engines generate with it."""

import gc
import shutil
import weakref
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from test_lora import adapted
from transformers import AutoTokenizer

from r1zero.evaluate import engines
from r1zero.evaluate.command import up_to_end

STATE = SimpleNamespace(process_index=0, local_process_index=0, num_processes=1, device=torch.device("cpu"))
FLAGS = {"n": 1, "temperature": 0.0, "max_completion_length": 12, "seed": 0, "dtype": "float32"}


@pytest.fixture
def prompts(tiny_data):
    return pq.read_table(tiny_data / "test.parquet")["prompt"].to_pylist()[:8]


def generated(path, prompts, batch_size=8):
    """The completions of prompts (list of str) by the transformers engine, as lists of token ids."""
    model = engines.read_model(str(path))
    args = SimpleNamespace(**FLAGS)
    ids = model.tokenizer(prompts)["input_ids"]
    found = []
    with engines.transformers_engine(model, args, STATE) as generate:
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            found += generate(batch, [0] * len(batch) * args.n)
    return [up_to_end(row, model.ends) for row in found]


def test_a_checkpoint_has_the_name_of_its_run_before_it_also_from_there(tiny_model, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(tiny_model, tmp_path / "run" / "checkpoint-3")
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    monkeypatch.chdir(tmp_path / "run")
    model = engines.read_model("checkpoint-3")
    assert (model.name, model.context) == ("run-checkpoint-3", 512)
    assert model.ends == sorted({5, 7, model.tokenizer.eos_token_id}), "wherever either file says"


class TestTransformers:
    def test_a_lora_adapter_is_its_merged_model(self, tiny_model, prompts, tmp_path):
        model = adapted(tiny_model, torch.float32)
        model.save_pretrained(tmp_path / "adapter")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
        found = generated(tmp_path / "adapter", prompts)
        assert found == generated(tmp_path / "merged", prompts) != generated(tiny_model, prompts)

    def test_what_a_prompt_gets_does_not_depend_on_its_batch(self, tiny_model):
        prompts = ["What is 1+1? "[:size] * 3 for size in range(5, 13)]  # of many lengths
        one, eight = (generated(tiny_model, prompts, batch_size=size) for size in (1, 8))
        assert one == eight and len({tuple(row) for row in one}) > 4

    def test_model_is_gone_once_its_engine_has_ended(self, tiny_model, prompts, monkeypatch):
        """Several are evaluated one after the other, and a card has no room for all."""
        load, loaded = engines.load, []

        def seen(*arguments):
            found = load(*arguments)
            loaded.append(weakref.ref(found))
            return found

        monkeypatch.setattr(engines, "load", seen)
        gc.disable()  # whose time is not known
        try:
            generated(tiny_model, prompts)
            assert loaded[0]() is None
        finally:
            gc.enable()
