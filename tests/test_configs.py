"""Every YAML parses into its classes, and its batch arithmetic holds.   bash tests/run.sh tests/test_configs.py"""

import importlib.util
import re
import shlex

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import parser
from trl import TrlParser

import rewards
from r1zero import ROOT, checks, machine, tiny_model

CONFIGS = ROOT / "configs"
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


def processes_in(path):
    """How many processes the command in a recipe's header starts."""
    match = re.search(r"--num_processes (\d+)", path.read_text())
    return int(match[1]) if match else 1


def test_no_recipe_is_missing():
    assert {path.stem for path in RECIPES} == WANTED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    @pytest.fixture
    def values(self, path):
        """Every setting as the checks see it; the arguments' classes themselves want the recipe's hardware."""
        return machine.read_recipe(parser(), ["--config", str(path)]).values

    def test_keys_are_known_and_values_have_their_type(self, path):
        """Through TRL's own parser, on the CPU in float32, since the classes check the hardware."""
        flags = ["--config", str(path), "--use_cpu", "--bf16", "false"]
        for arguments in parser().parse_args_and_config(flags):
            for key, value in yaml.safe_load(path.read_text()).items():
                if hasattr(arguments, key) and isinstance(value, (int, float)) and key not in ("bf16", "use_cpu"):
                    assert getattr(arguments, key) == value

    def test_batch_arithmetic_holds(self, path, values, monkeypatch):
        processes = processes_in(path)
        monkeypatch.setattr(machine, "processes", lambda: processes)
        assert checks.batch_errors(values) == []
        steps = values.steps_per_generation or values.gradient_accumulation_steps
        per_generation = values.per_device_train_batch_size * processes * steps
        assert per_generation == COMPLETIONS_A_STEP.get(path.stem, 256)
        assert f"= {per_generation} completions" in path.read_text(), "the arithmetic is spelled out"

    def test_is_short_and_says_what_it_is_for(self, path):
        lines = path.read_text().splitlines()
        assert len(lines) <= 45 and max(map(len, lines)) <= 119
        header = "\n".join(lines[:4])
        assert "Hardware:" in header and f"--config configs/{path.name}" in header
        assert "ot yet run" in header or path.stem == "tiny_cpu"

    def test_prepare_names_what_makes_its_data(self, values):
        script, *arguments = shlex.split(values.prepare)
        if script == "-m":
            assert importlib.util.find_spec(arguments[0])
            return
        assert script == "preprocess.py" and (ROOT / script).is_file()
        folder = f"data/{arguments[0]}"
        if "--local_dir" in arguments:
            folder = arguments[arguments.index("--local_dir") + 1]
        assert values.data_dir == folder

    def test_what_prepare_would_make_is_planned(self, path, values, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        missing = machine.what_will_be_there(machine.read_recipe(parser(), ["--config", str(path)]))
        assert missing.data and (missing.rows is None or missing.rows >= 913)

    def test_reward_functions_exist(self, values):
        assert all(callable(getattr(rewards, name)) for name in values.reward_funcs)
        assert values.reward_weights is None or len(values.reward_weights) == len(values.reward_funcs)

    def test_context_of_vllm_holds_prompt_and_completion(self, path, values):
        if not values.use_vllm:
            return
        prompt = int(re.search(r"# prompt (\d+) \+ completion", path.read_text())[1])
        assert values.vllm_max_model_length == prompt + values.max_completion_length
        dropped = re.search(r"--max_prompt_length (\d+)", path.read_text())
        longest = int(dropped[1]) if dropped else 256  # prompts of Countdown have fewer tokens
        assert prompt == longest


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
