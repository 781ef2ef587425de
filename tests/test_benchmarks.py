"""The benchmarks run.   bash tests/run.sh --all tests/test_benchmarks.py"""

import json
import shutil
import sys

import pytest
from conftest import SMALL, run_to_end, words
from test_gpu import measure


@pytest.mark.slow
def test_step_is_measured_part_by_part(tmp_path, tiny_model, tiny_data):
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0, "use_cpu": True, "bf16": False}
    data = tiny_data / "test.parquet"  # one file for training and evaluation
    flags = {"config": "configs/tiny_cpu.yaml", "model": tiny_model, "data": data} | SMALL | lora
    result, output = measure(tmp_path, *words(flags))
    assert result["completions"] == 8 and all(rate > 0 for rate in result["machine"].values())
    assert result["versions"].keys() == {"ours", "TRL's defaults"}
    for found in result["versions"].values():
        seconds, floors = found["seconds"], found["floors"]
        assert [part for part, taken in seconds.items() if taken <= 0] == ["weight sync"]  # only vLLM has one
        assert sum(seconds.values()) == pytest.approx(found["total"])
        assert floors.keys() == {"generation", "scoring", "forward", "backward", "optimizer"}
        # The reference scores once, and with LoRA frozen weights have no gradient
        assert floors["scoring"] == floors["forward"] == floors["backward"]
        assert found["generations"] == 1 and 1 <= found["mean length"] <= found["longest"] <= 16
        assert 0 < found["MFU"] < 1
    assert "times the floor" in output and "one generation of 8 completions" in output


@pytest.mark.slow
def test_time_to_target_is_measured_up_to_the_mark_or_the_end_of_the_time_once(tmp_path, tiny_model, tiny_data):
    shutil.copytree(tiny_model, tmp_path / "seed3" / "model")
    shutil.copytree(tiny_data, tmp_path / "seed3" / "data")
    command = [sys.executable, "benchmarks/time_to_target.py", "--output_dir", tmp_path, "--minutes", "0.001"]
    command += ["--settings", "a", "c", "--seeds", "3", "--output", tmp_path / "picture.png"]
    output = run_to_end([*command, "--set", "max_completion_length=8"])
    found = json.loads((tmp_path / "time_to_target.json").read_text())["runs"]
    assert [(run["setting"], run["seed"], run["stopped"]) for run in found] == [("a", 3, "time"), ("c", 3, "time")]
    assert [each["completions"] for each in found[0]["evaluations"]] == [0, 256]
    state = json.loads((tmp_path / "seed3" / "a" / "trainer_state.json").read_text())
    recorded = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert [each["accuracy"] for each in found[0]["evaluations"]] == pytest.approx(recorded[:2], abs=5e-4)
    assert "never in" in output and (tmp_path / "picture.png").is_file()
    consoles = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed3/*.txt")}
    run_to_end([*command, "--set", "max_completion_length=8"])
    assert {path: path.stat().st_mtime_ns for path in consoles} == consoles, "nothing is repeated"
