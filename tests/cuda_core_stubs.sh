#!/usr/bin/env bash
# Lay cuda-core's own stubs in FOLDER for mypy: tests/cuda_core_stubs.sh FOLDER && MYPYPATH=FOLDER mypy. Needs no GPU.
# The wheel (6.5 MB) has them once for each major version of CUDA, and chooses when it is imported, which mypy cannot follow.
set -euo pipefail
wheel="$(mktemp -d)"
trap 'rm -rf "$wheel"' EXIT
"${PIP:-pip}" install --quiet --no-deps --target "$wheel" cuda-core
core="$wheel/cuda/core"
mkdir -p "$1/cuda"
rm -rf "$1/cuda/core"
cp -r "$core/cu13" "$1/cuda/core"
cp "$core"/*.py "$1/cuda/core/"
# without a list of names in code, `import *` brings all of them
sed -i '/^__all__ = \[$/,/^\]$/d' "$1/cuda/core/_memory/__init__.py"
