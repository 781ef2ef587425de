#!/usr/bin/env bash
# Looks the versions of configs/locks up among the known vulnerabilities. It needs a network, so CI does not run it:
#   bash tests/audit.sh [--vulnerability-service osv]
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
python3 -m venv "$scratch"
"$scratch/bin/python" -m pip install -q pip-audit==2.10.1
# Known, and no concern of this project. vLLM from 0.31 on wants a transformers older than the pinned one.
exceptions=(
    # Requests to vLLM's server: it is started on 127.0.0.1 or in a network of one's own
    PYSEC-2026-4344 CVE-2026-115911 # chat templates that never end
    PYSEC-2026-4349                 # the same at another address
    CVE-2026-114051                 # a least length above the greatest
    CVE-2026-114053                 # images for a model with code of its own
    CVE-2026-115912                 # images in shared memory
    # What neither TRL nor this project asks of vLLM
    CVE-2026-114049 # allowed_token_ids
    CVE-2026-116180 # a KV connector
    CVE-2026-105922 # penalties with prompt_embeds
    CVE-2026-105775 # a Mamba model
    # Other packages
    PYSEC-2026-3447 CVE-2026-59890 # setuptools packs too many files on a Mac; vLLM wants less than 81
    GHSA-xmj3-9gf7-h52w            # setuptools with setup_requires: no pinned package is built with it
)
ignored=()
for id in "${exceptions[@]}"; do ignored+=(--ignore-vuln "$id"); done
# --strict: fail if a package cannot be looked up. torch-cpu.txt has the versions of torch.txt
status=0
for lock in torch base gpu; do
    echo "configs/locks/$lock.txt"
    strict=(--strict --disable-pip --require-hashes -r "configs/locks/$lock.txt")
    "$scratch/bin/pip-audit" "${strict[@]}" "${ignored[@]}" "$@" || status=1
done
exit $status
