"""What the plan says of steps and memory.   bash tests/run.sh tests/test_memory.py"""

from argparse import Namespace

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import DistributedDataParallelKwargs
from datasets import Dataset
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from r1zero import schedule
from r1zero.estimate import memory, plan
from r1zero.estimate.model_shapes import SHAPES, Shape
from r1zero.preflight.machine import read_strategy
from r1zero.preflight.model import without_weights

PARAMETERS = 1_543_714_304
EMBEDDING = 151936 * 1536
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
    "eval_strategy": "steps",
    "per_device_eval_batch_size": 64,
    "trim_padding": True,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
}
ONE = read_strategy({})  # one process
CARD = 80 * memory.GIB


def values(**changed):
    return Namespace(**VALUES | changed)


@pytest.fixture(scope="module")
def model():
    return without_weights(SHAPES["Qwen2.5-1.5B"].config())


def deepspeed(stage, processes, **offloaded):
    environment = {"WORLD_SIZE": str(processes), "ACCELERATE_USE_DEEPSPEED": "true"}
    environment |= {f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE": "cpu" for part in offloaded}
    return read_strategy(environment | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)})


class TestSchedule:
    def test_countdown_recipe_has_256_completions_and_10240_steps_an_epoch(self):
        assert schedule.schedule(values(), 327_680, 1) == {
            "prompts": 32,
            "completions": 256,
            "span": 1.0,
            "steps_an_epoch": 10_240,
            "steps": 500,
            "completions_in_all": 128_000,
        }

    def test_several_steps_on_one_generation_are_counted(self):
        changed = values(steps_per_generation=64, num_iterations=2, max_steps=-1, num_train_epochs=0.5)
        found = schedule.schedule(changed, 1000, 2)
        assert (found["completions"], found["prompts"], found["span"]) == (1024, 128, 4)
        assert found["steps_an_epoch"] == 28 and found["steps"] == 14 and found["completions_in_all"] == 4 * 1024

    def test_without_the_number_of_problems_max_steps_alone_says_how_long_a_run_is(self):
        known = schedule.schedule(values(), None, 1)
        assert (known["steps_an_epoch"], known["steps"], known["completions_in_all"]) == (None, 500, 128_000)
        unknown = schedule.schedule(values(max_steps=-1), None, 1)
        assert (unknown["steps"], unknown["completions_in_all"]) == (None, None)

    def test_steps_of_an_epoch_are_those_that_trl_runs(self, tmp_path, tiny_model, tiny_data):
        """40 problems, 4 prompts a generation of two steps: ten generations, twenty steps."""
        args = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            num_train_epochs=1,
            num_generations=4,
            per_device_train_batch_size=8,
            steps_per_generation=2,
            max_completion_length=2,
            save_strategy="no",
            disable_tqdm=True,
        )
        problems = Dataset(pq.read_table(tiny_data / "train.parquet", columns=["prompt"]).slice(0, 40))

        def same_reward(completions, **columns):
            return [0.0] * len(completions)

        trainer = GRPOTrainer(model=str(tiny_model), reward_funcs=same_reward, args=args, train_dataset=problems)
        trainer.train()
        plan = schedule.schedule(args, 40, processes=1)
        assert plan["steps_an_epoch"] == plan["steps"] == trainer.state.global_step == 20
        assert plan["completions_in_all"] == 160


