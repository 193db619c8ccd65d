"""Checkpoints and tokenizers by name: repositories of the Hugging Face Hub, and files at their authors' addresses.

Files are kept in the cache of the Hub's own library (`HF_HOME`) and in that of torch.hub (`TORCH_HOME`). An interrupted
download goes on where it stopped.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.bundle.bundle import file_sha256
from runtime.errors import UserError, summarize

from .files import SUFFIXES

META = "https://dl.fbaipublicfiles.com/segment_anything_2"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
HIERA = ("tiny", "small", "base_plus", "large")
ADDRESSES: Mapping[str, tuple[str, str]] = {
    **{f"sam2_hiera_{size}.pt": (f"sam2_hiera_{size}.pt", f"{META}/072824/sam2_hiera_{size}.pt") for size in HIERA},
    **{
        f"sam2.1_hiera_{size}.pt": (f"sam2.1_hiera_{size}.pt", f"{META}/092824/sam2.1_hiera_{size}.pt")
        for size in HIERA
    },
    "samwise-mevis": ("samwise-mevis.pth", DRIVE + "1Molt2up2bP41ekeczXWQU-LWTskKJOV2"),
    "samwise-ytvos": ("samwise-ytvos.pth", DRIVE + "17Ei9XU678tCiiV14c-9EB9ZqXVrj4qEw"),
    "samwise-refcoco": ("samwise-refcoco.pth", DRIVE + "1gRGzARDjIisZ3PnCW77Y9TMM_SbV8aaa"),
}
"""Name -> file in the cache, and the address that the authors publish (READMEs of SAM 2 and SAMWISE). None has a
published sha256; the repositories of the Hub have."""

TOKENIZERS = {"roberta-base": "FacebookAI/roberta-base", "bert-base-uncased": "google-bert/bert-base-uncased"}
"""Short names of tokenizers -> repository of the Hub."""

DEFAULT_TOKENIZERS = {"samwise": "roberta-base"}
"""Network -> tokenizer of a checkpoint that is given by name, unless its repository has one."""

REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w./-]*))?")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz")
CONFIGURATION = ("config.json", "*.index.json", *TOKENIZER_FILES)
SHA256 = re.compile(r"[0-9a-f]{64}")
TIMEOUT = 30
"""Seconds that a server may be silent."""


def checkpoint(name: str, offline: bool = False, report: Callable[[str], None] = print) -> Path:
    """Return the local path of a checkpoint: `name` itself if it exists, else what it names, downloaded once.

    Names: a key of `ADDRESSES`, a repository `owner/name` of the Hub, or one of its files, `owner/name/file.pt`.
    Raises UserError that says what to download by hand where a name cannot be had.
    """
    if Path(name).exists() or Path(name).is_symlink():
        return Path(name)
    if name in ADDRESSES:
        return _download(name, offline, report)
    match = REPOSITORY.fullmatch(name)
    if match is None or (match[2] is None and name.endswith(SUFFIXES)):
        raise UserError(
            f"{name}: no such file; give the path of a checkpoint (.pth or .pt), a repository of the Hugging Face Hub "
            "such as facebook/sam2.1-hiera-tiny, or a name of docs/guides/export.md such as sam2.1_hiera_tiny.pt"
        )
    report(f"{name}: not a file here; looking for it on the Hugging Face Hub")
    if match[2]:
        return _snapshot(match[1], (match[2],), offline) / match[2]
    folder = _snapshot(match[1], (*CONFIGURATION, "*.safetensors"), offline)
    if not list(folder.glob("*.safetensors")):
        folder = _snapshot(match[1], (*CONFIGURATION, "*.pt", "*.pth", "*.bin"), offline)
    files = [file for file in folder.iterdir() if file.suffix in (".pt", ".pth")]
    return files[0] if len(files) == 1 and not list(folder.glob("*.safetensors")) else folder


def tokenizer(name: str, offline: bool = False) -> Path:
    """Return the local path of a tokenizer: `name` itself if it exists, else that of a repository of the Hub."""
    repository = TOKENIZERS.get(name, name)
    if Path(name).exists() or not REPOSITORY.fullmatch(repository):
        return Path(name)
    return _snapshot(repository, TOKENIZER_FILES, offline)


def default_tokenizer(network: str, name: str, path: Path) -> str | None:
    """Return the tokenizer of a checkpoint that was found at `path`, given by name; None for one given as a path."""
    if path == Path(name):
        return None
    if path.is_dir() and any((path / file).is_file() for file in TOKENIZER_FILES):
        return str(path)
    return DEFAULT_TOKENIZERS.get(network)


def _snapshot(repository: str, patterns: tuple[str, ...], offline: bool) -> Path:
    """Return the folder of a repository's files that match. Raises UserError."""
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise UserError(f"{repository}: a name of the Hub needs its library: pip install huggingface-hub") from None
    page = f"{_shown(constants.ENDPOINT)}/{repository}"
    by_hand = f"download the files of {page} by hand and give their folder"
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=offline))
    except errors.GatedRepoError:
        raise UserError(
            f"{repository}: its authors ask for consent; accept the terms at {page}, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such file or folder here, and no such repository at {page}; a private one needs HF_TOKEN"
        ) from None
    except errors.LocalEntryNotFoundError:
        why = "not in the cache, and downloads are off" if offline else f"not in the cache, and no answer from {page}"
        raise UserError(f"{repository}: {why}; {by_hand}") from None
    except Exception as error:  # of the library and of its HTTP client, which changed from one version to the next
        raise UserError(
            f"{repository}: download failed ({summarize(error)}); run again to go on, or {by_hand}"
        ) from None
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        _check_hash(file)
    return folder


