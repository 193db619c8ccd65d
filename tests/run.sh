#!/usr/bin/env bash
# Install into .venv (or $VENV) and run the tests. Arguments are passed on to pytest: tests/run.sh -m "not slow"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
"${PYTHON:-python3}" -m venv "$venv"
# torch first, pinned: where pip finds a build without CUDA (PIP_EXTRA_INDEX_URL), the extras must not replace it
"$venv/bin/pip" install --quiet "torch==2.13.0"
"$venv/bin/pip" install --quiet -e ".[cpu,export,test]"
"$venv/bin/python" -m pytest tests "$@"
