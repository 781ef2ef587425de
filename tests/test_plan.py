"""What --dry_run says of steps and memory.   bash tests/run.sh tests/test_plan.py"""

import json
import sys
from argparse import Namespace

import pyarrow.parquet as pq
import pytest
import torch
from test_training import ROOT, run_to_end, train
from transformers import AutoModelForCausalLM, Qwen2Config

import plan

QWEN_1_5B = {  # the shape of Qwen2.5-1.5B
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
PARAMETERS = 1_543_714_304
VALUES = {  # of configs/qwen2.5-1.5b.yaml
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 32,
    "steps_per_generation": None,
    "generation_batch_size": None,
    "num_iterations": 1,
    "num_train_epochs": 1,
    "max_steps": 500,
    "max_completion_length": 1024,
    "beta": 0.001,
    "bf16": True,
    "fp16": False,
    "use_cpu": False,
    "dtype": "float32",
    "optim": "adamw_torch_fused",
    "activation_checkpointing": True,
    "use_peft": False,
    "lora_r": 32,
    "lora_target_modules": None,
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_tensor_parallel_size": 1,
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_enable_sleep_mode": True,
    "attn_implementation": None,
}


def values(**changed):
    return Namespace(**VALUES | changed)


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen2Config(**QWEN_1_5B))


def deepspeed(stage, processes, **offloaded):
    environment = {"WORLD_SIZE": str(processes), "ACCELERATE_USE_DEEPSPEED": "true"}
    environment |= {f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE": "cpu" for part in offloaded}
    return plan.read_strategy(environment | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)})


class TestSchedule:
    def test_countdown_recipe_has_256_completions_and_10240_steps_an_epoch(self):
        assert plan.schedule(values(), 327_680, 1) == {
            "prompts": 32,
            "completions": 256,
            "span": 1.0,
            "steps_an_epoch": 10_240,
            "steps": 500,
            "completions_in_all": 128_000,
        }

    def test_several_steps_on_one_generation_are_counted(self):
        changed = values(steps_per_generation=64, num_iterations=2, max_steps=-1, num_train_epochs=0.5)
        found = plan.schedule(changed, 1000, 2)
        assert (found["completions"], found["prompts"], found["span"]) == (1024, 128, 4)
        assert found["steps_an_epoch"] == 28 and found["steps"] == 14 and found["completions_in_all"] == 4 * 1024

    def test_steps_of_an_epoch_are_those_that_trl_runs(self, tmp_path, tiny_model, tiny_data):
        """40 problems, 4 prompts a generation of two steps: ten generations, twenty steps."""
        for split in ("train", "test"):
            pq.write_table(pq.read_table(tiny_data / f"{split}.parquet").slice(0, 40), tmp_path / f"{split}.parquet")
        flags = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 8, "steps_per_generation": 2}
        flags |= {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "max_completion_length": 2}
        output = train(tmp_path / "run", tiny_model, tmp_path, **flags)
        assert "20 steps an epoch of 40 problems, 20 steps and 160 completions in this run" in output
        assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 20


