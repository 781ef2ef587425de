"""setup.sh on machines that a script plays, and the lock files. Nothing is installed.

bash tests/run.sh tests/test_setup.py
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution

import pytest
from conftest import PATIENCE, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ROOT / "configs" / "locks"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = PYPROJECT["build-system"]["requires"] + PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["dev"]
PINS = dict(pin.split("==") for pin in PINS)
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "sed")

# Answers as the machine that the variables describe. Every installation is written down; it fails if $FAILS, a
# regular expression, fits it. $VENV says whether the making of an environment is interrupted.
MACHINE = """#!/usr/bin/env bash
name=${0##*/}
case "$name $*" in
*sys.version_info*) [[ " $FITTING " == *" $name "* ]] ;;
*--version) echo "Python 3.10.13" ;;
*sys.prefix*) echo "$FOLDER" ;;
"python -c import torch"*) [ -n "$TORCH" ] ;;
*is_available*) exit $((SEES == 0)) ;;
*"-m venv"*)
    echo "$name -m venv" >>"$FOLDER/log"
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    [ "$VENV" = whole ] && echo 'export VIRTUAL_ENV=$PWD/.venv' >.venv/bin/activate
    ;;
"nvidia-smi -L") exit $((CARDS == 0)) ;;
nvidia-smi*driver_version*) echo "$DRIVER" ;;
nvidia-smi*compute_cap*) echo "$CAPABILITY" ;;
nvidia-smi*) echo "| NVIDIA-SMI $DRIVER     Driver Version: $DRIVER     CUDA Version: $RUNS     |" ;;
uname*) echo "$SYSTEM" ;;
*"pip install"*)
    echo "$name $*" >>"$FOLDER/log"
    ! [[ "$name $*" =~ $FAILS ]]
    ;;
