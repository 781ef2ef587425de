# An environment with the pins of pyproject.toml, made once:   source setup.sh [dev]
# An active environment is used as it is, otherwise .venv is made. vLLM is installed where an NVIDIA GPU is found.
extras=${1:-}
if nvidia-smi -L >/dev/null 2>&1; then extras=${extras:+$extras,}gpu; fi

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

stamp=$(python -c 'import sys; print(sys.prefix)')/countdown-installed-${extras:-base}
if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing into $(dirname "$stamp") (a few minutes, once)"
    python -m pip install -q -e ".${extras:+[$extras]}"
    cp pyproject.toml "$stamp"
fi
