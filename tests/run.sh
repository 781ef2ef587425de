#!/usr/bin/env bash
# Set-up and all tests that need no GPU:   bash tests/run.sh [pytest flags]
set -euo pipefail
cd "$(dirname "$0")/.."
source setup.sh dev
ruff check .
ruff format --check .
exec python -m pytest "$@"
