"""Training and evaluation with a real vLLM on the CPU: as without it, and as one process does.   bash tests/vllm.sh"""

import contextlib
import json
import os
import shutil
import signal
import sys
from importlib.metadata import distributions

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import (
    PATIENCE,
    TWO_STEPS,
    accelerate,
    assert_same,
    free_port,
    make_tiny_model,
    run_to_end,
    same_weights,
    settings,
    words,
)
from test_evaluate import words as of_evaluation
from test_lora import adapted
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.generation.vllm_client import VLLMClient

from r1zero.preflight import hardware

IS_HERE = any(found.version.endswith("+cpu") for found in distributions(name="vllm"))  # one for GPUs computes nothing
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not IS_HERE, reason="needs a vLLM for the CPU: bash tests/vllm.sh")]


def assert_agree(history, atol=1e-4):
    """Engine and trainer give each sampled token the same log-probability, in every step."""
    assert history
    for entry in history:
        assert entry["sampling/sampling_logp_difference/max"] < atol
        assert entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=10 * atol)


class TestProcesses:
    """Two steps from the same weights, each completion sampled by its place in the group: stand_in/train.py."""

    @pytest.fixture(scope="class")
    def alone(self, launch_tiny):
        """The reference: one process with the whole batch."""
        return launch_tiny("single", processes=1, use_vllm=True)

    @pytest.mark.parametrize(
        ("strategy", "kind", "parallel"),
        [("ddp", "MULTI_CPU", 1), ("zero2", "DEEPSPEED 2", 1), ("zero3", "DEEPSPEED 3", 2)],
    )
    def test_two_processes_train_as_one(self, launch_tiny, alone, tiny_model, strategy, kind, parallel):
        """With ZeRO-3 one engine is spread over both processes."""
        run = launch_tiny(strategy, use_vllm=True, vllm_tensor_parallel_size=parallel)
        assert run.said("ran as") == [f"2 processes on 1 machines, {kind}"]
        assert run.said("engine computes in") == ["torch.float32"] * 2
        assert_agree(run.history)
        assert_same(run, alone, tiny_model)


def evaluate(models, data, output_dir, processes=1, **flags):
    """Greedy texts of models on held-out problems, a list for each model."""
    output_dir.mkdir()
    flags |= {"data": data / "test.parquet", "output_dir": output_dir}
    command = [*accelerate(output_dir, "ddp", processes), "-m", "r1zero.evaluate", "--model", *models]
    run_to_end([*command, *words(flags)])
    tables = [pq.read_table(output_dir / model.name / "completions.parquet") for model in models]
    return [table["completion"].to_pylist() for table in tables]


class TestLearning:
    """The embedded default after a part of its warm-up: GRPO is to teach it patience, as it does without vLLM."""

    STEPS, SAVED = 20, 16

    @pytest.fixture(scope="class")
    def base(self, tmp_path_factory):
        """Folders of the model and of its problems, after a minute and a half."""
        return make_tiny_model(tmp_path_factory.mktemp("base"), steps=400)

    def train(self, base, output_dir, **flags):
        """Runs the script itself; returns the log."""
        model, data = base
        settings = {"model_name_or_path": model, "data_dir": data, "output_dir": output_dir, "use_vllm": True}
        settings |= {"learning_rate": 3e-4, "max_steps": self.STEPS, "eval_steps": self.STEPS, "logging_steps": 1}
        settings |= {"max_completion_length": 128, "save_steps": self.SAVED} | flags
        run_to_end([sys.executable, "train_countdown.py", "--config", "configs/tiny_cpu.yaml", *words(settings)])
        return json.loads((output_dir / "trainer_state.json").read_text())["log_history"]

    @pytest.fixture(scope="class")
    def run(self, base, tmp_path_factory):
        """Folder and log of a run."""
        folder = tmp_path_factory.mktemp("learned") / "run"
        return folder, self.train(base, folder)

    def test_accuracy_and_length_rise_while_engine_and_trainer_agree(self, run):
        metrics = json.loads((run[0] / "metrics.json").read_text())
        before, after = metrics["before"], metrics["after"]
        # Measured: 12.5 to 28.9 %; one accuracy of 256 has a standard error of at most 0.031
        assert after["accuracy"] > before["accuracy"] + 0.06
        assert after["mean_completion_tokens"] > 1.3 * before["mean_completion_tokens"]
        history = [entry for entry in run[1] if "sampling/sampling_logp_difference/max" in entry]
        assert len(history) == self.STEPS // 4, "one generation for four steps"
        assert_agree(history)

    def test_resumed_run_ends_as_an_uninterrupted_one(self, run, base, tmp_path):
        name = f"checkpoint-{self.SAVED}"
        shutil.copytree(run[0] / name, tmp_path / "run" / name)
        self.train(base, tmp_path / "run", resume_from_checkpoint="true")
        assert same_weights(tmp_path / "run", run[0])

    def test_evaluation_of_two_models_by_two_processes_gives_the_texts_of_transformers(self, run, base, tmp_path):
        models, flags = [base[0], run[0]], {"limit": 96, "max_completion_length": 128}
        expected = evaluate(models, base[1], tmp_path / "expected", backend="transformers", **flags)
        assert expected[0] != expected[1]
        flags |= {"processes": 2, "batch_size": 48}
        assert evaluate(models, base[1], tmp_path / "found", backend="vllm", **flags) == expected