def _shown(address: str) -> str:
    """Return an address without its scheme: errors hide the path of any other, which may be a secret."""
    return address.removeprefix("https://")


def _check_hash(file: Path) -> None:
    """Remove a file and raise UserError unless it has the published sha256: the Hub's cache names files by it."""
    blob = file.resolve()
    if SHA256.fullmatch(blob.name) and file_sha256(blob) != blob.name:
        blob.unlink()
        file.unlink(missing_ok=True)
        raise UserError(f"{file.name}: its sha256 is not the published one; the file was removed, download it again")


def _download(name: str, offline: bool, report: Callable[[str], None]) -> Path:
    """Return the file of `ADDRESSES`, downloaded unless it is in the cache. Raises UserError."""
    import torch.hub

    file, address = ADDRESSES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    by_hand = f"download {_shown(address)} by hand to {path}"
    if offline:
        raise UserError(f"{name}: not in the cache, and downloads are off; {by_hand}")
    report(f"{name}: downloading {address}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch(address, path)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{name}: download failed ({summarize(reason)}); run again to go on, or {by_hand}") from None
    return path


def fetch(address: str, path: Path) -> None:
    """Download a file, continuing `path.incomplete`. Raises OSError, HTTPException, and ValueError for a web page."""
    part = path.with_name(path.name + ".incomplete")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range begins at the end of the file, or the file is another one
            raise
        part.unlink()
        return fetch(address, path)
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("the address answered with a web page instead of a file")
        start = start if answer.status == 206 else 0
        _write(answer, part, start, path.name)
    part.replace(path)


def _write(answer: Any, part: Path, start: int, label: str) -> None:
    """Append what a server sends to a file of `start` bytes. Raises OSError if it ends early."""
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    with (
        part.open("ab" if start else "wb") as out,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label, leave=False) as bar,
    ):
        while piece := answer.read(1 << 20):
            out.write(piece)
            bar.update(len(piece))
        if total is not None and out.tell() != total:
            raise OSError(f"the connection ended after {out.tell():,} of {total:,} bytes")
