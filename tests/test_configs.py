"""Every YAML parses into its classes, and its batch arithmetic holds.   bash tests/run.sh tests/test_configs.py"""

import functools
import re

import pytest
import yaml
from conftest import parser, settings

from r1zero import ROOT
from r1zero.estimate import memory, model_shapes
from r1zero.preflight import recipe
from r1zero.preflight.machine import launcher_variables, read_strategy
from r1zero.preflight.model import without_weights

CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name not in ("tiny_model.yaml", "warm_start.yaml"))
# of a generation; else TinyZero's 256
COMPLETIONS = {"smollm2-135m": 32, "qwen2.5-1.5b-lora-t4": 64, "x_r1_750": 64, "eurus_r1_distill_1.5b": 128}


def processes_of(path):
    """How many processes the command in a recipe's header starts."""
    named = re.search(r"^#.*--num_processes (\d+)", path.read_text(), flags=re.MULTILINE)
    return int(named[1]) if named else 1


@functools.cache
def model_of(name):
    """The model that a recipe names, without weights."""
    return without_weights(model_shapes.config_of(name))


def estimate(path, values):
    """What memory.memory says of a recipe on the card of its header, and the bytes of that card."""
    launcher = re.search(r"--config_file (\S+)", path.read_text())[1]
    variables = launcher_variables(ROOT / launcher, processes_of(path))
    cards = re.search(r"(\d+) GB(?: \(([\d.]+) GiB\))?", path.read_text())  # of 10^9 bytes, or as many GiB as said
    card = float(cards[2]) * memory.GIB if cards[2] else int(cards[1]) * memory.GB
    model, tokens = model_of(values.model_name_or_path), values.vllm_max_model_length
    return memory.memory(values, model, read_strategy(variables), tokens, card), card


def numbers(match):
    """The groups of a match as floats, None where nothing matches."""
    return match and [float(number) for number in match.groups()]


def gib(*sizes):
    """Bytes as GiB, equal to what they are rounded to."""
    return pytest.approx([size / memory.GIB for size in sizes], abs=0.501)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    @pytest.fixture
    def values(self, path):
        """Every setting as the checks see it; the arguments' classes themselves want the recipe's hardware."""
        return settings(config=path, processes=processes_of(path))

    def test_keys_are_known_and_values_have_their_type(self, path):
        """In the classes of TRL, on the CPU in float32, since they check the hardware."""
        for arguments in recipe.build(parser(), settings("--use_cpu", "--bf16", "false", config=path)):
            for key, value in yaml.safe_load(path.read_text()).items():
                if hasattr(arguments, key) and isinstance(value, (int, float)) and key not in ("bf16", "use_cpu"):
                    assert getattr(arguments, key) == value

    def test_batch_arithmetic_holds(self, path, values):
        ranks = processes_of(path)
        assert recipe.batch_errors(values, ranks) == []
        steps = values.steps_per_generation or values.gradient_accumulation_steps
        per_generation = values.per_device_train_batch_size * ranks * steps
        assert per_generation == COMPLETIONS.get(path.stem, 256)
        assert f"= {per_generation} completions" in path.read_text(), "the arithmetic is spelled out"
        assert f"--config configs/{path.name}" in path.read_text()
        said = re.search(r"(\d+) accumulation = (\d+) completions a step", path.read_text())
        expected = (values.gradient_accumulation_steps, values.completions_per_step)
        assert path.stem == "tiny_cpu" or tuple(map(int, said.groups())) == expected

    def test_memory_is_as_the_comments_say_and_vllm_gets_what_the_card_allows(self, path, values):
        if values.use_cpu:
            return
        found, card = estimate(path, values)
        text, peaks, parts = path.read_text(), found["peaks"], found["parts"]
        share = re.search(r"vllm_gpu_memory_utilization: \S+ # (\S+) of (\S+) GiB: .* and (\S+) stay free", text)
        assert numbers(share) == gib(parts["vLLM"], card, card - peaks["generation"])
        scoring = re.search(r"a pass of scoring takes (\S+) GiB", text)
        assert numbers(scoring) == gib(parts["evaluation"]) or path.stem == "x_r1_750"
        assert max(peaks.values()) <= 0.9 * card
        values.vllm_gpu_memory_utilization += 0.05  # with more for vLLM, less than a fifth would stay free
        assert estimate(path, values)[0]["peaks"]["generation"] > 0.8 * card

    def test_context_of_vllm_holds_prompt_and_completion(self, path, values):
        if not values.use_vllm:
            return
        prompt = int(re.search(r"# prompt (\d+) \+ completion", path.read_text())[1])
        assert values.vllm_max_model_length == prompt + values.max_completion_length
        dropped = re.search(r"--max_prompt_length (\d+)", path.read_text())
        assert prompt == (int(dropped[1]) if dropped else 256)  # prompts of Countdown have fewer tokens
