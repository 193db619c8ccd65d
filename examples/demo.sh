#!/usr/bin/env bash
# Install into .venv (or $VENV) and run the demonstration of engines/nano. Arguments are passed on to `python -m runtime.run`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet -e ".[cpu]"
"$venv/bin/python" -m runtime.run --engine engines/nano "$@"
