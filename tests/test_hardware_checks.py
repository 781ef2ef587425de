"""What a machine or launcher cannot do, each with its line.   bash tests/run.sh tests/test_hardware_checks.py"""

import importlib.util
import shutil
import sys
import sysconfig
import types
import warnings

import pytest
import torch
from conftest import ROOT, parser
from test_machine import TINY, pretend_card, pretend_vllm
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from r1zero import processes
from r1zero.preflight import cards, machine
from r1zero.preflight import check as checks
from r1zero.preflight import hardware as hardware_checks

GPU_RECIPE = ROOT / "configs" / "qwen2.5-1.5b.yaml"


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    """As if this machine had no GPU, whatever it has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cards, "found", lambda: None)


def values(*flags, config=TINY):
    """Every setting of a recipe with flags."""
    return machine.read_recipe(parser(), ["--config", str(config), *map(str, flags)]).values


def errors(*flags, config=TINY):
    return hardware_checks.hardware_errors(values(*flags, config=config))


def error(*flags, config=TINY):
    """The only line that is said."""
    (line,) = errors(*flags, config=config)
    return line


def hide(monkeypatch, package):
    """As if a package were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))


class TestArithmetic:
    def test_of_the_tiny_recipe_needs_nothing(self):
        assert errors() == []

    def test_bf16_without_a_gpu_is_refused(self):
        assert "there is no GPU: pass --use_cpu --bf16 false" in error("--use_cpu", "false", "--bf16", "true")

    def test_fp16_without_a_gpu_is_refused(self):
        assert "fp16 is on and there is no GPU" in error("--fp16", "true")

    def test_bf16_on_a_card_without_it_is_refused(self, monkeypatch):
        pretend_card(monkeypatch, name="Tesla T4", bf16=False)
        line = error("--use_cpu", "false", "--bf16", "true")
        assert line == "bf16 is on and Tesla T4 has no bfloat16: pass --bf16 false --fp16 true"


