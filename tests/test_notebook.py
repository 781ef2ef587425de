"""The notebook for Colab: its cells, run without Colab.   bash tests/run.sh --all tests/test_notebook.py"""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, SMALL, words, write_commands

NOTEBOOK = json.loads((ROOT / "docs" / "colab_t4.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def as_python(cell):
    """A cell with its lines for a shell, and its changes of folder, as calls of `shell` and `cd`."""
    cell = re.sub(r"^( *)!(.*)$", r"\1shell(f'''\2''')", cell, flags=re.MULTILINE)
    return re.sub(r"^%cd (.*)$", r"cd('\1')", cell, flags=re.MULTILINE)


@pytest.mark.slow
def test_all_cells_train_the_embedded_default_beside_an_old_driver(tmp_path, monkeypatch, tiny_model, tiny_data):
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    python = f'case "$*" in *sys.prefix*) echo "{stand_ins}" ;; "-m pip "*) ;; *) exec "{sys.executable}" "$@" ;; esac'
    apt_get, smi = f'echo "$*" >>"{tmp_path}/installed"', '[[ "$*" != *name* ]] && echo "550.54.15"'
    write_commands(stand_ins, python=python, python3="exit 1", apt_get=apt_get, nvidia_smi=smi)
    variables = {"PATH": f"{stand_ins}:{os.environ['PATH']}", "VIRTUAL_ENV": str(stand_ins), "OMP_NUM_THREADS": "1"}
    for name, value in (variables | {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": "/lib"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    printed, shown = [], []

    def shell(command):
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
        printed.append(ended.stdout)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}"

    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    flags = SMALL | {"model_name_or_path": tiny_model, "data_dir": tiny_data, "max_steps": 2}
    settings, *cells = CODE
    names = {}
    exec(settings, names)
    assert names.keys() >= {"REPO", "FLAGS"}
    names |= {"REPO": ROOT, "shell": shell, "cd": os.chdir}  # the last commit is cloned
    names["FLAGS"] = " ".join(["--config", "configs/tiny_cpu.yaml", *words(flags)])
    for cell in cells:
        exec(as_python(cell), names)

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = (tmp_path / "installed").read_text()
    assert "cuda-compat" in installed and f"{version}-venv {version}-dev" in installed
    assert os.environ["LD_LIBRARY_PATH"] == "/usr/local/cuda-13.0/compat:/lib"
    assert "".join(printed).count("2 steps and 16 completions in this run") == 2, "planned, and then trained"
    (page,) = shown
    assert page == Path("outputs/tiny_cpu/report.html").read_text() and page.lstrip().lower().startswith("<!doctype")
