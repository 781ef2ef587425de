"""The notebook for Colab: its form, and its cells, run without Colab.   bash tests/run.sh tests/test_notebook.py"""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, SMALL, words

NOTEBOOK = json.loads((ROOT / "docs" / "colab_t4.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# The commands that would install: pip does nothing, and apt-get writes down that it was called
PYTHON = """#!/bin/sh
case "$*" in
*sys.prefix*) echo "{folder}" ;;
"-m pip "*) ;;
*) exec "{python}" "$@" ;;
esac
"""
APT_GET = 'echo "$*" >>"{folder}/installed"'


def as_python(cell):
    """A cell with its lines for a shell, and its changes of folder, as calls of `shell` and `cd`."""
    cell = re.sub(r"^( *)!(.*)$", r"\1shell(f'''\2''')", cell, flags=re.MULTILINE)
    return re.sub(r"^%cd (.*)$", r"cd('\1')", cell, flags=re.MULTILINE)


def test_its_cells_have_no_outputs_and_can_be_read():
    for cell in CODE:
        compile(as_python(cell), "cell", "exec")
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with the commands that stand in for those that install, first on the PATH, and a GPU left alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"python": PYTHON.format(folder=folder, python=sys.executable), "apt-get": APT_GET.format(folder=folder)}
    for name, text in scripts.items():
        (folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run_cells(monkeypatch):
    """Runs cells as Colab would; returns what they printed and what they showed."""
    printed, shown = [], []

    def shell(command):
        ended = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
        printed.append(ended.stdout)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}"

    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    def run(cells, **settings):
        namespace = {"shell": shell, "cd": os.chdir} | settings
        for cell in cells:
            exec(as_python(cell), namespace)  # our own notebook
        return "".join(printed), shown

    return run


@pytest.mark.parametrize(
    ("driver", "has_venv", "installs"),
    [
        (None, True, ""),
        ("550.54.15", True, "cuda-compat"),
        ("580.82.07", True, ""),
        ("No devices were found", True, ""),
        (None, False, "python{0}.{1}-venv python{0}.{1}-dev"),
    ],
)
def test_second_cell_installs_what_the_machine_lacks(machine, run_cells, monkeypatch, driver, has_venv, installs):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    monkeypatch.setattr(shutil, "which", lambda name: name if driver else None)
    for name, text in {"python3": f"exit {int(not has_venv)}", "nvidia-smi": f'echo "{driver}"'}.items():
        (machine / name).write_text(f"#!/bin/sh\n{text}\n")
        (machine / name).chmod(0o755)
    run_cells(CODE[1:2])
    installed = (machine / "installed").read_text() if (machine / "installed").exists() else ""
    assert bool(installed) == bool(installs) and installs.format(*sys.version_info) in installed
    compat = "/usr/local/cuda-13.0/compat:/lib" if installs == "cuda-compat" else "/lib"
    assert os.environ["LD_LIBRARY_PATH"] == compat


def copy_of_the_project(folder):
    """A repository with the files of this one as they are now, to be cloned."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.mark.slow
def test_all_cells_train_the_embedded_default_without_a_gpu(tmp_path, machine, run_cells, tiny_model, tiny_data):
    paths = {"model_name_or_path": tiny_model, "data_dir": tiny_data}
    flags = ["--config", "configs/tiny_cpu.yaml", *words(SMALL | paths | {"max_steps": 2})]
    settings, *cells = CODE
    assert settings.splitlines()[0].startswith("REPO = ") and settings.splitlines()[1].startswith("FLAGS = ")
    printed, shown = run_cells(cells, REPO=copy_of_the_project(tmp_path / "project"), FLAGS=" ".join(flags))
    assert Path.cwd() == tmp_path / "countdown-r1-zero"
    assert printed.count("2 steps and 16 completions in this run") == 2, "planned, and then trained"
    (page,) = shown
    assert page == Path("outputs/tiny_cpu/report.html").read_text() and page.lstrip().lower().startswith("<!doctype")