class TestMemory:
    def test_one_card_holds_weights_gradients_two_moments_and_the_reference(self, model):
        parts = memory.memory(values(), model, ONE, 1280, CARD)["parts"]
        assert model.num_parameters() == PARAMETERS
        for part, size in {"weights": 4, "gradients": 4, "optimizer": 8, "reference": 4}.items():
            assert parts[part] == size * PARAMETERS
        assert parts["vLLM"] == int(0.3 * CARD)

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
                read_strategy({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
                {"weights": 4 / 8, "gradients": 4 / 8, "optimizer": 8 / 8},
                id="FSDP2",
            ),
            pytest.param(read_strategy({"WORLD_SIZE": "8"}), {"weights": 4, "gradients": 4, "optimizer": 8}, id="DDP"),
        ],
    )
    def test_strategies_divide_what_they_say(self, model, strategy, expected):
        parts = memory.memory(values(), model, strategy, 1280, None)["parts"]
        assert {part: parts.get(part, 0) / PARAMETERS for part in expected} == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("changed", "strategy", "a_trained_parameter"),
        [
            pytest.param({}, ONE, (4, 4, 8), id="float32"),
            pytest.param({"dtype": "bfloat16"}, ONE, (2, 2, 4), id="all in bfloat16"),
            pytest.param({"optim": "paged_adamw_8bit", "dtype": "bfloat16"}, ONE, (2, 2, 2.9), id="8-bit moments"),
            pytest.param({}, deepspeed(0, 1), (2, 2, 12), id="DeepSpeed keeps a float32 copy"),
            pytest.param({"bf16": False}, deepspeed(0, 1), (4, 4, 8), id="DeepSpeed in float32"),
            pytest.param({"bf16": False, "fp16": True}, deepspeed(0, 1), (2, 2, 12), id="DeepSpeed in float16"),
        ],
    )
    def test_bytes_of_a_trained_parameter(self, model, changed, strategy, a_trained_parameter):
        parts = memory.memory(values(**changed), model, strategy, 1280, None)["parts"]
        found = [parts[part] / PARAMETERS for part in ("weights", "gradients", "optimizer")]
        assert found == pytest.approx(a_trained_parameter, abs=0.02)

    def test_lora_trains_its_adapters_alone(self, model):
        lora = values(use_peft=True, lora_target_modules="all-linear", dtype="bfloat16")
        attention = [(1536, 1536), (1536, 256), (1536, 256), (1536, 1536)]
        mlp = [(1536, 8960), (1536, 8960), (8960, 1536)]
        layer = sum(32 * (inner + outer) for inner, outer in attention + mlp)
        assert memory.trained_parameters(model, lora) == 28 * layer
        parts = memory.memory(lora, model, ONE, 1280, None)["parts"]
        assert "reference" not in parts and parts["weights"] == 2 * PARAMETERS + 4 * 28 * layer
        assert parts["optimizer"] == 8 * 28 * layer

    def test_8_bit_moments_are_2_bytes_but_those_of_the_embedding(self, model):
        """Measured for bitsandbytes under transformers: 8 bytes a weight of the embedding, 2.05 of the others."""
        changed = values(optim="adamw_bnb_8bit")
        one = memory.memory(changed, model, ONE, 1280, None)["parts"]["optimizer"]
        assert one == 2 * (PARAMETERS - EMBEDDING) + 8 * EMBEDDING
        zero2 = memory.memory(changed, model, deepspeed(2, 2), 1280, None)["parts"]["optimizer"]
        assert zero2 == (2 + 4) * PARAMETERS // 2

    @pytest.mark.parametrize(
        ("changed", "strategy", "offered"),
        [
            pytest.param({}, ONE, True, id="one card"),
            pytest.param({}, deepspeed(2, 8), True, id="ZeRO-2"),
            pytest.param({}, deepspeed(2, 8, OPTIMIZER=1), False, id="the optimizer is on the CPU"),
            pytest.param({"optim": "paged_adamw_8bit"}, ONE, False, id="8 bits already"),
            pytest.param({"use_peft": True}, ONE, False, id="adapters alone are trained"),
            pytest.param({}, read_strategy({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}), False, id="FSDP"),
        ],
    )
    def test_8_bit_moments_are_offered_where_they_help(self, changed, strategy, offered):
        assert ("--optim adamw_bnb_8bit" in memory.advice(values(**changed), strategy, "update")) == offered

    def test_vllm_on_a_server_takes_nothing_of_this_card(self, model):
        server = {"vllm_server_base_url": None, "vllm_server_host": "0.0.0.0", "vllm_server_port": 8000}
        changed = values(vllm_mode="server", vllm_server_timeout=240.0, **server)
        found = memory.memory(changed, model, ONE, 1280, CARD)
        assert not {"vLLM", "vLLM asleep", "cache"} & found["parts"].keys()
        lines = plan.plan_lines(changed, model, 327_680, 256, ONE, None)
        assert "a vLLM server at http://0.0.0.0:8000, awaited for 240 s" in lines[2]

    def test_checkpointing_and_smaller_batches_save_activations(self, model):
        def activations(**changed):
            return memory.memory(values(**changed), model, ONE, 1280, None)["parts"]["activations"]

        assert activations(activation_checkpointing=False) > 3 * activations()
        assert activations(per_device_train_batch_size=1) == activations() // 8

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            pytest.param(ONE, 0, id="one card"),
            pytest.param(read_strategy({"WORLD_SIZE": "2"}), 4 * PARAMETERS, id="DDP: as large as all gradients"),
            pytest.param(deepspeed(2, 2), 2 * 5e8, id="ZeRO-2: a bucket"),
            pytest.param(deepspeed(3, 2), 2 * 5e8 + 2 * 1e9, id="ZeRO-3: a bucket, and the weights at work"),
        ],
    )
    def test_gradients_are_exchanged_in_buffers(self, model, strategy, expected):
        parts = memory.memory(values(), model, strategy, 1280, None)["parts"]
        assert parts.get("buffers", 0) == expected

    def test_buffers_are_those_of_the_libraries(self):
        zero = DeepSpeedZeroConfig()
        assert (memory.BUCKET, memory.LIVE) == (zero.reduce_bucket_size, zero.max_live_parameters)
        assert not DistributedDataParallelKwargs().gradient_as_bucket_view

    def test_deepspeed_steps_in_float32_once_the_activations_are_gone(self, model):
        assert memory.optimizer_step(values(), model, deepspeed(2, 8)) == 6 * PARAMETERS // 8
        assert memory.optimizer_step(values(), model, deepspeed(2, 8, OPTIMIZER=1)) == 0, "it is on the CPU"
        assert memory.optimizer_step(values(), model, ONE) == 0, "torch's AdamW is fused"

    def test_gradients_stay_while_it_generates_with_zero_3_alone(self, model):
        for stage, stays in ((2, False), (3, True)):
            found = memory.memory(values(), model, deepspeed(stage, 8), 1280, None)
            parts = found["parts"]
            kept = sum(parts[name] for name in ("weights", "optimizer", "reference", "context"))
            assert found["peaks"]["generation"] == kept + stays * parts["gradients"]

    def test_evaluation_holds_16_of_its_batch_at_a_time_or_all_where_padding_is_not_trimmed(self, model):
        def evaluation(**changed):
            found = memory.memory(values(**changed), model, ONE, 1280, None)
            return found["parts"].get("evaluation"), found["peaks"].get("evaluation")

        part, peak = evaluation()
        # Per token gate, up and their product in bfloat16, four vectors of the stream in float32, a row of the mask;
        # once the cached bfloat16 weights of all layers
        tokens, layers = 16 * 1280 * (3 * 2 * 8960 + 4 * 4 * 1536 + 1280), 2 * (PARAMETERS - EMBEDDING)
        assert part == pytest.approx(tokens + layers, rel=1e-3)
        assert peak == part + memory.CONTEXT + memory.VLLM_ASLEEP + (4 + 8 + 4) * PARAMETERS, "without gradients"
        assert evaluation(per_device_eval_batch_size=1024)[0] == part
        assert evaluation(per_device_eval_batch_size=8)[0] == part - tokens // 2
        assert evaluation(trim_padding=False)[0] == part + 3 * tokens
        assert evaluation(eval_strategy="no") == (None, None)

    @pytest.mark.parametrize(
        ("changed", "offered"),
        [
            pytest.param({}, ["--per_device_eval_batch_size below 16"], id="a batch of 64"),
            pytest.param({"per_device_eval_batch_size": 8}, ["--per_device_eval_batch_size below 8"], id="of 8"),
            pytest.param(
                {"trim_padding": False}, ["--trim_padding true", "--per_device_eval_batch_size below 64"], id="padded"
            ),
        ],
    )
    def test_what_makes_an_evaluation_smaller_is_offered(self, changed, offered):
        found = memory.advice(values(**changed), ONE, "evaluation").split(", or ")
        assert [option for option in found if "eval_batch" in option or "trim" in option] == offered

    @pytest.mark.parametrize(
        ("changed", "strategy", "copied"),
        [
            pytest.param({}, ONE, True, id="a base in bfloat16"),
            pytest.param({"dtype": "float32"}, ONE, False, id="a base in float32"),
            pytest.param({"dtype": "float32"}, deepspeed(2, 2), True, id="one that DeepSpeed makes bfloat16"),
            pytest.param({}, deepspeed(3, 2), False, id="ZeRO-3"),
            pytest.param({"use_vllm": False}, ONE, False, id="no vLLM, to which it would be pushed"),
            pytest.param({"use_peft": False}, ONE, False, id="no adapter"),
        ],
    )
    def test_copies_of_a_lora_base_are_said_and_take_none_of_the_card(self, model, changed, strategy, copied):
        lora = values(**{"use_peft": True, "lora_target_modules": "all-linear", "dtype": "bfloat16"} | changed)
        lines = plan.plan_lines(lora, model, 327_680, 256, strategy, CARD)
        said = "memory of the machine: 2.4 GiB a process for exact copies of the base weights"
        assert (said in lines) == copied and (memory.exact_copies(lora, model, strategy) > 0) == copied

    def test_without_sleep_vllm_stays_during_the_update(self, model):
        awake = memory.memory(values(vllm_enable_sleep_mode=False), model, ONE, 1280, CARD)["peaks"]
        asleep = memory.memory(values(vllm_enable_sleep_mode=True), model, ONE, 1280, CARD)["peaks"]
        for phase in ("update", "evaluation"):
            assert awake[phase] - asleep[phase] == int(0.3 * CARD) - memory.VLLM_ASLEEP
        assert awake["generation"] == asleep["generation"]

    def test_transformers_generation_holds_keys_and_values_of_all_its_sequences(self, model):
        found = memory.memory(values(use_vllm=False), model, ONE, 1280, None)
        # 256 sequences of 1,280 tokens, 28 layers, keys and values of 2 heads of 128 in float32
        assert found["parts"]["cache"] == 256 * 1280 * 28 * 2 * 2 * 128 * 4
        with_vllm = memory.memory(values(), model, ONE, 1280, None)
        assert found["peaks"]["generation"] - with_vllm["peaks"]["generation"] == found["parts"]["cache"]
        evaluated = memory.memory(values(use_vllm=False, per_device_eval_batch_size=512), model, ONE, 1280, None)
        assert evaluated["parts"]["cache"] == 2 * found["parts"]["cache"]

    def test_the_larger_batch_is_the_one_to_make_smaller(self):
        for evaluated, said in (
            (64, "a smaller --steps_per_generation"),
            (512, "--per_device_eval_batch_size below 512"),
        ):
            found = memory.advice(values(use_vllm=False, per_device_eval_batch_size=evaluated), ONE, "generation")
            assert found.startswith(said)

    @pytest.mark.parametrize(
        ("settings", "dtype"),
        [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"bf16": False}, "float32")],
        ids=["float32 under autocast", "bfloat16", "float32"],
    )
    def test_keys_and_values_have_the_size_that_transformers_gives_them(self, settings, dtype):
        model = AutoModelForCausalLM.from_config(Shape(64, 2, 4, 2, 128, 512, True, 64).config(dtype=dtype))
        changed = values(use_vllm=False, gradient_accumulation_steps=1, eval_strategy="no", **settings)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=changed.bf16):
            kept = model(input_ids=torch.zeros(8, 16, dtype=torch.long), use_cache=True).past_key_values
        size = sum(tensor.nbytes for layer in kept.layers for tensor in (layer.keys, layer.values))
        assert memory.cache(changed, model, ONE, 16) == size


