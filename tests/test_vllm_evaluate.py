"""Evaluations with a real vLLM, which computes on the CPU: adapters, idle processes, signals, and resuming."""

import contextlib
import os
import shutil
import signal

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PATIENCE
from launches import await_
from peft import LoraConfig, get_peft_model
from test_evaluate import HOLDING, launched, words  # noqa: F401
from transformers import AutoModelForCausalLM

from r1zero.evaluate import command

pytestmark = pytest.mark.vllm
VLLM = {"limit": 12, "max_completion_length": 24, "backend": "vllm"}
TRANSFORMERS = VLLM | {"backend": "transformers"}


def completions(folder):
    return pq.read_table(folder / "completions.parquet").to_pydict()


def test_adapter_gives_the_texts_of_transformers(tiny_model, tiny_data, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    for flags in (VLLM, TRANSFORMERS):
        output_dir = tmp_path / flags["backend"]
        command.main(words([tmp_path / "adapter"], tiny_data / "test.parquet", output_dir, **flags))
    found, expected = (completions(tmp_path / backend / "adapter") for backend in ("vllm", "transformers"))
    assert found["completion"] == expected["completion"] and len(set(found["completion"])) > 1


def test_card_of_a_process_is_counted_among_the_visible_ones(tiny_model, monkeypatch):
    """vLLM's own count, with the variable that a CPU has in the place of CUDA_VISIBLE_DEVICES."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # vLLM sets much there
    os.environ["CPU_VISIBLE_MEMORY_NODES"] = "4,6"
    from vllm import EngineArgs

    config = EngineArgs(str(tiny_model), device_ids=[1], dtype="float32").create_engine_config()
    assert config.parallel_config.assigned_physical_gpu_ids == [6]


def test_processes_stop_with_their_engines_and_resume(launched, tiny_model, tiny_data, tmp_path):  # noqa: F811
    """Three batches: the first process waits in its second one, while the other has done its only one."""
    (tmp_path / "holding.py").write_text(HOLDING.replace("len(batches) > 2", "len(batches) > 1"))
    (tmp_path / "hold").touch()
    data = shutil.copy(tiny_data / "test.parquet", tmp_path / "test.parquet")
    own = {"batch_size": 4, "reward_funcs": "holding:holding_reward"}
    flags = words([tiny_model], data, tmp_path / "out", **VLLM, **own)
    process, console = launched(2, flags)
    parts = tmp_path / "out" / "model" / "parts"
    await_(lambda: len(list(parts.glob("*.parquet"))) == 2, process, console)
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 1
    assert psutil.wait_procs(descendants, timeout=PATIENCE)[1] == []
    output = console.read_text()
    assert output.count("stopped; what is done stays") == 1 and "vllm in float32 on 2 x cpu" in output

    (tmp_path / "hold").unlink()
    process, console = launched(2, flags)
    assert process.wait(timeout=PATIENCE) == 0, console.read_text()[-4000:]
    command.main(words([tiny_model], data, tmp_path / "expected", **TRANSFORMERS, **own))
    assert completions(tmp_path / "out" / "model") == completions(tmp_path / "expected" / "model")


STOPPED = "r1zero.evaluate: stopped; what is done stays"
SIGNALS = {  # {what: (whether vLLM gets it and not the evaluation, the signal, what is said)}
    "Ctrl-C": (False, signal.SIGINT, STOPPED),
    "SIGTERM": (False, signal.SIGTERM, STOPPED),
    "the evaluation is killed": (False, signal.SIGKILL, ""),
    "vLLM is killed": (True, signal.SIGKILL, "vLLM's process ended with status -9: its error"),
}


@pytest.mark.parametrize("case", SIGNALS.values(), ids=SIGNALS)
def test_signal_while_the_engine_starts_ends_all(launched, tiny_model, tiny_data, tmp_path, case):  # noqa: F811
    """All processes, with one line, or none if the evaluation itself is killed."""
    to_vllm, number, said = case
    process, console = launched(1, words([tiny_model], tiny_data / "test.parquet", tmp_path / "out", **VLLM))
    starting = []

    def engine_starts():
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):  # it has ended since
                if any("libtorch" in mapped.path for mapped in child.memory_maps()):
                    starting.append(child)
        return starting

    await_(engine_starts, process, console)
    descendants = psutil.Process(process.pid).children(recursive=True)
    if to_vllm:
        starting[0].send_signal(number)
    elif number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == (1 if said else -number)
    assert psutil.wait_procs(descendants, timeout=PATIENCE)[1] == []
    lines = console.read_text().splitlines()
    after = lines[lines.index("vllm in float32 on 1 x cpu") + 1 :]
    assert len(after) == bool(said) and all(said in line for line in after), after
