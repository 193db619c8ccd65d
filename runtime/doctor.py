"""Entry point of the installation check: `python -m runtime.doctor`."""

from __future__ import annotations

import sys

from .cli.doctor import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
