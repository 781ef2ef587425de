"""A model as the evaluation reads it, and what the engines generate with it.

bash tests/run.sh tests/test_engines.py
"""

import gc
import multiprocessing
import os
import queue
import shutil
import sys
import time
import weakref
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PATIENCE
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from r1zero.evaluate import engines
from r1zero.evaluate.command import up_to_end

STATE = SimpleNamespace(process_index=0, local_process_index=0, num_processes=1, device=torch.device("cpu"))
FLAGS = {"n": 1, "temperature": 0.0, "max_completion_length": 12, "seed": 0, "dtype": "float32"}


@pytest.fixture
def prompts(tiny_data):
    return pq.read_table(tiny_data / "test.parquet")["prompt"].to_pylist()[:8]


def generated(path, prompts, batch_size=8, **flags):
    """The completions of prompts (list of str) by the transformers engine, as lists of token ids."""
    model = engines.read_model(str(path))
    args = SimpleNamespace(**FLAGS | flags)
    ids = model.tokenizer(prompts)["input_ids"]
    found = []
    with engines.transformers_engine(model, args, STATE) as generate:
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            found += generate(batch, [0] * len(batch) * args.n)
    return [up_to_end(row, model.ends) for row in found]


class TestReading:
    def test_a_folder_is_known_by_its_name_and_the_time_of_its_weights(self, tiny_model, tmp_path):
        folder = shutil.copytree(tiny_model, tmp_path / "copy")
        model = engines.read_model(str(folder))
        assert (model.name, model.base, model.context) == ("copy", str(folder), 512)
        assert model.ends == [model.tokenizer.eos_token_id]
        os.utime(folder / "model.safetensors")  # as if it had been trained on
        assert engines.read_model(str(folder)).written > model.written

    def test_a_checkpoint_has_its_runs_name_before_its_own(self, tiny_model, tmp_path, monkeypatch):
        shutil.copytree(tiny_model, tmp_path / "run" / "checkpoint-3")
        assert engines.read_model(str(tmp_path / "run" / "checkpoint-3")).name == "run-checkpoint-3"
        monkeypatch.chdir(tmp_path / "run")
        assert engines.read_model("checkpoint-3").name == "run-checkpoint-3"

    def test_a_model_of_the_hub_is_known_by_its_commit(self, tiny_model, tmp_path, monkeypatch):
        """The hub's cache as it lies on disk, without the hub."""
        commit = "0123456789abcdef0123456789abcdef01234567"
        folder = tmp_path / "models--somebody--something"
        shutil.copytree(tiny_model, folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        model = engines.read_model("somebody/something")
        assert (model.name, model.written) == ("something", commit)

    def test_a_model_ends_where_its_generation_config_or_its_tokenizer_says(self, tiny_model, tmp_path):
        copy = shutil.copytree(tiny_model, tmp_path / "copy")
        (copy / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
        own = engines.read_model(str(tiny_model)).ends
        assert engines.read_model(str(copy)).ends == sorted({5, 7, *own})


class TestTransformers:
    def test_a_lora_adapter_is_its_merged_model(self, tiny_model, prompts, tmp_path):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        adapted = get_peft_model(base, lora)
        adapted.save_pretrained(tmp_path / "adapter")
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
        found = generated(tmp_path / "adapter", prompts)
        assert found == generated(tmp_path / "merged", prompts) != generated(tiny_model, prompts)

    def test_what_a_prompt_gets_does_not_depend_on_its_batch(self, tmp_path):
        """GPT-2 with absolute positions, no padding token and no generation config, on prompts of many lengths."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<end>"])}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
        )
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        prompts = ["What is 1+1?"[:size] * 3 for size in range(5, 13)]
        one, eight = (generated(tmp_path, prompts, batch_size=size) for size in (1, 8))
        assert one == eight and len({tuple(row) for row in one}) > 4

    def test_greedy_is_the_same_twice_and_samples_follow_the_seed(self, tiny_model, prompts):
        assert generated(tiny_model, prompts) == generated(tiny_model, prompts)
        model = engines.read_model(str(tiny_model))
        ids = model.tokenizer(prompts)["input_ids"]
        with engines.transformers_engine(model, SimpleNamespace(**FLAGS | {"temperature": 1.0}), STATE) as generate:
            first, again, other = (generate(ids, [seed]) for seed in (3, 3, 4))
        assert first == again != other

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


class StandIn:
    """vLLM's LLM in 0.30's names and signatures, as far as they are used, over a transformers model."""

    built = []  # one a model, in their order

    def __init__(self, model, *, dtype, seed, max_model_len, **settings):
        self.arguments, self.settings = (dtype, seed, max_model_len), settings
        self.environment = dict(os.environ)
        os.environ.update(LD_PRELOAD="libgomp.so", OMP_NUM_THREADS="7")  # vLLM sets much there
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.ended = []  # with which seconds to do so
        self.llm_engine = SimpleNamespace(
            engine_core=SimpleNamespace(shutdown=lambda timeout: self.ended.append(timeout))
        )
        StandIn.built.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            output = self.model.generate(ids, do_sample=False, max_new_tokens=params.max_tokens)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(output[0, ids.size(1) :].tolist()))])


class Sampling:
    def __init__(self, *, temperature=1.0, max_tokens=16, seed=None, stop_token_ids=None):
        assert type(seed) is int and type(stop_token_ids) is list
        self.temperature, self.max_tokens = temperature, max_tokens


class TestVLLM:
    LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

    @pytest.fixture(autouse=True)
    def vllm(self, monkeypatch):
        """A module in vLLM's place; built for a GPU unless a test says otherwise."""
        module, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
        module.__spec__ = ModuleSpec("vllm", loader=None)
        module.LLM, module.SamplingParams = StandIn, Sampling
        platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
        monkeypatch.setitem(sys.modules, "vllm", module)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
        monkeypatch.setattr(StandIn, "built", [])
        return platforms.current_platform

    def engine(self, model, state=STATE, **flags):
        model.longest = 9
        return engines.vllm_engine(model, SimpleNamespace(**FLAGS | flags), state)

    def test_is_asked_for_the_same_completions(self, tiny_model, prompts):
        model = engines.read_model(str(tiny_model))
        ids = model.tokenizer(prompts[:3])["input_ids"]
        with self.engine(model, n=2) as generate:
            found = generate(ids, list(range(6)))
        (llm,) = StandIn.built
        assert llm.arguments == ("float32", 0, 21)
        with engines.transformers_engine(model, SimpleNamespace(**FLAGS), STATE) as generate:
            expected = generate(ids, [0, 0, 0])
        assert found == [row for row in expected for _ in range(2)]

    def test_each_model_has_an_engine_that_is_ended_before_the_next(self, tiny_model, prompts):
        model = engines.read_model(str(tiny_model))
        with self.engine(model):
            assert StandIn.built[0].ended == []
        with pytest.raises(KeyboardInterrupt), self.engine(model):
            raise KeyboardInterrupt
        assert [llm.ended for llm in StandIn.built] == [[15], [15]]

    @pytest.mark.parametrize(
        ("device", "processes", "settings"),
        [
            pytest.param("cuda", 1, {"gpu_memory_utilization": 0.9}, id="a GPU"),
            pytest.param("cuda", 2, {"gpu_memory_utilization": 0.9, "device_ids": [1]}, id="the second of two GPUs"),
            pytest.param("cpu", 1, {"kv_cache_memory_bytes": 2**30, "enforce_eager": True}, id="a CPU"),
        ],
    )
    def test_engine_is_of_this_process_alone_and_on_its_own_card(self, tiny_model, device, processes, settings):
        """With the external launcher all processes would have to build it, and sleep would not free the card."""
        state = SimpleNamespace(device=torch.device(device), num_processes=processes, local_process_index=1)
        with self.engine(engines.read_model(str(tiny_model)), state):
            assert StandIn.built[0].settings == settings | {"trust_remote_code": False}

    def test_several_engines_on_a_cpu_are_not_bound_to_the_same_cores(self, tiny_model):
        state = SimpleNamespace(device=torch.device("cpu"), num_processes=2, local_process_index=1)
        with self.engine(engines.read_model(str(tiny_model)), state):
            assert StandIn.built[0].environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"

    def test_environment_is_the_launchers_again_once_the_engine_is_built(self, tiny_model, monkeypatch):
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        before = self.LAUNCHED | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "DEBUG"}
        for name, value in before.items():
            monkeypatch.setenv(name, value)
        before = dict(os.environ)
        with self.engine(engines.read_model(str(tiny_model))):
            assert dict(os.environ) == before
        own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        own |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
        assert StandIn.built[0].environment == before | own

    def test_engine_that_is_killed_ends_the_wait_for_it(self, tiny_model, prompts, monkeypatch, capsys):
        """As the system does where memory is short; vLLM's own generate() waits for what will never come."""

        class Waiting(StandIn):
            def __init__(self, *args, **settings):
                super().__init__(*args, **settings)
                self.process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(PATIENCE,))
                self.process.start()

            def generate(self, *_, **__):
                self.process.kill()
                queue.Queue().get()

        monkeypatch.setattr(sys.modules["vllm"], "LLM", Waiting)
        with pytest.raises(KeyboardInterrupt), self.engine(engines.read_model(str(tiny_model))) as generate:
            generate([[1]], [0])
        assert "vLLM's engine was killed" in capsys.readouterr().err and StandIn.built[0].ended == [15]

    @pytest.mark.parametrize(
        ("gpu", "built_for_cpu", "said"),
        [
            pytest.param(True, False, None, id="a GPU"),
            pytest.param(False, True, None, id="a CPU and a build for it"),
            pytest.param(False, False, "needs a GPU, or a vLLM that is built for the CPU", id="no GPU"),
            pytest.param(
                True, True, "finds a GPU and a vLLM that is built for the CPU", id="a GPU and the other build"
            ),
        ],
    )
    def test_runs_where_it_is_built_for_what_is_there(self, vllm, monkeypatch, gpu, built_for_cpu, said):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        vllm.is_cpu = lambda: built_for_cpu
        reason = engines.why_no_vllm()
        assert reason is None if said is None else said in reason and "--backend transformers" in reason
