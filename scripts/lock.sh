#!/usr/bin/env bash
# Regenerates requirements.lock, requirements-pillow.lock and requirements-peers.lock.
# Versions already locked are kept where they still fit; `make lock ARGS=--upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v uv >/dev/null 2>&1; then
    uv=uv
elif [ -x .venv/bin/uv ]; then
    uv=.venv/bin/uv
else
    echo "lock: no uv: run 'make setup' first, or install uv" >&2
    exit 1
fi

# compile OUT FILE... [OPTION...]
compile() {
    local out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header "$@" --output-file "$out"
    # The header goes on afterwards, so that it names no command line, folder or host.
    { echo "# Made by scripts/lock.sh (make lock); do not edit."; cat "$out"; } >"$out.new"
    mv "$out.new" "$out"
    if grep -nE '://' "$out"; then
        echo "lock: $out must hold no addresses" >&2
        exit 1
    fi
    echo "lock: $out: $(grep -cE '^[A-Za-z0-9._-]+==' "$out") packages"
}

compile requirements.lock pyproject.toml scripts/lock-inputs.txt --all-extras \
    --overrides scripts/lock-overrides.txt "$@"
compile requirements-pillow.lock scripts/pillow-inputs.txt "$@"
compile requirements-peers.lock pyproject.toml scripts/peers-inputs.txt "$@"

if grep -qiE '^pillow==' requirements.lock; then
    echo "lock: requirements.lock holds Pillow beside pillow-simd" >&2
    exit 1
fi