class TestPlan:
    def test_of_the_default_recipe_on_its_card(self, model):
        assert plan.plan_lines(values(), model, 327_680, 256, ONE, CARD) == [
            "steps: 256 completions of 32 prompts a generation, 1 optimizer step on them; 10,240 steps an epoch of "
            "327,680 problems, 500 steps and 128,000 completions in this run",
            "model: 1,543,714,304 parameters, all trained, weights float32, arithmetic bf16, attention sdpa",
            "machine: one process; vLLM in the same processes, tensor parallel 1",
            "memory a card, estimate in GiB: weights 5.8, gradients 5.8, optimizer 11.5, reference 5.8, context 1.0, "
            "activations 3.3, head 1.4, cast weights 2.4, evaluation 4.0, vLLM asleep 1.0, vLLM 24.0; at most 35.3 in "
            "update, 29.0 in evaluation, 48.0 in generation, of 80.0",
            "disk: 61.75 GB for 3 checkpoints at once and the final model",
        ]

    def test_says_what_does_not_fit_and_what_to_change(self, model):
        lines = plan.plan_lines(values(), model, 327_680, 256, ONE, 24 * memory.GIB)
        (line,) = [line for line in lines if line.startswith("will not fit in update")]
        assert "--per_device_train_batch_size" in line and "--beta 0" in line and "zero3.yaml" in line
        fits = plan.plan_lines(values(), model, 327_680, 256, ONE, CARD)
        assert not [line for line in fits if "will not fit" in line]

    def test_says_what_is_not_known_before_the_data_is_there(self, model):
        steps, _, _, card, disk = plan.plan_lines(values(), model, None, 0, ONE, CARD)
        assert steps.endswith(
            "; the number of problems is not known yet, 500 steps and 128,000 completions in this run"
        )
        assert "estimate in GiB without the prompts, whose length is not known yet: weights 5.8" in card
        assert disk.startswith("disk: 61.75 GB for 3 checkpoints")
        steps, *_ = plan.plan_lines(values(max_steps=-1, num_train_epochs=3), model, None, 0, ONE, CARD)
        assert steps.endswith("; the number of problems is not known yet, nor is that of the steps in 3 epochs")
