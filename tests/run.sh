#!/usr/bin/env bash
# Install into .venv (or $VENV) and run the tests in two processes (or $TEST_PROCESSES). Arguments are passed on to
# pytest: tests/run.sh -m "not slow"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
"${PYTHON:-python3}" -m venv "$venv"
# torch first, pinned: the build without CUDA libraries (several gigabytes on Linux) from PyTorch's own index if that can
# be reached, otherwise the one of the configured indexes; the extras do not replace it
torch=("torch==2.13.0")
cpu_index=https://download.pytorch.org/whl/cpu
if "$venv/bin/python" -c "import urllib.request as r; r.urlopen('$cpu_index/torch/', timeout=10)" 2>/dev/null; then
  torch+=(--extra-index-url "$cpu_index")
fi
# most modules of these libraries are never imported: bytecode is written on import
"$venv/bin/pip" install --quiet --no-compile "${torch[@]}"
"$venv/bin/pip" install --quiet --no-compile -e ".[cpu,export,test,serve]"
"$venv/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
