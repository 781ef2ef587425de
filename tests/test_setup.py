"""setup.sh on machines that a script plays, which installs nothing, and the lock files.

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
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "sed")

# Answers as the machine that the variables describe. Every installation is written down; it fails where $FAILS, a
# regular expression, fits it. An environment is made up to where $VENV says that it was interrupted.
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


class TestWhatIsInstalled:
    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            pytest.param({}, ["torch-cpu", "base", "."], id="Linux without a GPU"),
            pytest.param({"SYSTEM": "Darwin"}, ["torch", "base", "."], id="a Mac"),
            pytest.param({"CARDS": "1"}, ["torch", "base+gpu", "."], id="a GPU"),
            pytest.param({"CARDS": "1", "CUDA_VISIBLE_DEVICES": ""}, ["torch-cpu", "base", "."], id="a hidden GPU"),
            pytest.param({"TORCH": "there"}, ["base", "."], id="a PyTorch of one's own"),
        ],
    )
    def test_locks_follow_the_machine(self, machine, variables, expected):
        status, commands, errors = machine.set_up(**variables)
        assert (status, errors) == (0, [])
        assert installed(commands) == expected and {command.split()[0] for command in commands} == {"python"}

    def test_second_call_installs_nothing_until_a_lock_changes(self, machine):
        assert len(machine.set_up()[1]) == 3
        assert machine.set_up() == (0, [], [])
        with open(machine.folder / "configs" / "locks" / "base.txt", "a") as lock:
            lock.write("another==1\n")
        assert len(machine.set_up()[1]) == 3

    def test_gpu_that_comes_later_adds_vllm(self, machine):
        machine.set_up()
        assert "base+gpu" in installed(machine.set_up(CARDS="1")[1])

    def test_uv_installs_where_it_is_there_and_takes_pytorch_for_the_cpu(self, machine):
        machine.add("uv")
        commands = machine.set_up()[1]
        assert installed(commands) == ["torch-cpu", "base", "."]
        assert {command.split()[0] for command in commands} == {"uv"}
        assert "--torch-backend=cpu" in commands[0] and "--torch-backend" not in commands[1] + commands[2]
        assert f"--python {machine.bin / 'python'} " in commands[0]

    def test_uv_leaves_pytorch_for_cuda_to_the_lock(self, machine):
        machine.add("uv")
        assert not any("--torch-backend" in command for command in machine.set_up(CARDS="1")[1])

    def test_pip_follows_where_uv_fails(self, machine):
        machine.add("uv")
        status, commands, _ = machine.set_up(FAILS="^uv ")
        assert status == 0
        assert installed(commands) == ["torch-cpu", "torch-cpu", "base", "base", ".", "."]
        assert [command.split()[0] for command in commands] == ["uv", "python"] * 3

    def test_several_gb_are_announced_with_a_way_to_have_less(self, machine):
        status, commands, errors = machine.set_up(FAILS="torch-cpu")
        assert status == 0 and installed(commands) == ["torch-cpu", "torch", "base", "."]
        (line,) = errors
        assert "several GB" in line and "Ctrl-C" in line and "-m pip install WHEEL" in line
        assert "https://download.pytorch.org/whl/cpu/torch" in line


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

    def test_environment_is_made_once(self, machine):
        status, commands, _ = machine.set_up(active=False)
        assert status == 0 and commands[0] == "python3 -m venv" and len(commands) == 4
        assert machine.set_up(active=False) == (0, [], [])

    def test_environment_that_was_interrupted_is_made_anew(self, machine):
        status, commands, _ = machine.set_up(active=False, VENV="interrupted")
        assert status != 0 and commands == ["python3 -m venv"], "nothing is installed into the system's Python"
        status, commands, _ = machine.set_up(active=False)
        assert status == 0 and commands[0] == "python3 -m venv" and len(commands) == 4

    def test_environment_whose_python_is_gone_is_made_anew(self, machine):
        machine.set_up(active=False)
        (machine.folder / ".venv" / "bin" / "python").unlink()
        assert machine.set_up(active=False)[1][0] == "python3 -m venv"


class TestPython:
    def test_newer_name_is_found_where_python3_is_too_old(self, machine):
        assert machine.set_up(active=False, FITTING="python python3.14")[1][0] == "python3.14 -m venv"

    def test_none_that_fits_is_told_in_one_line(self, machine):
        status, commands, errors = machine.set_up(active=False, FITTING="")
        wanted = "setup.sh: found Python 3.10.13, wanted Python 3.11 to 3.14: install one of them"
        assert (status, commands, errors) == (1, [], [wanted])

    def test_active_environment_of_another_python_is_told_in_one_line(self, machine):
        status, commands, (line,) = machine.set_up(FITTING="python3")
        assert (status, commands) == (1, [])
        assert "found Python 3.10.13 in the active environment, wanted Python 3.11 to 3.14: type deactivate" in line

    def test_versions_are_those_of_the_project(self):
        script = (ROOT / "setup.sh").read_text()
        oldest, newest = re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", script).groups()
        assert PROJECT["requires-python"] == f">=3.{oldest},<3.{int(newest) + 1}"


class TestOldGpu:
    """What CUDA 13 does not run on is told before anything is installed."""

    OLD = {"CARDS": "1", "DRIVER": "550.54.15", "RUNS": "12.4"}
    V100 = {"CARDS": "1", "CAPABILITY": "7.0"}

    def test_driver_that_is_too_old_installs_nothing(self, machine):
        status, commands, (line,) = machine.set_up(**self.OLD)
        assert (status, commands) == (1, [])
        assert "found driver 550.54.15, wanted 580 or newer: type apt-get install nvidia-driver-580" in line
        assert "CUDA_VISIBLE_DEVICES= bash train.sh --config configs/tiny_cpu.yaml" in line

    def test_card_that_is_too_old_installs_nothing(self, machine):
        status, commands, (line,) = machine.set_up(**self.V100)
        assert (status, commands) == (1, [])
        assert "found compute capability 7.0, wanted 7.5 or more: type" in line
        (torch,) = [pin for pin in PROJECT["dependencies"] if pin.startswith("torch==")]
        assert f"-m pip install {torch} --index-url https://download.pytorch.org/whl/cu126;" in line

    @pytest.mark.parametrize("old", [OLD, V100], ids=["driver", "card"])
    def test_torch_that_sees_it_all_the_same_is_used_without_vllm(self, machine, old):
        status, commands, _ = machine.set_up(**old, SEES="1", TORCH="there")
        assert status == 0 and installed(commands) == ["base", "."]

    def test_old_driver_with_cuda_compat_is_none(self, machine):
        assert "base+gpu" in installed(machine.set_up(**self.OLD | {"RUNS": "13.0"})[1])

    def test_gpu_that_is_hidden_on_purpose_is_left_alone(self, machine):
        status, commands, _ = machine.set_up(**self.OLD, CUDA_VISIBLE_DEVICES="")
        assert status == 0 and installed(commands) == ["torch-cpu", "base", "."]

    def test_very_old_driver_without_a_compute_capability_is_told_too(self, machine):
        """nvidia-smi has known that field since driver 510."""
        old = {"DRIVER": "470.182.03", "RUNS": "11.4", "CAPABILITY": 'Field "compute_cap" is not a valid field.'}
        status, _, (line,) = machine.set_up(**self.OLD | old)
        assert status == 1 and "found driver 470.182.03, wanted 580" in line


def locked(*names):
    """The versions and the hashes that lock files name, as two dicts by package."""
    versions, hashes = {}, {}
    for name in names:
        for line in (LOCKS / f"{name}.txt").read_text().splitlines():
            if pin := re.match(r"([\w.-]+)==([^\s;]+)", line):
                package = canonicalize_name(pin[1])
                versions.setdefault(package, set()).add(pin[2])
            elif digest := re.match(r"    --hash=sha256:([0-9a-f]{64})", line):
                hashes.setdefault(package, []).append(digest[1])
            else:
                assert line.startswith("#"), f"{name}: {line}"
    return versions, hashes


class TestLocks:
    GPU = ("torch", "base", "gpu")

    @pytest.mark.parametrize("name", [*GPU, "torch-cpu"])
    def test_each_package_has_hashes_and_no_index_is_named(self, name):
        versions, hashes = locked(name)
        assert versions and versions.keys() == hashes.keys()

    def test_pins_of_the_project_are_locked(self):
        versions, _ = locked(*self.GPU)
        extras = PROJECT["optional-dependencies"]
        pins = PYPROJECT["build-system"]["requires"] + PROJECT["dependencies"] + extras["gpu"] + extras["dev"]
        for pin in pins:
            name, _, wanted = pin.partition("==")
            assert versions[canonicalize_name(name)] == {wanted}, "type python configs/locks/make.py"
            if name == "torch":
                assert locked("torch-cpu")[0]["torch"] == {f"{wanted}+cpu"}

    def test_package_in_two_of_them_has_the_same_versions_there(self):
        """vLLM needs some of the others' packages on more systems, such as cffi, so that gpu.txt has them again."""
        versions = [locked(name)[0] for name in self.GPU]
        again = versions[2].keys() & (versions[0].keys() | versions[1].keys())
        assert "cffi" in again and not versions[0].keys() & versions[1].keys()
        for package in again:
            assert versions[2][package] == (versions[0] | versions[1])[package]

    def test_what_is_needed_in_turn_is_locked_for_the_cpu(self):
        """Asks the packages that are installed here, since pip is told to add nothing by itself."""
        versions, _ = locked("torch-cpu", "base")
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
