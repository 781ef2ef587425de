#!/usr/bin/env bash
# Runs the tests with a real vLLM on the CPU, in an environment of their own, .venv-vllm: eight minutes on two cores.
# The first call also builds vLLM from its source package and installs everything: docs/recipes.md.
#   bash tests/vllm.sh [pytest flags]
#   VLLM_WHEEL=path bash tests/vllm.sh [pytest flags]     # takes a vLLM for the CPU that was built before
set -euo pipefail
wheel=${VLLM_WHEEL:+$(realpath "$VLLM_WHEEL")}
cd "$(dirname "$0")/.."

if [ ! -x .venv-vllm/bin/pip ]; then
    "${PYTHON:-python3}" -m venv .venv-vllm
fi
source .venv-vllm/bin/activate

# The project with PyTorch's build for the CPU; some machines have it at hand
if ! cmp -s pyproject.toml .venv-vllm/installed-project; then
    echo "installing into .venv-vllm (a few minutes, once)"
    torch=$(sed -n 's/^ *"torch==\(.*\)",$/\1/p' pyproject.toml)+cpu
    python -m pip install -q "torch==$torch" ||
        python -m pip install -q "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
    python -m pip install -q -e ".[dev]" -c tests/vllm_constraints.txt
    cp pyproject.toml .venv-vllm/installed-project
fi
if ! cat tests/build_vllm_cpu.py tests/vllm_constraints.txt <(echo "$wheel") | cmp -s - .venv-vllm/installed-vllm; then
    python tests/build_vllm_cpu.py ${wheel:+--wheel "$wheel"}
    cat tests/build_vllm_cpu.py tests/vllm_constraints.txt <(echo "$wheel") >.venv-vllm/installed-vllm
fi

export VLLM_NO_USAGE_STATS=1 # vLLM would report usage over the network
export TORCH_EXTENSIONS_DIR=$PWD/.venv-vllm/torch_extensions # DeepSpeed compiles for each environment anew
exec python -m pytest -m vllm "$@"
