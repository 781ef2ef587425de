#!/usr/bin/env bash
# Runs the tests with a real vLLM on the CPU, in an environment of their own, .venv-vllm: ten minutes on two cores.
# VLLM_WHEEL names a wheel of vLLM for the CPU: the package index has those for GPUs alone. docs/recipes.md has more.
#   VLLM_WHEEL=PATH bash tests/vllm.sh [pytest flags]     # the first call also installs everything
set -euo pipefail
wheel=$(realpath "${VLLM_WHEEL:?wanted the path of a vLLM wheel for the CPU, as its releases on GitHub have for x86}")
cd "$(dirname "$0")/.."

if [ ! -x .venv-vllm/bin/pip ]; then
    "${PYTHON:-python3}" -m venv .venv-vllm
fi
source .venv-vllm/bin/activate

# The versions of configs/locks, without their hashes: PyTorch's build for the CPU is another one
constraints=.venv-vllm/constraints.txt
grep -h '==' configs/locks/base.txt configs/locks/gpu.txt | tr -d '\\' >$constraints
torch=$(sed -n 's/^ *"torch==\(.*\)",$/\1/p' pyproject.toml)+cpu
if ! cmp -s pyproject.toml .venv-vllm/installed-project; then
    echo "installing into .venv-vllm (a few minutes, once)"
    python -m pip install -q "torch==$torch" || # some machines have it at hand
        python -m pip install -q "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
    python -m pip install -q -e ".[dev]" -c $constraints
    cp pyproject.toml .venv-vllm/installed-project
fi
wanted=$(cat $constraints <(echo "$wheel") | cksum)
if [ "$(cat .venv-vllm/installed-vllm 2>/dev/null)" != "$wanted" ]; then
    python -m pip install -q --no-deps --force-reinstall "$wheel"
    # What it needs, but for its pins for building it, and for what no text model needs: audio, vision, Intel's OpenMP
    python -c 'from importlib.metadata import requires; print(*requires("vllm"), sep="\n")' |
        grep -Ev '^(torch|setuptools|intel-openmp)' >.venv-vllm/needed.txt
    python -m pip install -q --no-warn-conflicts "torch==$torch" -r .venv-vllm/needed.txt -c $constraints
    echo "$wanted" >.venv-vllm/installed-vllm
fi

export VLLM_NO_USAGE_STATS=1 # vLLM would report usage over the network
export TORCH_EXTENSIONS_DIR=$PWD/.venv-vllm/torch_extensions # DeepSpeed compiles for each environment anew
exec python -m pytest -m vllm "$@"
