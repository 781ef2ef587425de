#!/usr/bin/env bash
# Runs the tests that need a GPU on this machine's first one, then measures time and memory of a step with the recipe
# that fits it: a table, and JSON in outputs/step. The flags are those of benchmarks/step.py:
#   bash tests/gpu.sh [--model FOLDER] [--generations 2]
set -euo pipefail
cd "$(dirname "$0")/.."
source setup.sh
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*} # one process must see one GPU
status=0
python -m pytest -m gpu -rs || status=$?
python benchmarks/step.py "$@" || status=$?
exit "$status"
