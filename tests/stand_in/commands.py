"""Stands in for Python: fills the folder that a command of an experiment would fill, at once.

A line of $CALLS is a call. The first run in the folder $INTERRUPTED sends its parent a Ctrl-C, and waits for its own.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

RUN = Path(__file__).resolve().parent.parent / "fixtures" / "older_run" / "run"
words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    print(*words, file=calls)
flags = {words[place - 1][2:]: word for place, word in enumerate(words) if words[place - 1].startswith("--")}
folder = Path(flags.get("output_dir") or flags["local_dir"])
folder.mkdir(parents=True, exist_ok=True)

if folder.name == os.environ.get("INTERRUPTED") and "resume_from_checkpoint" not in flags:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)
if words[0] == "train_countdown.py":
    shutil.copy(RUN / "trainer_state.json", folder)
    flags.pop("resume_from_checkpoint", None)  # as in the config.yaml of a run
    settings = "".join(f"{name}: {value}\n" for name, value in flags.items() if name != "config")
    (folder / "config.yaml").write_text((RUN / "config.yaml").read_text() + settings)
    metrics = json.loads((RUN / "metrics.json").read_text())
    metrics["after"]["accuracy"] = float(flags["beta"]) + int(flags["seed"]) / 10
    (folder / "metrics.json").write_text(json.dumps(metrics))
elif words[1] == "r1zero.evaluate":
    into = folder / Path(flags["model"]).name
    into.mkdir()
    (into / "metrics.json").write_text(json.dumps({"pass@k": {"1": 0.25, "2": 0.5}}))
