"""Evaluations with a real vLLM, which computes on the CPU: adapters, idle processes, Ctrl-C, and going on afterwards.

bash tests/vllm.sh tests/test_vllm_evaluate.py
"""

import contextlib
import os
import shutil
import signal
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ENVIRONMENT, PATIENCE, ROOT
from launches import end, free_port, start
from peft import LoraConfig, get_peft_model
from test_evaluate import HOLDING
from transformers import AutoModelForCausalLM

from r1zero.evaluate import command as evaluate
from r1zero.evaluate import engines

pytestmark = pytest.mark.vllm
STOPPED = "stopped; what is done stays: the same command goes on from there"


def arguments(model, data, output_dir, backend="vllm", **flags):
    flags = {"limit": 12, "max_completion_length": 24, "backend": backend, "data": data} | flags
    flags |= {"output_dir": output_dir}
    return ["--model", str(model), *(f"--{key}={value}" for key, value in flags.items())]


def completions(folder):
    return pq.read_table(folder / "completions.parquet").to_pydict()


@pytest.fixture
def holding_data(tmp_path, tiny_data):
    """Problems, and beside them a reward that waits in the second batch of its process while there is a file, hold."""
    (tmp_path / "holding.py").write_text(HOLDING.replace("len(batches) > 2", "len(batches) > 1"))
    (tmp_path / "hold").touch()
    return shutil.copy(tiny_data / "test.parquet", tmp_path / "test.parquet")


@pytest.fixture
def launched(tmp_path):
    """Starts an evaluation in one process or in several; gives it and the file that it writes to."""
    started = []

    def launch(processes, words):
        config = yaml.safe_load((ROOT / "configs" / "accelerate" / "ddp.yaml").read_text()) | {"use_cpu": True}
        (tmp_path / "ddp.yaml").write_text(yaml.safe_dump(config))
        launcher = ["-m", "accelerate.commands.launch", "--config_file", tmp_path / "ddp.yaml"]
        launcher += ["--num_processes", processes, "--main_process_port", free_port()]
        console = tmp_path / f"console{len(started)}"
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "r1zero.evaluate", *words]
        started.append(start(command, console, ENVIRONMENT))
        return started[-1], console

    yield launch
    for process in started:
        end(process)


def await_(condition, process, console):
    """Waits until something is as it should be, while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, console.read_text()[-4000:]
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.05)


def interrupt(process, console):
    """Ctrl-C as a terminal has it; returns what was printed, once all that the process has started is gone."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 1
    _, alive = psutil.wait_procs(descendants, timeout=PATIENCE)
    assert not alive
    return console.read_text()


def test_adapter_gives_the_texts_of_transformers(tiny_model, tiny_data, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    for backend in ("vllm", "transformers"):
        evaluate.main(arguments(tmp_path / "adapter", tiny_data / "test.parquet", tmp_path / backend, backend))
    found, expected = (completions(tmp_path / backend / "adapter") for backend in ("vllm", "transformers"))
    assert found["completion"] == expected["completion"] and len(set(found["completion"])) > 1


def test_card_of_a_process_is_counted_among_the_visible_ones(tiny_model, monkeypatch):
    """vLLM's own count, with the variable that a CPU has in the place of CUDA_VISIBLE_DEVICES."""
    monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", "4,6")
    with engines.engine_environment():
        from vllm import EngineArgs

        config = EngineArgs(str(tiny_model), device_ids=[1], dtype="float32").create_engine_config()
    assert config.parallel_config.assigned_physical_gpu_ids == [6]


def test_processes_stop_without_their_engines_and_go_on_where_one_has_nothing_to_do(
    launched, holding_data, tiny_model, tiny_data, tmp_path
):
    """Three batches: the first process waits in its second one, while the other has done its only one."""
    own = {"batch_size": 4, "reward_funcs": "holding:holding_reward"}
    words = arguments(tiny_model, holding_data, tmp_path / "out", **own)
    process, console = launched(2, words)
    parts = tmp_path / "out" / "model" / "parts"
    await_(lambda: len(list(parts.glob("*.parquet"))) == 2, process, console)
    output = interrupt(process, console)
    assert output.count(STOPPED) == 1 and "vllm in float32 on 2 x cpu" in output

    (tmp_path / "hold").unlink()
    process, console = launched(2, words)
    assert process.wait(timeout=PATIENCE) == 0, console.read_text()[-4000:]
    evaluate.main(arguments(tiny_model, holding_data, tmp_path / "expected", "transformers", **own))
    assert completions(tmp_path / "out" / "model") == completions(tmp_path / "expected" / "model")


def test_ctrl_c_while_the_engine_starts_ends_all_at_once(launched, tiny_model, tiny_data, tmp_path):
    """vLLM swallows a KeyboardInterrupt then, and would wait ten minutes for an engine that is gone."""
    process, console = launched(1, arguments(tiny_model, tiny_data / "test.parquet", tmp_path / "out"))

    def engine_starts():
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended since
                if "VLLM::EngineCore" in " ".join(child.cmdline()):
                    return True
        return False

    await_(engine_starts, process, console)
    output = interrupt(process, console)
    assert output.count(STOPPED) == 1 and "Traceback" not in output