*) echo "nobody expected: $name $*" >>"$FOLDER/log" ;;
esac
"""
USUAL = {"FITTING": "python python3", "TORCH": "", "VENV": "whole", "SYSTEM": "Linux", "FAILS": "^$"}
CARD = {"CARDS": "0", "SEES": "0", "DRIVER": "580.82.07", "RUNS": "13.0", "CAPABILITY": "9.0"}


class Machine:
    """A folder with the project's set-up, and commands that play a machine."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("python", "python3", "python3.14", "nvidia-smi", "uname"):
            self.add(name)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ("setup.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(LOCKS, folder / "configs" / "locks")

    def add(self, name):
        (self.bin / name).write_text(MACHINE)
        (self.bin / name).chmod(0o755)

    def set_up(self, active=True, **variables):
        """Sources setup.sh. Returns its status, the commands that made or filled an environment, and its errors."""
        environment = {"PATH": str(self.bin), "FOLDER": str(self.folder), **USUAL, **CARD, **variables}
        if active:
            environment["VIRTUAL_ENV"] = str(self.folder)
        (self.folder / "log").write_text("")
        command = [shutil.which("bash"), "-c", "source setup.sh"]
        options = {"cwd": self.folder, "env": environment, "timeout": PATIENCE}
        ended = subprocess.run(command, **options, capture_output=True, text=True)
        return ended.returncode, (self.folder / "log").read_text().splitlines(), ended.stderr.splitlines()


def installed(commands):
    """What commands install: each one's lock files, or the folder that it installs, as a word."""
    found = []
    for command in commands:
        words = shlex.split(command)
        locks = [re.fullmatch(r"configs/locks/(.*)\.txt", word) for word in words]
        names = [match[1] for match in locks if match]
        found.append("+".join(names) if names else words[words.index("-e") + 1])
        assert bool(names) == ("--require-hashes" in words), "all but the project is checked by hash"
        assert {"--no-deps", "--no-build-isolation"} <= set(words), "nothing comes along that no lock names"
    return found


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


OLD_DRIVER = {"CARDS": "1", "DRIVER": "550.54.15", "RUNS": "12.4"}
OLD_CARD = {"CARDS": "1", "CAPABILITY": "7.0"}
MACHINES = {  # what is installed on them, by python
    "Linux without a GPU": ({}, ["torch-cpu", "base", "."]),
    "a Mac": ({"SYSTEM": "Darwin"}, ["torch", "base", "."]),
    "a GPU": ({"CARDS": "1"}, ["torch", "base+gpu", "."]),
    "a hidden GPU": ({"CARDS": "1", "CUDA_VISIBLE_DEVICES": ""}, ["torch-cpu", "base", "."]),
    "a PyTorch of one's own": ({"TORCH": "there"}, ["base", "."]),
    "an old driver with cuda-compat": (OLD_DRIVER | {"RUNS": "13.0"}, ["torch", "base+gpu", "."]),
    "a hidden old GPU": (OLD_DRIVER | {"CUDA_VISIBLE_DEVICES": ""}, ["torch-cpu", "base", "."]),
    "an old driver that torch does with": (OLD_DRIVER | {"SEES": "1", "TORCH": "there"}, ["base", "."]),
    "an old card that torch does with": (OLD_CARD | {"SEES": "1", "TORCH": "there"}, ["base", "."]),
}


@pytest.mark.parametrize(("variables", "expected"), MACHINES.values(), ids=MACHINES)
def test_locks_follow_the_machine(machine, variables, expected):
    status, commands, errors = machine.set_up(**variables)
    assert (status, errors) == (0, [])
    assert installed(commands) == expected and {command.split()[0] for command in commands} == {"python"}


def test_second_call_installs_nothing_until_a_lock_changes_or_a_gpu_comes(machine):
    assert len(machine.set_up()[1]) == 3
    assert machine.set_up() == (0, [], [])
    with open(machine.folder / "configs" / "locks" / "base.txt", "a") as lock:
        lock.write("another==1\n")
    assert len(machine.set_up()[1]) == 3
    assert "base+gpu" in installed(machine.set_up(CARDS="1")[1])


def test_uv_installs_if_it_is_there_and_pip_if_it_fails(machine):
    machine.add("uv")
    assert not any("--torch-backend" in command for command in machine.set_up(CARDS="1")[1])
    commands = machine.set_up()[1]
    assert installed(commands) == ["torch-cpu", "base", "."]
    assert {command.split()[0] for command in commands} == {"uv"}
    assert "--torch-backend=cpu" in commands[0] and "--torch-backend" not in commands[1] + commands[2]
    assert f"--python {machine.bin / 'python'} " in commands[0]
    for stamp in machine.folder.glob("countdown-installed-*"):
        stamp.unlink()
    status, commands, _ = machine.set_up(FAILS="^uv ")
    assert status == 0 and installed(commands) == ["torch-cpu", "torch-cpu", "base", "base", ".", "."]
    assert [command.split()[0] for command in commands] == ["uv", "python"] * 3


def test_several_gb_are_announced_with_a_way_to_have_less(machine):
    status, commands, errors = machine.set_up(FAILS="torch-cpu")
    assert status == 0 and installed(commands) == ["torch-cpu", "torch", "base", "."]
    (line,) = errors
    assert "several GB" in line and "Ctrl-C" in line and "-m pip install WHEEL" in line
    assert "https://download.pytorch.org/whl/cpu/torch" in line


UNKNOWN = {"DRIVER": "470.182.03", "RUNS": "11.4", "CAPABILITY": 'Field "compute_cap" is not a valid field.'}
WHEEL = rf"torch=={PINS['torch']} --index-url https://download.pytorch.org/whl/cu126;"
REFUSED = {  # the machines, whether an environment is active, and the one line that ends setup.sh
    "no Python": ({"FITTING": ""}, False, "found Python 3.10.13, wanted Python 3.11 to 3.14: install one of them$"),
    "another Python": ({"FITTING": "python3"}, True, "in the active environment, wanted .* 3.14: type deactivate"),
    "an old driver": (
        OLD_DRIVER,
        True,
        "found driver 550.54.15, wanted 580 or newer: type apt-get install nvidia-driver-580"
        ".*CUDA_VISIBLE_DEVICES= bash train.sh --config configs/tiny_cpu.yaml",
    ),
    "a very old driver": (OLD_DRIVER | UNKNOWN, True, "found driver 470.182.03, wanted 580"),
    "an old card": (OLD_CARD, True, f"found compute capability 7.0, wanted 7.5 or more: type .* pip install {WHEEL}"),
}


@pytest.mark.parametrize(("variables", "active", "said"), REFUSED.values(), ids=REFUSED)
def test_machine_that_does_not_do_is_told_in_one_line_before_anything_is_installed(machine, variables, active, said):
    status, commands, (line,) = machine.set_up(active, **variables)
    assert (status, commands) == (1, []) and re.search(said, line), line


class TestInterrupted:
    """Every call goes on from what the one before has left."""

    STEPS = [("torch", "torch=="), ("base.txt", "configs/locks"), ("-e .$", "the project itself")]

    @pytest.mark.parametrize(("fails", "missing"), STEPS)
    def test_what_is_missing_without_a_network_is_said_and_installed_by_the_next_call(self, machine, fails, missing):
        status, commands, errors = machine.set_up(FAILS=fails)
        assert status == 1 and re.search(fails, commands[-1]), "nothing is tried after what failed"
        assert missing in errors[-1] and "connect first, then start the same command again" in errors[-1]
        status, commands, errors = machine.set_up()
        assert (status, installed(commands), errors) == (0, ["torch-cpu", "base", "."], [])

    def test_killed_while_it_installs_begins_again(self, machine):
        killed = machine.folder / "bin" / "python"
        killed.write_text(MACHINE.replace('! [[ "$name $*" =~ $FAILS ]]', 'kill -KILL "$PPID"'))
        assert machine.set_up()[0] == -9
        machine.add("python")
        assert installed(machine.set_up()[1]) == ["torch-cpu", "base", "."]

    def test_environment_is_made_once_by_the_newest_python_and_anew_if_it_is_broken(self, machine):
        status, commands, _ = machine.set_up(active=False, VENV="interrupted")
        assert status != 0 and commands == ["python3 -m venv"], "nothing is installed into the system's Python"
        status, commands, _ = machine.set_up(active=False)
        assert status == 0 and commands[0] == "python3 -m venv" and len(commands) == 4
        assert machine.set_up(active=False) == (0, [], [])
        (machine.folder / ".venv" / "bin" / "python").unlink()
        commands = machine.set_up(active=False, FITTING="python python3.14")[1]
        assert commands[0] == "python3.14 -m venv", "python3 is too old"


def locked(*names):
    """{package: the versions that lock files name}."""
    versions = {}
    for name in names:
        pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (LOCKS / f"{name}.txt").read_text(), flags=re.MULTILINE)
        for package, version in pins:
            versions.setdefault(canonicalize_name(package), set()).add(version)
    return versions