class TestCard:
    def test_that_torch_does_not_see_is_the_only_line_of_a_recipe_for_a_gpu(self, monkeypatch):
        monkeypatch.setattr(cards, "found", lambda: ("Tesla T4", "550.54.15"))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert "found driver 550.54.15 for the Tesla T4, wanted 580 or newer" in error(config=GPU_RECIPE)

    def test_that_torch_does_not_see_is_nothing_to_a_recipe_for_the_cpu(self, monkeypatch):
        monkeypatch.setattr(cards, "found", lambda: pytest.fail("nvidia-smi was asked"))
        assert errors() == []
        assert errors("--use_cpu", "--bf16", "false", "--use_vllm", "false", config=GPU_RECIPE) == []

    def test_that_torch_has_nothing_for_is_refused(self, monkeypatch):
        pretend_card(monkeypatch, name="Tesla V100-SXM2-16GB", bf16=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        line = error("--use_cpu", "false", "--fp16", "true")
        assert "Tesla V100-SXM2-16GB has compute capability 7.0" in line and "begins at 7.5: type pip install" in line
        pretend_vllm(monkeypatch)
        assert error("--use_cpu", "false", "--fp16", "true", "--use_vllm", "true") == line

    def test_one_process_that_sees_several_is_refused(self, monkeypatch):
        """transformers would wrap the model in DataParallel and take so many times the batch."""
        pretend_card(monkeypatch)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        line = error("--use_cpu", "false")
        assert "one process sees 8 GPUs" in line and "set CUDA_VISIBLE_DEVICES to one" in line


class TestVllm:
    FLAGS = ("--use_vllm", "true")

    def test_without_a_gpu_and_not_installed_is_refused(self, monkeypatch):
        monkeypatch.setattr(hardware_checks, "is_vllm_available", lambda: False)
        assert error(*self.FLAGS) == "use_vllm is on and there is no GPU: pass --use_vllm false"

    def test_that_is_not_installed_is_named(self, monkeypatch):
        pretend_card(monkeypatch)
        monkeypatch.setattr(hardware_checks, "is_vllm_available", lambda: False)
        assert "vllm is not installed: type pip install" in error(*self.FLAGS)

    def test_that_trl_does_not_know_is_refused(self, monkeypatch):
        def old_vllm():
            warnings.warn("TRL supports vLLM from 0.22.0 to 0.31.0. You have version 0.1.0.", stacklevel=1)
            return True

        pretend_card(monkeypatch)
        pretend_vllm(monkeypatch)
        monkeypatch.setattr(hardware_checks, "is_vllm_available", old_vllm)
        assert "You have version 0.1.0. Type pip install" in error(*self.FLAGS)

    def test_on_a_card_that_its_wheel_has_nothing_for_is_refused(self, monkeypatch):
        """A V100, with the build of torch that has it."""
        pretend_card(monkeypatch, name="the card", bf16=False)
        pretend_vllm(monkeypatch)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_50", "sm_70", "sm_90"])
        line = error(*self.FLAGS, "--use_cpu", "false", "--fp16", "true")
        assert line == (
            "use_vllm is on and vLLM has nothing for the card, of compute capability 7.0: pass --use_vllm false"
        )


class TestVllmWithoutGpu:
    """It is asked for its platform, which another build of it changes."""

    @pytest.fixture
    def platform(self, monkeypatch):
        """As if a vLLM were installed whose platform is this."""

        def pretend(is_cpu, sleeps):
            pretend_vllm(monkeypatch)
            module = types.ModuleType("vllm.platforms")
            module.current_platform = types.SimpleNamespace(
                is_cpu=lambda: is_cpu, is_sleep_mode_available=lambda: sleeps
            )
            monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
            monkeypatch.setitem(sys.modules, "vllm.platforms", module)

        return pretend

    def test_built_for_the_cpu_is_used(self, platform):
        platform(is_cpu=True, sleeps=False)
        assert errors("--use_vllm", "true") == []

    def test_built_for_cuda_is_refused(self, platform):
        platform(is_cpu=False, sleeps=False)
        line = error("--use_vllm", "true")
        assert line == "use_vllm is on and there is no GPU, which this build of vLLM needs: pass --use_vllm false"

    def test_sleep_mode_is_refused_where_it_is_not_there(self, platform):
        platform(is_cpu=True, sleeps=False)
        line = error("--use_vllm", "true", "--vllm_enable_sleep_mode", "true")
        assert "vllm_enable_sleep_mode is on" in line and "pass --vllm_enable_sleep_mode false" in line

    def test_server_is_refused(self, platform):
        """TRL sends it weights over NCCL alone."""
        platform(is_cpu=True, sleeps=False)
        assert "pass --vllm_mode colocate" in error("--use_vllm", "true", "--vllm_mode", "server")

    def test_built_for_the_cpu_needs_a_compiler_for_cpp(self, platform, monkeypatch):
        """Or its engine ends in a traceback of InvalidCxxCompiler, of TorchInductor."""
        compiler_errors = hardware_checks.compiler_errors
        platform(is_cpu=True, sleeps=False)
        monkeypatch.setattr(hardware_checks, "compiler_errors", compiler_errors)
        monkeypatch.setattr(shutil, "which", lambda name: name if name == "gcc" else None)
        monkeypatch.delenv("CXX", raising=False)
        assert "vLLM on a CPU compiles with a C compiler" in error("--use_vllm", "true")
        assert "apt-get install g++" in error("--use_vllm", "true")

    @pytest.mark.vllm
    def test_real_one_built_for_the_cpu_is_used_but_for_its_sleep_mode(self):
        assert errors("--use_vllm", "true") == []
        assert "pass --vllm_enable_sleep_mode false" in error("--use_vllm", "true", "--vllm_enable_sleep_mode", "true")

    def test_is_not_imported_where_nobody_asks_for_it(self, monkeypatch):
        monkeypatch.setattr(hardware_checks, "vllm_errors_without_gpu", lambda values: pytest.fail("imported"))
        assert errors() == []
        pretend_card(monkeypatch)
        pretend_vllm(monkeypatch)
        assert errors("--use_vllm", "true") == []


class TestCompilers:
    """What Triton compiles with on a GPU, and vLLM on a CPU."""

    @pytest.fixture
    def gpu_error(self, monkeypatch):
        """The line of a run with vLLM on a GPU; none where it is None."""
        triton_errors = hardware_checks.triton_errors
        pretend_card(monkeypatch)
        monkeypatch.setattr(hardware_checks, "triton_errors", triton_errors)
        monkeypatch.setattr(hardware_checks, "is_vllm_available", lambda: True)

        def run():
            found = errors("--use_vllm", "true", "--use_cpu", "false")
            return found[0] if found else None

        return run

    def have(self, monkeypatch, *commands):
        """As if these commands alone were on the PATH."""
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in commands else None)

    def headers(self, monkeypatch, folder):
        """As if Python's headers were in this folder."""
        monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(folder))

    @pytest.fixture
    def include(self, tmp_path):
        (tmp_path / "Python.h").touch()
        return tmp_path

    VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

    def test_both_that_are_missing_are_named_in_one_line(self, gpu_error, monkeypatch, tmp_path):
        self.have(monkeypatch)
        self.headers(monkeypatch, tmp_path)
        assert gpu_error() == (
            "Triton, with which TRL and vLLM compute, compiles with a C compiler and Python's headers: type apt-get "
            f"install gcc python{self.VERSION}-dev"
        )

    def test_headers_that_are_missing_are_named_alone(self, gpu_error, monkeypatch, tmp_path):
        self.have(monkeypatch, "gcc")
        self.headers(monkeypatch, tmp_path)
        assert gpu_error().endswith(f"type apt-get install python{self.VERSION}-dev")

    @pytest.mark.parametrize("compiler", ["gcc", "clang"])
    def test_either_compiler_will_do(self, gpu_error, monkeypatch, include, compiler):
        self.have(monkeypatch, compiler)
        self.headers(monkeypatch, include)
        assert gpu_error() is None

    def test_compiler_that_cc_names_will_do(self, gpu_error, monkeypatch, include):
        self.have(monkeypatch)
        self.headers(monkeypatch, include)
        assert gpu_error().endswith("type apt-get install gcc")
        monkeypatch.setenv("CC", "/opt/cc")
        assert gpu_error() is None

    def test_are_asked_for_whatever_generates(self, gpu_error, monkeypatch):
        """TRL's own chunked head is Triton's on every GPU."""
        self.have(monkeypatch)
        server = ("--use_vllm", "true", "--vllm_mode", "server")
        for flags in ((), server):
            (line,) = errors("--use_cpu", "false", *flags)
            assert line.startswith("Triton, with which TRL and vLLM compute,")
        assert errors() == [], "on the CPU it is not used"


