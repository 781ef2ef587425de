# An environment with the pins of pyproject.toml, made once:   source setup.sh [dev]
# An active environment is used as it is, otherwise .venv is made. vLLM is installed where an NVIDIA GPU is found, unless
# CUDA_VISIBLE_DEVICES is empty, which leaves the GPU alone.
extras=${1:-}

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/pip ]; then
        for python in python3 python3.12 python3.11 none; do
            "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && break
        done
        if [ "$python" = none ]; then
            echo "setup.sh: found $(python3 --version 2>&1), wanted Python 3.11 or 3.12: install one of them" >&2
            return 1
        fi
        "$python" -m venv .venv
    fi
    source .venv/bin/activate
fi

# PyTorch and vLLM of the package index are for CUDA 13, which is asked before several GB of them are installed. What is
# too old for it may do with NVIDIA's cuda-compat, or with a torch for an older CUDA, and then without vLLM.
if [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && nvidia-smi -L >/dev/null 2>&1; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | sed -n 1p)
    runs=$(nvidia-smi | sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p')
    lacks=
    if [ "${driver%%.*}" -lt 580 ] && [ "${runs:-0}" -lt 13 ]; then
        lacks="driver $driver, wanted 580 or newer: type apt-get install nvidia-driver-580 and restart"
    else
        capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sed -n 1p)
        if [ "${capability/./}" -lt 75 ]; then
            lacks="compute capability $capability, wanted 7.5 or more: type $(command -v python) -m pip install"
            lacks+=" $(grep -o 'torch==[0-9.]*' pyproject.toml) --index-url https://download.pytorch.org/whl/cu126"
        fi
    fi
    if [ -z "$lacks" ]; then
        extras=${extras:+$extras,}gpu
    elif ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        echo "setup.sh: CUDA 13 does not run on this GPU: found $lacks; CUDA_VISIBLE_DEVICES= bash train.sh" \
            "--config configs/tiny_cpu.yaml trains the tiny model on the CPU" >&2
        return 1
    fi
fi

stamp=$(python -c 'import sys; print(sys.prefix)')/countdown-installed-${extras:-base}
if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing into $(dirname "$stamp") (a few minutes, once)"
    python -m pip install -q -e ".${extras:+[$extras]}"
    cp pyproject.toml "$stamp"
fi
