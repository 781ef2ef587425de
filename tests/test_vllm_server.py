"""The command of a vLLM server, and vLLM's engine, have the run's type and seed."""

import shlex
import sys
from types import SimpleNamespace

import pytest
from conftest import TINY, parser, settings
from trl import GRPOConfig, ModelConfig

from r1zero.preflight import check as checks
from r1zero.preflight import hardware
from r1zero.training import generation


def values(*flags):
    """Every setting of a recipe that generates with a server."""
    return settings("--use_vllm", "true", "--vllm_mode", "server", *flags, config=TINY)


def test_plan_says_what_starts_the_server(tmp_path, tiny_model, tiny_data, monkeypatch, capsys):
    """TRL waits for one, and says what it lacks."""
    monkeypatch.chdir(tmp_path)
    flags = f"--model_name_or_path {tiny_model} --data_dir {tiny_data} --use_vllm true --vllm_mode server --dry_run"
    with pytest.raises(SystemExit):
        checks.check(parser(), ["--config", str(TINY), *flags.split()])
    assert f"\nserver: start it with VLLM_SERVER_DEV_MODE=1 vllm serve {tiny_model} " in capsys.readouterr().out


def test_command_of_a_server_has_the_type_seed_and_address_of_the_run():
    """Its flags are those of TRL's own, which ends with 2.0; tests/test_vllm.py starts one."""
    flags = "--bf16 true --seed 7 --vllm_server_host 10.0.0.2".split()
    for given, expected in ((flags, ("bfloat16", "7", "10.0.0.2")), ([], ("float32", "0", "127.0.0.1"))):
        variable, *words = shlex.split(hardware.serve_command(values(*given)))
        assert variable == "VLLM_SERVER_DEV_MODE=1" and words[:3] == ["vllm", "serve", "models/tiny"]
        assert tuple(words[words.index(name) + 1] for name in ("--dtype", "--seed", "--host")) == expected
        assert {"--weight-transfer-config", "--logprobs-mode", "--max-logprobs"} <= set(words)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the engine of a process is built with, as a dict, for a run's settings."""

    def ask(group=0, **settings):
        # TRL asks for the engine by keywords, `seed` among them: the number of the tensor-parallel group
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **kwargs: kwargs))
        settings = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)} | settings
        llm = generation.vllm_engine(GRPOConfig(**settings), ModelConfig(dtype="float32"))
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
    monkeypatch.setattr(generation, "PLENTY", 1 << 30)
    before = sys.getrefcount(None)
    asked(use_vllm=True, vllm_enable_sleep_mode=sleeps)
    assert (sys.getrefcount(None) - before > 1 << 29) == sleeps
