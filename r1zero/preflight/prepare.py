"""What a recipe's `prepare` makes: its data and its model, if they are not there yet."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from r1zero import ROOT, processes


def missing(values, given):
    """Return the last files written of the recipe's own model and data that are not there (list[Path]).

    values: every setting; given: the settings of flags (dict). What a flag points elsewhere is the user's own.
    """
    files = []
    name = values.model_name_or_path or ""
    if name.startswith("models/") and "model_name_or_path" not in given:
        files.append(Path(name, "config.json"))
    if "data_dir" not in given:
        files.append(Path(values.data_dir, "test.parquet"))
    return [file for file in files if values.prepare and not file.exists()]


def make(values, given):
    """Run the recipe's `prepare` if something is missing. Exit if that fails.

    The first process of all machines does, and the others wait for its files: on a shared file system no lock has to
    hold between machines. The lock keeps out another run in the same folder.
    """
    files = missing(values, given)
    seconds = 0
    while files and not processes.is_main_process():  # the launcher ends this process if the first one fails
        time.sleep(1)
        seconds += 1
        files = missing(values, given)  # over NFS a file is seen up to a minute later
        if files and processes.is_first_here() and seconds % 60 == 0:
            print(
                f"waiting for {' and '.join(map(str, files))}, which the first machine makes; on one that does not "
                f"share its folder, type python {values.prepare}",
                flush=True,
            )
    if not files:
        return
    with FileLock(".prepare.lock", fallback_to_soft=False):
        files = missing(values, given)
        if files:  # another run may have made them
            print(f"{' and '.join(map(str, files))} not there yet: running python {values.prepare}", flush=True)
            run(values.prepare)


def run(prepare):
    """Run the words (str) after `python` with this Python, from any folder. Exit if that fails."""
    script, *arguments = shlex.split(prepare)
    if script.endswith(".py"):
        script = str(ROOT / script)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}  # -m finds r1zero from any folder
    for name in os.environ:  # what is run is one process, and no rank of this run
        if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or name.startswith("ACCELERATE_"):
            del environment[name]
    status = subprocess.run([sys.executable, script, *arguments], env=environment).returncode
    if status:
        processes.stop(f"python {prepare} failed ({status})", ["its own message is above"])
