"""Every YAML parses into its classes, and its batch arithmetic holds.   bash tests/run.sh tests/test_configs.py"""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig, ModelConfig, TrlParser

import preflight
import rewards
import tiny_model
from train_countdown import ScriptArguments

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "tiny_model.yaml")
WANTED = {
    "tiny_cpu",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-3b-instruct",
    "qwen2.5-7b",
    "qwen2.5-1.5b-lora-24gb",
    "qwen2.5-1.5b-lora-fp16",
    "qwen2.5-3b-lora-24gb",
    "x_r1_750",
    "multiply",
    "mixture",
    "eurus_r1_distill_1.5b",
}
COMPLETIONS_A_STEP = {"x_r1_750": 64, "eurus_r1_distill_1.5b": 128}  # the others: TinyZero's 256


def settings_of(path):
    """Every setting of a recipe as preflight sees it; the arguments' classes themselves want the recipe's hardware."""
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    assert parser.set_defaults_with_config(**yaml.safe_load(path.read_text())) == [], "unknown keys"
    return parser.parse_known_args([])[0]


def processes_in(path):
    match = re.search(r"--num_processes (\d+)", path.read_text())
    return int(match[1]) if match else 1


def test_no_recipe_is_missing():
    assert {path.stem for path in RECIPES} == WANTED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    def test_keys_are_known_and_values_have_their_type(self, path):
        """Through TRL's own parser, on the CPU in float32, since the classes check the hardware."""
        parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
        flags = ["--config", str(path), "--use_cpu", "--bf16", "false"]
        script_args, training_args, model_args = parser.parse_args_and_config(flags)
        for values in (script_args, training_args, model_args):
            for key, value in yaml.safe_load(path.read_text()).items():
                if hasattr(values, key) and isinstance(value, (int, float)) and key not in ("bf16", "use_cpu"):
                    assert getattr(values, key) == value

    def test_batch_arithmetic_holds(self, path, monkeypatch):
        monkeypatch.setattr(preflight, "PROCESSES", processes_in(path))
        values = settings_of(path)
        assert list(preflight.batch_problems(values)) == []
        per_generation = (
            values.per_device_train_batch_size
            * processes_in(path)
            * (values.steps_per_generation or values.gradient_accumulation_steps)
        )
        assert per_generation == COMPLETIONS_A_STEP.get(path.stem, 256)
        assert f"= {per_generation} completions" in path.read_text(), "the arithmetic is spelled out"

    def test_is_short_and_says_what_it_is_for(self, path):
        lines = path.read_text().splitlines()
        assert len(lines) <= 45 and max(map(len, lines)) <= 119
        header = "\n".join(lines[:4])
        assert "Hardware:" in header and f"--config configs/{path.name}" in header
        assert "ot yet run" in header or path.stem == "tiny_cpu"

    def test_prepare_names_a_script_that_makes_its_data(self, path):
        values = settings_of(path)
        script, *arguments = values.prepare.split()
        assert (CONFIGS.parent / script).is_file()
        if script == "preprocess.py":
            given = arguments[arguments.index("--local_dir") + 1] if "--local_dir" in arguments else None
            assert values.data_dir == (given or f"data/{arguments[0]}")

    def test_reward_functions_exist(self, path):
        values = settings_of(path)
        assert all(callable(getattr(rewards, name)) for name in values.reward_funcs)
        assert values.reward_weights is None or len(values.reward_weights) == len(values.reward_funcs)

    def test_context_of_vllm_holds_prompt_and_completion(self, path):
        values = settings_of(path)
        if values.use_vllm:
            prompt = re.search(r"# prompt (\d+) \+ completion", path.read_text())
            assert values.vllm_max_model_length == int(prompt[1]) + values.max_completion_length
            dropped = re.search(r"--max_prompt_length (\d+)", path.read_text())
            assert int(prompt[1]) == (int(dropped[1]) if dropped else 256), (
                "prompts of Countdown have under 256 tokens"
            )


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_config(path):
    config = load_config_from_file(str(path))
    expected = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type == expected.get(path.stem, "DEEPSPEED")
    if config.distributed_type == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem.removesuffix("_offload")[-1])
        offload = config.deepspeed_config["offload_optimizer_device"]
        assert offload == ("cpu" if path.stem.endswith("_offload") else "none")


def test_tiny_models_numbers_are_all_used():
    path = CONFIGS / "tiny_model.yaml"
    (args,) = TrlParser((tiny_model.TinyModelArguments,)).parse_args_and_config(["--config", str(path)])
    assert yaml.safe_load(path.read_text()) == vars(args)
