#!/usr/bin/env bash
# Speed and memory on this machine's GPU, with Qwen2.5's shapes and random weights: a table, and JSON in outputs/gpu.
#   bash tests/gpu.sh [--shapes 0.5B 1.5B] [--steps 3] [--methods full lora]
set -euo pipefail
cd "$(dirname "$0")/.."
source setup.sh dev
exec python benchmarks/gpu.py "$@"