def test_sampled_evaluation_of_more_prompts_than_a_batch_of_vllm_holds(tiny_model, tiny_data, tmp_path):
    """512 prompts of 9 tokens: of one that is split over two batches vLLM rewinds the random numbers."""
    flags = {"backend": "vllm", "n": 2, "temperature": 1.0, "batch_size": 256, "max_completion_length": 4}
    (texts,) = evaluate([tiny_model], tiny_data, tmp_path / "found", **flags)
    assert len(texts) == 512 and len(set(texts)) > 1


def test_server_generates_as_transformers_and_is_ready_for_weights_from_a_gpu(begin, tiny_model, tiny_data):
    """It starts as the run says it is to. On a CPU it takes no new weights, which travel between GPUs alone."""
    flags = {"model_name_or_path": tiny_model, "use_vllm": True, "vllm_mode": "server"}
    values = settings(*words(flags | {"vllm_server_host": "127.0.0.1", "vllm_server_port": free_port()}))
    # Compiling is left out, which takes longer than all that is asked here
    begin(["bash", "-c", f"{hardware.serve_command(values)} --enforce-eager"])
    url = f"http://127.0.0.1:{values.vllm_server_port}"
    client = VLLMClient(base_url=url, connection_timeout=PATIENCE)  # it waits until the server is up
    assert client.get_server_info()["weight_transfer_config"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = tokenizer(pq.read_table(tiny_data / "test.parquet")["prompt"][0].as_py(), return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0].tolist()
    found = client.generate(prompt["input_ids"].tolist(), n=1, temperature=0.0, max_tokens=12)
    assert found["prompt_ids"][0] + found["completion_ids"][0] == expected


# bfloat16 has 8 bits of a number
@pytest.mark.parametrize(("dtype", "nearest"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_engine_and_trainer_agree_at_every_push_of_an_adapter(tmp_path, tiny_model, tiny_data, dtype, nearest):
    if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported():
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        if not hasattr(torch.ops._C, "convert_weight_packed"):
            pytest.skip("this vLLM was built without the AMX kernels that it takes in bfloat16 on this processor")
    flags = TWO_STEPS | {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": tmp_path / "run"}
    flags |= {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "lora_dropout": 0}
    flags |= {"dtype": dtype, "bf16": dtype == "bfloat16", "use_vllm": True, "learning_rate": 1e-2, "max_steps": 6}
    run_to_end([sys.executable, "train_countdown.py", "--config", "configs/tiny_cpu.yaml", *words(flags)])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    pushes = [entry for entry in history if "sampling/sampling_logp_difference/max" in entry]
    assert len(pushes) == 6
    assert pushes[-1]["kl"] > 1e-2, "the adapter has taken the model well away from its base"
    for entry in pushes:
        assert entry["sampling/sampling_logp_difference/max"] < nearest
        assert entry["sampling/sampling_logp_difference/mean"] < nearest / 10


def test_evaluation_of_an_adapter_gives_the_texts_of_transformers(tiny_model, tiny_data, tmp_path):
    adapted(tiny_model, torch.float32).save_pretrained(tmp_path / "adapter")
    flags = {"limit": 12, "max_completion_length": 24}
    (found,), (expected,) = (
        evaluate([tmp_path / "adapter"], tiny_data, tmp_path / backend, backend=backend, **flags)
        for backend in ("vllm", "transformers")
    )
    assert found == expected and len(set(found)) > 1


STOPPED = "r1zero.evaluate: stopped; what is done stays"
SIGNALS = {  # {what: (what is done to the evaluation or to vLLM's process, what is said)}
    "Ctrl-C": (lambda run, engine: os.killpg(run.pid, signal.SIGINT), STOPPED),  # as a terminal does
    "SIGTERM": (lambda run, engine: run.terminate(), STOPPED),
    "the evaluation is killed": (lambda run, engine: run.kill(), None),
    "vLLM is killed": (lambda run, engine: engine.kill(), "vLLM's process ended with status -9: its error"),
}


@pytest.mark.parametrize(("send", "said"), SIGNALS.values(), ids=SIGNALS)
def test_signal_while_the_engine_starts_ends_all(begin, tiny_model, tiny_data, tmp_path, send, said):
    """All processes, with one line, or none if the evaluation itself is killed."""
    flags = of_evaluation([tiny_model], tiny_data / "test.parquet", tmp_path, backend="vllm")
    run = begin([sys.executable, "-m", "r1zero.evaluate", *flags])
    starting = []

    def engine_starts():
        for child in psutil.Process(run.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it has ended since
                if any("libtorch" in mapped.path for mapped in child.memory_maps()):
                    starting.append(child)
        return starting

    run.await_(engine_starts)
    descendants = psutil.Process(run.process.pid).children(recursive=True)
    send(run.process, starting[0])
    assert run.process.wait(timeout=PATIENCE) == (1 if said else -signal.SIGKILL)
    assert psutil.wait_procs(descendants, timeout=PATIENCE)[1] == []
    lines = run.text().splitlines()
    after = lines[lines.index("vllm in float32 on 1 x cpu") + 1 :]
    assert len(after) == bool(said) and all(said in line for line in after), after
