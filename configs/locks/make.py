"""Write the lock files beside this one from pyproject.toml: every version and hash that setup.sh installs.

    pip install uv                            # into any environment: only this command needs it
    python configs/locks/make.py              # keeps what is locked and still fits the pins
    python configs/locks/make.py --upgrade    # takes the newest of what pyproject.toml does not pin

torch.txt      PyTorch as the package index has it, on Linux with CUDA's libraries, and setuptools
torch-cpu.txt  PyTorch's builds for the CPU on Linux, from PyTorch's own index
base.txt       all else that training and the tests need
gpu.txt        what vLLM and bitsandbytes add

They hold for Python 3.11 to 3.14, on Linux (x86_64, aarch64) and macOS from 14 on: markers select the lines.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
UV = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-annotate", "--no-header"]
# Nothing is compiled on the reader's machine; DeepSpeed has no wheel, and compiles nothing when it is installed
UV += ["--only-binary", ":all:", "--no-binary", "deepspeed"]
OF_TORCH = re.compile(r"torch|triton|setuptools|nvidia-.*|cuda-.*")


def compile_lock(requirements, folder, *flags):
    """Lock pip's requirements (lines of text). Return {package: its lines with hashes}."""
    source, lock = folder / "requirements.in", folder / "lock.txt"  # uv keeps the versions of a lock that is there
    source.write_text("\n".join(requirements) + "\n")
    subprocess.run([*UV, "--generate-hashes", *flags, "--output-file", lock, source], check=True, cwd=ROOT)
    packages = {}
    for entry in re.findall(r"^\S.*\n(?:[ \t].*\n)*", lock.read_text(), flags=re.MULTILINE):
        name = re.match(r"[\w.-]+", entry)[0]
        packages[name] = packages.get(name, "") + entry  # one for each marker if versions differ
    return packages


def write(name, packages, *names):
    """Write a lock file of these packages ({package: its lines}), sorted by name."""
    header = "# Written by configs/locks/make.py, not by hand\n"
    (HERE / name).write_text(header + "".join(packages[each] for each in sorted(names)))


def main():
    """Write the four lock files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit the pins")
    arguments = parser.parse_args()

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    base = pyproject["project"]["dependencies"] + pyproject["build-system"]["requires"]
    extras = pyproject["project"]["optional-dependencies"]
    (torch,) = [line for line in base if line.startswith("torch==")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        locked = [HERE / "torch.txt", HERE / "base.txt", HERE / "gpu.txt"]
        if not arguments.upgrade:
            (folder / "lock.txt").write_text("".join(path.read_text() for path in locked if path.exists()))
        everything = compile_lock(base + extras["dev"] + extras["gpu"], folder)
        # The same versions for fewer requirements, with the markers that hold for these
        constraints = (folder / "lock.txt").rename(folder / "constraints.txt")
        with_torch = compile_lock([torch, *pyproject["build-system"]["requires"]], folder, "-c", constraints)
        with_base = compile_lock(base + extras["dev"], folder, "-c", constraints)
        of_torch = {name for name in with_torch if OF_TORCH.fullmatch(name)}
        write("torch.txt", with_torch, *of_torch)
        write("base.txt", with_base, *with_base.keys() - of_torch)
        # And packages of base.txt that vLLM needs on more systems
        write("gpu.txt", everything, *(name for name in everything if everything[name] != with_base.get(name)))
        try:
            of_cpu = compile_lock([f"{torch}+cpu"], folder, "--no-deps", "--torch-backend=cpu")
        except subprocess.CalledProcessError:
            sys.exit("make.py: torch-cpu.txt stays as it is: PyTorch's index did not answer, for the reason above")
        write("torch-cpu.txt", of_cpu | everything, "torch", "setuptools")


if __name__ == "__main__":
    main()
