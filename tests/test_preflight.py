"""Each early check, with the line it prints; no weights are loaded.   bash tests/run.sh tests/test_preflight.py"""

import importlib.util
import shutil
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from trl import GRPOConfig, ModelConfig, TrlParser

import preflight
from train_countdown import ScriptArguments

ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs" / "tiny_cpu.yaml"


@pytest.fixture
def parse(tmp_path, tiny_model, tiny_data, monkeypatch):
    """Parses the tiny recipe on the tests' own model and data, with more flags; returns the three argument groups."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, config=TINY):
        own = ["--model_name_or_path", tiny_model, "--data_dir", tiny_data, "--output_dir", tmp_path / "out"]
        parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
        named = ["--config", str(config)] if config else []
        return preflight.parse(parser, [*named, *map(str, own), *map(str, flags)])

    return run


@pytest.fixture
def problem(parse):
    """The one line that stops a run with these flags."""

    def run(*flags, **options):
        with pytest.raises(SystemExit) as stopped:
            parse(*flags, **options)
        lines = str(stopped.value).splitlines()
        assert len(lines) == 2, lines
        return lines[1]

    return run


def pretend_card(monkeypatch, gib=16, name="a card", bf16=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    properties = type("Properties", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_the_recipe_itself_passes_and_flags_override_it(parse):
    script_args, training_args, model_args = parse("--learning_rate", "1e-5", "--lora_r", 4)
    assert training_args.learning_rate == 1e-5 and training_args.num_generations == 16
    assert model_args.lora_r == 4 and script_args.prepare == "tiny_model.py"


@pytest.mark.parametrize(
    ("flags", "found", "wanted"),
    [
        pytest.param(
            ("--per_device_train_batch_size", 6, "--steps_per_generation", 1, "--num_generations", 4),
            "6 completions",
            "set --per_device_train_batch_size to 4 or 8, or --num_generations to 2 or 3",
            id="a batch of 6 with 4 generations",
        ),
        pytest.param(
            ("--per_device_train_batch_size", 3, "--steps_per_generation", 1, "--num_generations", 8),
            "3 completions",
            "set --per_device_train_batch_size to 8, or --num_generations to 3",
            id="a batch smaller than a group",
        ),
        pytest.param(
            ("--save_steps", 42), "save_steps 42", "set --save_steps to 40 or 44", id="a save inside a batch"
        ),
        pytest.param(("--learning_rte", "1"), "learning_rte:", "did you mean learning_rate?", id="a misspelt flag"),
        pytest.param(("beta",), "beta:", "did you mean beta?", id="a word that is no flag"),
        pytest.param(("--zzz", "1"), "zzz:", "see --help", id="a flag like no other"),
        pytest.param(
            ("--data_dir", "nowhere"),
            "missing data: nowhere/train.parquet and nowhere/test.parquet",
            "--data_dir",
            id="no data",
        ),
        pytest.param(
            ("--model_name_or_path", "no/where"), "model no/where", "hf download no/where", id="no such hub id"
        ),
        pytest.param(
            ("--model_name_or_path", "./where"), "./where is a folder that does not", "FOLDER", id="no folder"
        ),
        pytest.param(
            ("--max_completion_length", 510), "exceed the model's context of 512", "at most 503", id="context"
        ),
        pytest.param(
            ("--per_device_eval_batch_size", 300),
            "256 rows",
            "--per_device_eval_batch_size to 256",
            id="evaluation batch",
        ),
        pytest.param(("--report_to", "wandb"), "wandb, which is not installed", "pip install wandb", id="no wandb"),
        pytest.param(("--use_vllm", "true"), "vllm is not installed", "--use_vllm false", id="no vllm"),
        pytest.param(
            ("--resume_from_checkpoint", "true"), "no complete checkpoint", "leave out", id="nothing to resume"
        ),
        pytest.param(
            ("--resume_from_checkpoint", "gone"), "gone is incomplete", "name an earlier", id="no such checkpoint"
        ),
        pytest.param(
            ("--loss_type", "grpo", "--num_generations", 1, "--scale_rewards", "none"), "2", "", id="TRL's own"
        ),
    ],
)
def test_problem_says_what_was_found_and_what_to_type(problem, monkeypatch, flags, found, wanted):
    if "--use_vllm" in flags:
        pretend_card(monkeypatch)
        monkeypatch.setattr(preflight, "is_vllm_available", lambda: False)
    line = problem(*flags)
    assert found in line and wanted in line


def test_all_problems_are_listed_at_once(parse):
    with pytest.raises(SystemExit) as stopped:
        parse("--data_dir", "nowhere", "--model_name_or_path", "no/where", "--save_steps", 42)
    assert len(str(stopped.value).splitlines()) == 1 + 3


def test_misspelt_key_in_a_yaml_names_the_nearest(problem, tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text(TINY.read_text().replace("num_generations:", "num_generation:"))
    assert "num_generation: did you mean num_generations?" in problem(config=config)


@pytest.mark.parametrize("text", ["- a\n- list", "a: [1", ""], ids=["a list", "broken YAML", "an empty file"])
def test_config_that_is_no_mapping_is_refused(problem, tmp_path, text):
    config = tmp_path / "x.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit, match="not a readable YAML mapping"):
        preflight.parse(TrlParser((ScriptArguments, GRPOConfig, ModelConfig)), ["--config", str(config)])


def test_config_that_does_not_exist_is_named(problem):
    assert "nowhere.yaml" in problem(config="nowhere.yaml")


def test_data_with_other_columns_is_refused(parse, tmp_path):
    for split in ("train", "test"):
        pq.write_table(pa.table({"question": ["?"] * 300}), tmp_path / f"{split}.parquet")
    with pytest.raises(SystemExit, match="lacks prompt: type python tiny_model.py"):
        parse("--data_dir", tmp_path)


def test_data_cut_off_in_the_middle_is_refused(problem, tmp_path, tiny_data):
    for split in ("train", "test"):
        whole = (tiny_data / f"{split}.parquet").read_bytes()
        (tmp_path / f"{split}.parquet").write_bytes(whole[: len(whole) // 2] if split == "test" else whole)
    assert "test.parquet is no readable parquet file" in problem("--data_dir", tmp_path)


def test_bf16_without_a_gpu_is_refused(problem):
    assert "there is no GPU: pass --use_cpu --bf16 false" in problem("--use_cpu", "false", "--bf16", "true")


def test_fp16_without_a_gpu_is_refused(problem):
    assert "fp16 is on and there is no GPU" in problem("--fp16", "true")


def test_bf16_on_a_card_without_it_is_refused(problem, monkeypatch):
    pretend_card(monkeypatch, name="Tesla T4", bf16=False)
    line = problem("--use_cpu", "false", "--bf16", "true")
    assert "Tesla T4 has no bfloat16: pass --bf16 false --fp16 true" in line


def test_vllm_that_trl_does_not_know_is_refused(problem, monkeypatch):
    def old_vllm():
        warnings.warn(
            "TRL currently supports vLLM versions from 0.22.0 to 0.31.0. You have version 0.1.0.", stacklevel=1
        )
        return True

    pretend_card(monkeypatch)
    monkeypatch.setattr(preflight, "is_vllm_available", old_vllm)
    assert "You have version 0.1.0. Type pip install" in problem("--use_vllm", "true")


def test_one_process_that_sees_several_gpus_is_refused(problem, monkeypatch):
    """transformers would wrap the model in DataParallel and take so many times the batch."""
    pretend_card(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    line = problem("--use_cpu", "false")
    assert "one process sees 8 GPUs" in line and "set CUDA_VISIBLE_DEVICES to one" in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--optim", "adamw_bnb_8bit"), "optim adamw_bnb_8bit needs"),
        (("--optim", "paged_adamw_32bit"), "optim paged_adamw_32bit needs"),
        (("--load_in_4bit", "true"), "load_in_4bit needs"),
        (("--optim", "lion_8bit", "--load_in_8bit", "true"), "optim lion_8bit and load_in_8bit needs"),
    ],
)
def test_bitsandbytes_that_is_not_installed_is_named(problem, monkeypatch, flags, named):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert f"{named} bitsandbytes, which is not installed: type pip install -e '.[gpu]'" in problem(*flags)


@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "galore_adamw_8bit"])
def test_optimizers_of_other_packages_are_not_taken_for_it(parse, optim):
    parse("--optim", optim)


class TestStrategy:
    @pytest.fixture
    def vllm(self, monkeypatch):
        """A card, and a vLLM that TRL knows."""
        pretend_card(monkeypatch)
        monkeypatch.setattr(preflight, "is_vllm_available", lambda: True)

    def test_tensor_parallel_that_does_not_divide_the_processes_is_refused(self, problem, monkeypatch, vllm):
        monkeypatch.setattr(preflight, "PROCESSES", 2)
        flags = ("--use_vllm", "true", "--vllm_tensor_parallel_size", 3, "--per_device_eval_batch_size", 16)
        line = problem(*flags)
        assert "vllm_tensor_parallel_size 3 does not divide the 2 processes" in line and "to 1 or 2" in line

    def test_tensor_parallel_on_one_gpu_is_refused(self, problem, vllm):
        line = problem("--use_vllm", "true", "--vllm_tensor_parallel_size", 2)
        assert line.endswith("2 does not divide the 1 process: set --vllm_tensor_parallel_size to 1")

    def test_context_of_vllm_that_is_too_short_is_refused(self, problem, vllm):
        line = problem("--use_vllm", "true", "--vllm_max_model_length", 128, "--max_completion_length", 120)
        assert "exceed vllm_max_model_length of 128: set --max_completion_length to at most 119" in line
        assert "or raise --vllm_max_model_length" in line

    def test_optimizer_that_fsdp_cannot_shard_is_refused(self, problem, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        assert "adamw_8bit of bitsandbytes does not work with FSDP" in problem("--optim", "adamw_8bit")

    def test_context_of_a_vllm_server_is_its_own(self, problem, vllm):
        flags = ("--use_vllm", "true", "--vllm_mode", "server", "--vllm_max_model_length", 128)
        assert "exceed the model's context of 512" in problem(*flags, "--max_completion_length", 510)

    def test_deepspeed_without_what_it_compiles_with_is_refused(self, problem, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setattr(shutil, "which", lambda tool: None)
        assert "apt-get install g++ ninja-build" in problem()

    def test_more_processes_share_the_accumulation_of_the_chosen_recipe(self, parse, monkeypatch, tmp_path):
        config = yaml.safe_load(TINY.read_text()) | {"gradient_accumulation_steps": 32}
        del config["steps_per_generation"]  # then it is the accumulation
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(config | {"per_device_eval_batch_size": 64}))
        monkeypatch.setattr(preflight, "choose_recipe", lambda: str(tmp_path / "x.yaml"))
        monkeypatch.setattr(preflight, "PROCESSES", 4)
        assert parse(config=None)[1].gradient_accumulation_steps == 8
        assert parse("--gradient_accumulation_steps", 16, config=None)[1].gradient_accumulation_steps == 16
        assert parse(config=tmp_path / "x.yaml")[1].gradient_accumulation_steps == 32


def test_output_folder_that_cannot_be_written_is_named(problem, tmp_path):
    (tmp_path / "file").write_text("")
    line = problem("--output_dir", tmp_path / "file" / "run")
    assert "cannot be written to" in line and "--output_dir" in line


def test_full_disk_is_noticed_before_training(problem, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert "has 1 MB free and 2 checkpoints with the final model take 13 MB" in problem()


class TestResume:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        """Two complete checkpoints, and a later one that was cut off while it was saved."""
        for step in (4, 12, 16):
            folder = tmp_path / "out" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            for name in ("optimizer.pt", "rng_state.pth", *(["trainer_state.json"] if step < 16 else [])):
                (folder / name).write_text("")
        return tmp_path / "out"

    def test_true_means_the_newest_complete_checkpoint(self, parse, checkpoints):
        training_args = parse("--resume_from_checkpoint", "true")[1]
        assert training_args.resume_from_checkpoint == str(checkpoints / "checkpoint-12")

    def test_half_saved_checkpoint_is_refused(self, problem, checkpoints):
        line = problem("--resume_from_checkpoint", checkpoints / "checkpoint-16")
        assert "checkpoint-16 is incomplete (no trainer_state.json)" in line

    @pytest.mark.parametrize("lost", ["optimizer.pt", "rng_state.pth"])
    def test_checkpoint_that_trainer_would_silently_half_load_is_refused(self, problem, checkpoints, lost):
        (checkpoints / "checkpoint-12" / lost).unlink()
        assert "is incomplete" in problem("--resume_from_checkpoint", "true")


class TestRecipe:
    @pytest.mark.parametrize(
        ("gib", "bf16", "expected"),
        [
            (None, False, "tiny_cpu"),
            (16, False, "qwen2.5-1.5b-lora-fp16"),
            (24, True, "qwen2.5-1.5b-lora-24gb"),
            (80, True, "qwen2.5-1.5b"),
        ],
        ids=["no GPU", "16 GB without bfloat16", "24 GB", "80 GB"],
    )
    def test_is_chosen_by_the_machine_and_said(self, monkeypatch, capsys, gib, bf16, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        if gib is not None:
            pretend_card(monkeypatch, gib, bf16=bf16)
        assert Path(preflight.choose_recipe()) == ROOT / "configs" / f"{expected}.yaml"
        assert capsys.readouterr().out.startswith(f"recipe: configs/{expected}.yaml (")

    def test_missing_data_and_model_are_made(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "make.py").write_text("import sys; open('made', 'w').write(' '.join(sys.argv[1:]))")
        config = yaml.safe_load(TINY.read_text()) | {"prepare": f"{tmp_path}/make.py --size 3"}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
        parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
        with pytest.raises(SystemExit, match="missing data: data/countdown_tiny/train.parquet"):
            preflight.parse(parser, ["--config", "x.yaml"])
        assert (tmp_path / "made").read_text() == "--size 3"

    def test_nothing_is_made_where_a_flag_points_elsewhere(self, problem, tmp_path):
        assert "missing data: mine/train.parquet" in problem("--data_dir", "mine")
        assert not Path("data").exists() and not Path("models").exists()
