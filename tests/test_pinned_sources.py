"""What this project takes from the texts of libraries, and what would break silently with another version of them."""

import inspect
import re

import yaml
from conftest import parser
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from trl import GRPOConfig
from trl.generation import vllm_generation
from trl.kernels import chunked_logprob
from trl.trainer import grpo_trainer, utils

from r1zero import ROOT
from r1zero.estimate import memory
from r1zero.preflight import settings as setting_checks
from r1zero.report import console

SOURCE = inspect.getsource(grpo_trainer)


def test_metrics_that_the_console_watches_are_those_that_trl_logs():
    """Under another name the line would lack its value, and the warning would never come."""
    watched = [*console.COLUMNS, *re.findall(r'readings\.\w+\("([\w/]+)"\)', inspect.getsource(console))]
    own = {"accuracy", "times_divide_rate"}  # of rewards.py
    assert len(set(watched) - own) > 4
    assert [name for name in watched if name not in own and not re.search(rf'\[f?"{name}"\]', SOURCE)] == []


def test_defaults_of_the_benchmark_are_those_of_trl():
    defaults = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False)
    experiment = yaml.safe_load((ROOT / "benchmarks" / "experiments" / "time_to_target.yaml").read_text())
    values = experiment["settings"]["b TRL's defaults"]
    for name in ("completions_per_step", "trim_padding", "drop_finished", "eval_steps", "logging_steps"):
        del values[name]  # of this project, or of how a run is looked at
    assert {name: getattr(defaults, name) for name in values} == values


def test_buffers_and_tiles_of_the_memory_estimate_are_those_of_the_libraries():
    zero = DeepSpeedZeroConfig()
    assert (memory.BUCKET, memory.LIVE) == (zero.reduce_bucket_size, zero.max_live_parameters)
    assert memory.TILE_TOKENS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert memory.TILE_ENTRIES == utils._CHUNKED_LOGPROB_CHUNK_SIZE


def test_push_of_an_adapter_is_a_merge_and_its_opposite():
    """r1zero/training/lora.py keeps the base exact in these two calls alone; tests/test_lora.py shows that it does."""
    source = inspect.getsource(vllm_generation)
    assert source.count("model.merge_adapter()") == source.count("model.unmerge_adapter()") == 1


def test_choices_are_texts_that_trl_knows():
    known = vars(parser().parse_known_args([])[0])
    for name, hint in setting_checks.TYPES.items():
        choices = getattr(hint, "__args__", ())
        if isinstance(known[name], str) and choices:
            assert known[name] in choices
            assert [choice for choice in choices if f'"{choice}"' not in SOURCE] == []
