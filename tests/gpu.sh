#!/usr/bin/env bash
# On this machine's first GPU: the tests that need one, then speed and memory with Qwen2.5's shapes and random weights,
# as a table, and JSON in outputs/gpu.
#   bash tests/gpu.sh [--shapes 0.5B 1.5B] [--steps 3] [--methods full lora]
set -euo pipefail
cd "$(dirname "$0")/.."
source setup.sh dev
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*} # one process is to see one GPU
status=0
python -m pytest -m gpu -rs || status=$?
python benchmarks/gpu.py "$@" || status=$?
exit "$status"