class TestMemory:
    def test_one_card_holds_weights_gradients_two_moments_and_the_reference(self, model):
        parts = plan.memory(values(), model, plan.read_strategy({}), 1280, 80 * plan.GIB)["parts"]
        assert model.num_parameters() == PARAMETERS
        for part, size in {"weights": 4, "gradients": 4, "optimizer": 8, "reference": 4}.items():
            assert parts[part] == size * PARAMETERS
        assert parts["vLLM"] == int(0.3 * 80 * plan.GIB)

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            pytest.param(deepspeed(1, 8), {"weights": 2, "gradients": 2, "optimizer": 12 / 8}, id="ZeRO-1"),
            pytest.param(deepspeed(2, 8), {"weights": 2, "gradients": 2 / 8, "optimizer": 12 / 8}, id="ZeRO-2"),
            pytest.param(deepspeed(3, 8), {"weights": 2 / 8, "gradients": 2 / 8, "optimizer": 12 / 8}, id="ZeRO-3"),
            pytest.param(
                deepspeed(2, 8, OPTIMIZER=1), {"weights": 2, "gradients": 2 / 8, "optimizer": 0}, id="offload"
            ),
            pytest.param(
                plan.read_strategy({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
                {"weights": 4 / 8, "gradients": 4 / 8, "optimizer": 8 / 8},
                id="FSDP2",
            ),
            pytest.param(
                plan.read_strategy({"WORLD_SIZE": "8"}), {"weights": 4, "gradients": 4, "optimizer": 8}, id="DDP"
            ),
        ],
    )
    def test_strategies_divide_what_they_say(self, model, strategy, expected):
        parts = plan.memory(values(), model, strategy, 1280, None)["parts"]
        assert {part: parts[part] / PARAMETERS for part in expected} == pytest.approx(expected)

    def test_lora_trains_its_adapters_alone(self, model):
        lora = values(use_peft=True, lora_target_modules="all-linear", dtype="bfloat16")
        layer = sum(
            rank * (inner + outer)
            for inner, outer in [
                (1536, 1536),
                (1536, 256),
                (1536, 256),
                (1536, 1536),
                *[(1536, 8960)] * 2,
                (8960, 1536),
            ]
            for rank in [32]
        )
        assert plan.trained_parameters(model, lora) == 28 * layer
        parts = plan.memory(lora, model, plan.read_strategy({}), 1280, None)["parts"]
        assert "reference" not in parts and parts["weights"] == 2 * PARAMETERS + 4 * 28 * layer
        assert parts["optimizer"] == 8 * 28 * layer

    def test_8_bit_moments_are_2_bytes_but_those_of_the_embedding(self, model):
        """Measured for bitsandbytes under transformers: 8 bytes a weight of the embedding, 2.05 of the others."""
        changed, embedding = values(optim="adamw_bnb_8bit"), 151936 * 1536
        one, zero2 = (
            plan.memory(changed, model, strategy, 1280, None)["parts"]["optimizer"]
            for strategy in (plan.read_strategy({}), deepspeed(2, 2))
        )
        assert one == 2 * (PARAMETERS - embedding) + 8 * embedding
        assert zero2 == (2 + 4) * PARAMETERS // 2

    @pytest.mark.parametrize(
        ("changed", "strategy", "offered"),
        [
            pytest.param({}, plan.read_strategy({}), True, id="one card"),
            pytest.param({}, deepspeed(2, 8), True, id="ZeRO-2"),
            pytest.param({}, deepspeed(2, 8, OPTIMIZER=1), False, id="the optimizer is on the CPU"),
            pytest.param({"optim": "paged_adamw_8bit"}, plan.read_strategy({}), False, id="8 bits already"),
            pytest.param({"use_peft": True}, plan.read_strategy({}), False, id="adapters alone are trained"),
            pytest.param({}, plan.read_strategy({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}), False, id="FSDP"),
        ],
    )
    def test_8_bit_moments_are_offered_where_they_help(self, changed, strategy, offered):
        assert ("--optim adamw_bnb_8bit" in plan.advice(values(**changed), strategy, "update")) == offered

    def test_vllm_on_a_server_takes_nothing_of_this_card(self, model):
        server = {"vllm_server_base_url": None, "vllm_server_host": "0.0.0.0", "vllm_server_port": 8000}
        changed = values(vllm_mode="server", vllm_server_timeout=240.0, **server)
        found = plan.memory(changed, model, plan.read_strategy({}), 1280, 80 * plan.GIB)
        assert not {"vLLM", "cache"} & found["parts"].keys()
        lines = plan.describe(changed, model, 327_680, 256, plan.read_strategy({}), None)
        assert "a vLLM server at http://0.0.0.0:8000, awaited for 240 s" in lines[2]

    def test_checkpointing_and_smaller_batches_save_activations(self, model):
        config = model.config
        full = plan.activations(values(), config, 8 * 1280)
        assert plan.activations(values(activation_checkpointing=False), config, 8 * 1280) > 3 * full
        assert plan.activations(values(), config, 1280) < full / 2

    def test_without_sleep_vllm_stays_during_the_update(self, model):
        awake, asleep = (
            plan.memory(values(vllm_enable_sleep_mode=sleep), model, plan.read_strategy({}), 1280, 80 * plan.GIB)[
                "peaks"
            ]
            for sleep in (False, True)
        )
        assert awake["update"] - asleep["update"] == int(0.3 * 80 * plan.GIB)
        assert awake["generation"] == asleep["generation"]

    def test_transformers_generation_holds_keys_and_values_of_all_its_sequences(self, model):
        found = plan.memory(values(use_vllm=False), model, plan.read_strategy({}), 1280, None)
        # 256 sequences of 1,280 tokens, 28 layers, keys and values of 2 heads of 128 in float32
        assert found["parts"]["cache"] == 256 * 1280 * 28 * 2 * 2 * 128 * 4
        with_vllm = plan.memory(values(), model, plan.read_strategy({}), 1280, None)
        assert found["peaks"]["generation"] - with_vllm["peaks"]["generation"] == found["parts"]["cache"]

    def test_what_does_not_fit_is_said_with_what_to_change(self, model):
        lines = plan.describe(values(), model, 327_680, 256, plan.read_strategy({}), 24 * plan.GIB)
        (line,) = [line for line in lines if line.startswith("will not fit in update")]
        assert "--per_device_train_batch_size" in line and "--beta 0" in line and "zero3.yaml" in line
        fits = plan.describe(values(), model, 327_680, 256, plan.read_strategy({}), 80 * plan.GIB)
        assert not [line for line in fits if "will not fit" in line]


def test_dry_run_says_the_plan_and_makes_nothing(tmp_path, tiny_model, tiny_data):
    command = [sys.executable, "train_countdown.py", "--config", str(ROOT / "configs" / "tiny_cpu.yaml"), "--dry_run"]
    command += [
        "--model_name_or_path",
        str(tiny_model),
        "--data_dir",
        str(tiny_data),
        "--output_dir",
        str(tmp_path / "x"),
    ]
    output = run_to_end(command)
    assert "256 completions of 16 prompts a generation, 4 optimizer steps on them; 228 steps an epoch" in output
    assert "machine: one process; transformers' own generation" in output
    assert not (tmp_path / "x").exists()
