#!/usr/bin/env bash
# On this machine's first GPU: the tests that need one, then where the time of a step goes and what memory it takes,
# with the recipe that fits it, as a table, and JSON in outputs/step. Its flags are those of benchmarks/step.py:
#   bash tests/gpu.sh [--model FOLDER] [--generations 2]
set -euo pipefail
cd "$(dirname "$0")/.."
source setup.sh
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*} # one process is to see one GPU
status=0
python -m pytest -m gpu -rs || status=$?
python benchmarks/step.py "$@" || status=$?
exit "$status"
