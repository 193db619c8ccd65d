"""Links, anchors and file names in the documentation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("engines/*.md")])
FOLDERS = "runtime|export|kernels|benchmarks|tests|examples|docs|engines"
WRITTEN = ("engines/NAME", "engines/samwise", "engines/sam2", "engines/index.json", "NAME", "ROLE")
"""Parts of names that the reader's own files have."""


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    if page.name == "CHANGELOG.md":  # names of earlier versions
        return
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`", page.read_text()):
        if not any(part in name for part in WRITTEN):
            assert (ROOT / name).exists(), f"{name}: no such file"
