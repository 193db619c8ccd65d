"""Atomic publishing of bundles: written in a hidden folder beside the target and swapped in at the end.

A reader sees the old bundle or the new one, and a failure leaves nothing under the bundle's name. Needs no torch.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError


@contextmanager
def replacing(out: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out/name` when the block ends, and is removed when it raises.

    It lies one level down in a hidden folder, where no search for bundles looks. Raises UserError for a name that is no
    plain folder name, or a target that cannot be written.
    """
    if not name or name.startswith(".") or name != os.path.basename(name) or any(c in name for c in '\\:*?"<>|'):
        raise UserError(f"bundle name {name!r} is not a plain folder name; choose another with --name")
    target = out / name
    if target.exists() and not (target / "manifest.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is no bundle; remove it or choose another --name")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out, name)
        work = out / f".{name}.partial-{os.getpid()}"
        (work / name).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}); choose another --out") from None
    try:
        yield work / name
        _swap(work / name, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Move `new` to `target`; a folder that was there ends up at `new` or beside it."""
    if not target.exists():
        os.rename(new, target)
        return
    if _exchange(new, target):
        return
    old = new.with_name(new.name + ".old")  # without exchange: two renames, and no bundle between them
    os.rename(target, old)
    os.rename(new, target)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step with Linux's renameat2(RENAME_EXCHANGE). Returns False where that does not exist."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _sweep(out: Path, name: str) -> None:
    """Remove the folders of killed exports of this name; an export that still runs keeps its folder."""
    for path in out.glob(f".{name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
