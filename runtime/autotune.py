"""Entry point of the backend benchmark: `python -m runtime.autotune --engine engines/NAME`."""

from __future__ import annotations

import sys

from .cli.autotune import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
