"""vLLM's engine gets the run's type and seed; what it does with them is in test_vllm_lora.py.

bash tests/run.sh tests/test_vllm_settings.py
"""

import sys
from types import SimpleNamespace

import pytest
from trl import GRPOConfig, ModelConfig

from r1zero.training import vllm as vllm_settings


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the engine of a process is built with, as a dict, for a run's settings."""

    def ask(group=0, dtype="float32", **settings):
        # TRL asks for the engine by keywords, `seed` among them: the number of the tensor-parallel group
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **kwargs: kwargs))
        settings = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)} | settings
        llm = vllm_settings.engine(GRPOConfig(**settings), ModelConfig(dtype=dtype))
        return llm(model="path", seed=group)

    return ask


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        pytest.param({"bf16": True, "dtype": "float32"}, "bfloat16", id="arithmetic in bfloat16"),
        pytest.param({"bf16": True, "dtype": "float16"}, "bfloat16", id="whatever the checkpoint"),
        pytest.param({"dtype": "float32"}, "float32", id="arithmetic in the weights' type"),
    ],
)
def test_engine_computes_in_the_type_of_the_update(asked, settings, dtype):
    found = asked(**settings)
    assert found.keys() == {"model", "seed", "dtype"} and (found["model"], found["dtype"]) == ("path", dtype)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python counts no references to None there")
@pytest.mark.parametrize("sleeps", [True, False])
def test_none_outlives_an_allocator_that_takes_its_references(asked, monkeypatch, sleeps):
    monkeypatch.setattr(vllm_settings, "PLENTY", 1 << 30)
    before = sys.getrefcount(None)
    asked(use_vllm=True, vllm_enable_sleep_mode=sleeps)
    assert (sys.getrefcount(None) - before > 1 << 29) == sleeps


def test_every_run_and_every_group_samples_with_a_seed_of_its_own_the_same_each_time(asked):
    seeds = [asked(group, seed=run)["seed"] for run in (0, 1, 42) for group in (0, 1, 2, 63)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)  # what numpy takes
    assert seeds[0] == asked(0, seed=0)["seed"]
