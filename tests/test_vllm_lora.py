"""LoRA and the run's seed with a real vLLM, which computes on the CPU.   bash tests/vllm.sh tests/test_vllm_lora.py"""

import json
import re
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, run_to_end, words
from launches import SMALL

pytestmark = pytest.mark.vllm

SAMPLE = """
import json, sys
from trl import GRPOConfig, ModelConfig
from vllm import SamplingParams
from r1zero.training import vllm as vllm_settings

model, folder, *seeds = sys.argv[1:]
for seed in seeds:
    settings = GRPOConfig(output_dir=folder, use_cpu=True, bf16=False, seed=int(seed))
    engine = vllm_settings.engine(settings, ModelConfig(dtype="float32"))
    llm = engine(model=model, seed=0, enforce_eager=True, max_model_len=64, max_num_seqs=8)
    prompts = [{"prompt_token_ids": [place + 1]} for place in range(8)]
    completions = llm.generate(prompts, SamplingParams(max_tokens=8), use_tqdm=False)
    print("sampled", json.dumps([list(completion.outputs[0].token_ids) for completion in completions]), flush=True)
"""


@pytest.mark.parametrize(
    ("dtype", "nearest"),
    [pytest.param("float32", 1e-4, id="float32"), pytest.param("bfloat16", 0.1, id="bfloat16, 8 bits of a number")],
)
def test_engine_and_trainer_agree_at_every_push_and_the_base_stays(tmp_path, tiny_model, tiny_data, dtype, nearest):
    flags = SMALL | {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": tmp_path / "run"}
    flags |= {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "lora_dropout": 0}
    flags |= {"dtype": dtype, "bf16": dtype == "bfloat16", "use_vllm": True, "learning_rate": 1e-2, "max_steps": 6}
    command = [sys.executable, "tests/stand_in/adapter.py", "--config", "configs/tiny_cpu.yaml", *words(flags)]
    console = run_to_end(command)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    pushes = [entry for entry in history if "sampling/sampling_logp_difference/max" in entry]
    assert len(pushes) == 6
    assert pushes[-1]["kl"] > 1e-2, "the adapter has taken the model well away from its base"
    for entry in pushes:
        assert entry["sampling/sampling_logp_difference/max"] < nearest
        assert entry["sampling/sampling_logp_difference/mean"] < nearest / 10
    if dtype == "bfloat16":  # float32 moves by 1e-7, which is why it has no copy
        assert re.findall(r"base weights that moved: (\d+) of", console) == ["0"]


def test_seed_of_the_run_decides_what_the_engine_samples(tmp_path, tiny_model):
    command = [sys.executable, "-c", SAMPLE, tiny_model, tmp_path, 0, 1, 0]
    console = run_to_end(command, env=ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, cwd=ROOT)
    first, other, again = re.findall(r"^sampled (.*)$", console, flags=re.MULTILINE)
    assert first == again != other
