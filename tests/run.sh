#!/usr/bin/env bash
# Sets up and runs the tests that need no GPU, three minutes on two cores after installing:
#   bash tests/run.sh [pytest flags]
#   bash tests/run.sh --all           # also those marked slow, with every launcher: 25 minutes
set -euo pipefail
cd "$(dirname "$0")/.."
which=(-m "not slow and not vllm")
if [ "${1:-}" = --all ]; then
    shift
    which=(-m "not vllm") # bash tests/vllm.sh
fi
source setup.sh
ruff check .
ruff format --check .
exec python -m pytest "${which[@]}" "$@"
