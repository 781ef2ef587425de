"""The loop that drops finished rows against transformers' own generation, and what vLLM's engine is built with."""

import collections
import contextlib
import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from test_lora import adapted
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, ModelConfig

from r1zero import processes
from r1zero.training import generation as sampler
from r1zero.training.generation import sample_unfinished

VOCABULARY, PAD = 12, 0
ENDS = [1, 2]


@pytest.fixture(scope="module")
def model():
    """A model of twelve tokens with random weights, whose completions end at very different lengths."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=ENDS,
        pad_token_id=PAD,
    )
    return Qwen2ForCausalLM(config).eval()


def prompts(count, longest=6):
    """Prompts of one token and more, padded on the left: input_ids and attention_mask (B, P)."""
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, longest))
    lengths = torch.arange(count) % longest + 1
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def settings(**changed):
    usual = {"max_new_tokens": 60, "eos_token_id": ENDS, "pad_token_id": PAD, "do_sample": False}
    return GenerationConfig(**usual | changed)


@pytest.mark.parametrize("ends", [ENDS, 1, None], ids=["two end tokens", "one end token", "none"])
def test_greedy_search_gives_generates_tokens(model, ends):
    given, how = prompts(40), settings(eos_token_id=ends)
    expected = model.generate(**given, generation_config=how)
    found = model.generate(**given, generation_config=how, custom_generate=sample_unfinished)
    assert torch.equal(found, expected)
    if ends == ENDS:
        lengths = (expected[:, 6:] != PAD).sum(1)
        assert lengths.min() < sampler.LOOK_EVERY < lengths.max(), "rows end in different looks"


def test_rows_that_have_ended_are_computed_no_more(model, monkeypatch):
    widths = []
    forward = model.forward

    def counted(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    model.generate(**prompts(40), generation_config=settings(), custom_generate=sample_unfinished)
    assert widths[0] == 40 and widths == sorted(widths, reverse=True)
    assert widths[-1] < 40 and len(set(widths[: sampler.LOOK_EVERY])) == 1


def test_completions_that_have_ended_are_counted_on_a_terminal_of_the_first_process(model, monkeypatch):
    for is_terminal, is_main in ((True, True), (False, True), (True, False)):
        file = io.StringIO()
        file.isatty = lambda is_terminal=is_terminal: is_terminal
        at_once = {"file": file, "delay": 0, "mininterval": 0, "ncols": 100, "dynamic_ncols": False}
        monkeypatch.setattr(sampler, "tqdm", lambda at_once=at_once, **how: tqdm(**how | at_once))
        monkeypatch.setattr(processes, "is_main_process", lambda is_main=is_main: is_main)
        model.generate(**prompts(40), generation_config=settings(), custom_generate=sample_unfinished)
        shown = [tuple(map(int, found)) for found in re.findall(r"(\d+) of 40 [^\r]* (\d+) tokens", file.getvalue())]
        assert shown == sorted(shown) and bool(shown) == (is_terminal and is_main)
        assert not shown or (0 < shown[0][0] < shown[-1][0] <= 40 and shown[0][1] == sampler.LOOK_EVERY)
        assert bool(file.getvalue()) == bool(shown)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}], ids=str)
def test_sampling_draws_from_generates_distribution(model, how):
    """The first tokens of many completions of one prompt, both ways, and their lengths, within five deviations."""
    count = 6000
    given = {name: value[2:3].expand(count, -1) for name, value in prompts(3).items()}
    how = settings(do_sample=True, max_new_tokens=20, **{"top_k": 0, "top_p": 1.0} | how)
    counts = []
    for loop in (None, sample_unfinished):
        torch.manual_seed(1)
        tokens = model.generate(**given, generation_config=how, custom_generate=loop)[:, 6:]
        found = collections.Counter(map(tuple, tokens[:, :3].tolist()))
        found.update(("length", length) for length in (tokens != PAD).sum(1).tolist())
        counts.append(found)
    assert len(counts[0]) > 10, "there is something to draw"
    for outcome in counts[0] | counts[1]:
        pair = [found[outcome] for found in counts]
        assert abs(pair[0] - pair[1]) <= 5 * (sum(pair) + 1) ** 0.5, outcome


@pytest.mark.parametrize("lora", [False, True], ids=["the model itself", "a PEFT model around it"])
def test_generate_of_the_model_uses_the_loop(tiny_model, lora, monkeypatch):
    model = adapted(tiny_model, torch.float32) if lora else AutoModelForCausalLM.from_pretrained(tiny_model)
    given = {"input_ids": torch.tensor([[5, 6, 7]] * 4), "attention_mask": torch.ones(4, 3, dtype=torch.long)}
    how = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=[0], pad_token_id=0)
    expected = model.generate(**given, generation_config=how)
    calls, contexts = [], []

    def seen(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        calls.append(len(input_ids))
        everything = (model, input_ids, logits_processor, stopping_criteria, generation_config)
        return sample_unfinished(*everything, **model_kwargs)

    monkeypatch.setattr(sampler, "sample_unfinished", seen)

    @contextlib.contextmanager
    def autocast():
        contexts.append("entered")
        yield

    sampler.drop_finished_rows(model, autocast)
    assert torch.equal(model.generate(**given, generation_config=how), expected) and calls == [4]
    assert contexts == ["entered"], "once, and not for each token"


@pytest.mark.parametrize("how", [{"num_beams": 2}, {"return_dict_in_generate": True}, {"use_cache": False}], ids=str)
def test_what_the_loop_does_not_do_is_refused(model, how):
    with pytest.raises(ValueError, match="needs one beam, a model with a cache"):
        model.generate(**prompts(2), generation_config=settings(**how), custom_generate=sample_unfinished)


# vLLM


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the engine of a process is built with, as a dict, for a run's settings."""

    def ask(group=0, **settings):
        # TRL asks for the engine by keywords, `seed` among them: the number of the tensor-parallel group
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **kwargs: kwargs))
        settings = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)} | settings
        llm = sampler.vllm_engine(GRPOConfig(**settings), ModelConfig(dtype="float32"))
        return llm(model="path", seed=group)

    return ask


def test_engine_has_the_updates_type_and_every_run_and_group_a_seed_of_its_own(asked):
    assert [asked(bf16=bf16)["dtype"] for bf16 in (True, False)] == ["bfloat16", "float32"]
    seeds = [asked(group, seed=run)["seed"] for run in (0, 1, 42) for group in (0, 1, 2, 63)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)  # what numpy takes
    assert seeds[0] == asked(0, seed=0)["seed"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python counts no references to None there")
@pytest.mark.parametrize("sleeps", [True, False])
def test_none_outlives_an_allocator_that_takes_its_references(asked, monkeypatch, sleeps):
    monkeypatch.setattr(sampler, "PLENTY", 1 << 30)
    before = sys.getrefcount(None)
    asked(use_vllm=True, vllm_enable_sleep_mode=sleeps)
    assert (sys.getrefcount(None) - before > 1 << 29) == sleeps
