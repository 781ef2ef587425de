"""The benchmark of a training step works, on a shape small enough for here.

bash tests/run.sh tests/test_benchmarks.py
"""

import json
import sys

from test_training import run_to_end


def test_step_is_measured_part_by_part(tmp_path):
    flags = ["--shapes", "tiny", "--methods", "lora", "--steps", "2", "--completions", "8"]
    output = run_to_end(
        [sys.executable, "benchmarks/gpu.py", *flags, "--max_completion_length", "8", "--output_dir", str(tmp_path)]
    )
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert (row["shape"], row["method"], row["parameters"], row["steps"]) == ("tiny", "lora", 107_072, 1)
    parts = [row[part] for part in ("generation", "log-probabilities", "update")]
    assert all(part > 0 for part in parts) and abs(sum(parts) + row["weight sync"] - row["seconds"]) < 1e-6
    assert row["completion tokens/s"] > 0 and row["estimated GiB"] > 0
    assert "completion tokens/s" in output
