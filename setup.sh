# Makes an environment with the versions of configs/locks, each checked by its hash, once:   source setup.sh
# It installs into an active environment, otherwise into .venv. Another call completes an interrupted one.
# It installs vLLM if it finds an NVIDIA GPU; an empty CUDA_VISIBLE_DEVICES leaves the GPU alone.
# uv downloads and installs; pip does if there is no uv, or if uv fails.

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    # The script that activates an environment is the last file of a new one
    if ! { [ -f .venv/bin/activate ] && .venv/bin/python -c "$fits" 2>/dev/null; }; then
        for python in python3 python3.14 python3.13 python3.12 python3.11 none; do
            "$python" -c "$fits" 2>/dev/null && break
        done
        if [ "$python" = none ]; then
            echo "setup.sh: found $(python3 --version 2>&1), wanted Python 3.11 to 3.14: install one of them" >&2
            return 1
        fi
        "$python" -m venv --clear .venv || return
    fi
    source .venv/bin/activate
elif ! python -c "$fits"; then
    echo "setup.sh: found $(python --version 2>&1) in the active environment, wanted Python 3.11 to 3.14:" \
        "type deactivate" >&2
    return 1
fi

# PyTorch and vLLM of the package index are for CUDA 13: check the driver and the card before installing several GB. An
# older one may work with NVIDIA's cuda-compat, or without vLLM with a torch for an older CUDA.
kind=cpu
torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
pytorch_index=https://download.pytorch.org/whl
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
            lacks+=" $torch --index-url $pytorch_index/cu126"
        fi
    fi
    if [ -z "$lacks" ]; then
        kind=gpu
    elif ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        echo "setup.sh: CUDA 13 does not run on this GPU: found $lacks; CUDA_VISIBLE_DEVICES= bash train.sh" \
            "--config configs/tiny_cpu.yaml trains the tiny model on the CPU" >&2
        return 1
    fi
fi

with_uv() {
    command -v uv >/dev/null && uv pip install -q --python "$(command -v python)" --no-deps --no-build-isolation "$@"
}
with_pip() {
    python -m pip install -q --no-deps --no-build-isolation --use-pep517 "$@"
}
with_either() {
    with_uv "$@" || with_pip "$@"
}
# PyTorch is 0.2 GB for the CPU and several for CUDA. PyTorch's own index has the former, the usual one has a Mac's.
install_torch() {
    if [ "$kind" = gpu ] || [ "$(uname -s)" != Linux ]; then
        with_either --require-hashes -r configs/locks/torch.txt
    elif ! python -c "import torch; assert 'torch==' + torch.__version__.split('+')[0] == '$torch'" 2>/dev/null; then
        cpu=(--require-hashes -r configs/locks/torch-cpu.txt)
        with_uv --torch-backend=cpu "${cpu[@]}" && return
        with_pip --retries 2 --extra-index-url $pytorch_index/cpu "${cpu[@]}" && return
        echo "setup.sh: found no $torch+cpu, and so asks for the one with CUDA, several GB: to have less, press Ctrl-C," \
            "and type $(command -v python) -m pip install WHEEL, with a wheel of $pytorch_index/cpu/torch" >&2
        with_either --require-hashes -r configs/locks/torch.txt
    fi
}

stamp=$(python -c 'import sys; print(sys.prefix)')/countdown-installed-$kind
wanted=$(cat pyproject.toml configs/locks/*.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $(dirname "$stamp") (a few minutes, once)"
    locks=(-r configs/locks/base.txt)
    if [ "$kind" = gpu ]; then locks+=(-r configs/locks/gpu.txt); fi
    missing=$torch
    # DeepSpeed asks for CUDA's compiler if it sees a GPU, though installing it compiles nothing
    install_torch && missing="what configs/locks names beside $torch" &&
        DS_ACCELERATOR=cpu with_either --require-hashes "${locks[@]}" && missing="the project itself" &&
        with_either -e . && missing=
    if [ -n "$missing" ]; then
        echo "setup.sh: $missing could not be installed, for the reason above; the rest is kept. Without a network" \
            "connect first, then start the same command again" >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
fi