def test_python_versions_of_the_script_are_those_of_the_project():
    oldest, newest = re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", (ROOT / "setup.sh").read_text()).groups()
    assert PROJECT["requires-python"] == f">=3.{oldest},<3.{int(newest) + 1}"


def test_pins_of_the_project_are_locked():
    versions = locked("torch", "base", "gpu")
    found = {name: versions[canonicalize_name(name)] for name in PINS}
    assert found == {name: {version} for name, version in PINS.items()}, "type python configs/locks/make.py"
    assert locked("torch-cpu")["torch"] == {f"{PINS['torch']}+cpu"}


def test_what_is_needed_in_turn_is_locked_for_the_cpu():
    """Asks the packages that are installed here, since pip is told to add nothing by itself."""
    versions = locked("torch-cpu", "base")
    waiting, seen = [("countdown-r1-zero", frozenset({"dev"}))], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in distribution(name).requires or []:
            need = Requirement(line)
            if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                continue
            package = canonicalize_name(need.name)
            if package.startswith(("nvidia-", "cuda-")) or package == "triton":
                continue  # of a PyTorch for CUDA, which torch.txt has
            assert package in versions, f"{name} needs {line}"
            assert any(need.specifier.contains(each, prereleases=True) for each in versions[package]), line
            waiting.append((package, frozenset(need.extras)))
    assert len(seen) > 50