class TestBitsandbytes:
    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (("--optim", "adamw_bnb_8bit"), "optim adamw_bnb_8bit needs"),
            (("--load_in_4bit", "true"), "load_in_4bit needs"),
            (("--optim", "lion_8bit", "--load_in_8bit", "true"), "optim lion_8bit and load_in_8bit needs"),
        ],
    )
    def test_that_is_not_installed_is_named(self, monkeypatch, flags, named):
        hide(monkeypatch, "bitsandbytes")
        assert f"{named} bitsandbytes, which is not installed: type pip install -e '.[gpu]'" in error(*flags)

    def test_optimizers_are_those_that_transformers_takes_from_it(self, monkeypatch, tmp_path):
        """adamw_torch_8bit and galore_adamw_8bit, for instance, are of other packages."""
        monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        found = set()
        for args.optim in OptimizerNames:
            try:
                Trainer.get_optimizer_cls_and_kwargs(args)
            except (ImportError, ValueError) as error:
                if "install `bitsandbytes`" in str(error):
                    found.add(args.optim.value)
        assert found == set(hardware_checks.BITSANDBYTES_OPTIMIZERS)


class TestStrategy:
    def errors(self, *flags, **variables):
        """What is said of the launcher's variables."""
        return hardware_checks.strategy_errors(values(*flags), machine.read_strategy(variables))

    def test_tensor_parallel_that_does_not_divide_the_processes_is_refused(self, monkeypatch):
        monkeypatch.setattr(processes, "count", lambda: 2)
        (line,) = self.errors("--use_vllm", "true", "--vllm_tensor_parallel_size", 3)
        assert "vllm_tensor_parallel_size 3 does not divide the 2 processes" in line and "to 1 or 2" in line

    def test_tensor_parallel_on_one_gpu_is_refused(self):
        (line,) = self.errors("--use_vllm", "true", "--vllm_tensor_parallel_size", 2)
        assert line.endswith("2 does not divide the 1 process: set --vllm_tensor_parallel_size to 1")

    def test_optimizer_that_fsdp_cannot_shard_is_refused(self):
        (line,) = self.errors("--optim", "adamw_8bit", ACCELERATE_USE_FSDP="true")
        assert "adamw_8bit of bitsandbytes does not work with FSDP" in line

    def test_deepspeed_without_what_it_compiles_with_is_refused(self, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda tool: None)
        (line,) = self.errors(ACCELERATE_USE_DEEPSPEED="true")
        assert "apt-get install g++ ninja-build" in line

    def test_deepspeed_that_is_not_installed_is_named(self, monkeypatch):
        hide(monkeypatch, "deepspeed")
        assert (
            "DeepSpeed, which is not installed: type pip install -e ."
            in self.errors(ACCELERATE_USE_DEEPSPEED="true")[0]
        )


def test_all_of_them_stop_a_run(tmp_path, tiny_model, tiny_data, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    monkeypatch.setattr(hardware_checks, "is_vllm_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.chdir(tmp_path)
    argv = ["--config", str(TINY), "--model_name_or_path", str(tiny_model), "--data_dir", str(tiny_data)]
    with pytest.raises(SystemExit) as stopped:
        checks.check(parser(), [*argv, "--use_vllm", "true"])
    what, *lines = str(stopped.value).splitlines()
    assert "tiny_cpu.yaml cannot run as it is" in what
    assert len(lines) == 2 and "use_vllm is on" in lines[0] and "g++ and ninja" in lines[1]


def test_deepspeed_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "nowhere.json")
    with pytest.raises(SystemExit, match="nowhere.json"):
        checks.launched_strategy()
