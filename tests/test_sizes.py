"""Sizes that keep the code readable: lines of a file and of a function, methods of a class."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE, FUNCTION, METHODS = 320, 50, 15


@pytest.mark.parametrize("package", ["benchmarks", "examples", "export", "kernels", "runtime"])
def test_files_functions_and_classes_are_short(package):
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        if (lines := text.count("\n")) > FILE:
            found.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if (lines := node.end_lineno - node.lineno + 1) > FUNCTION:
                    found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
            elif isinstance(node, ast.ClassDef):
                methods = sum(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in node.body)
                if methods > METHODS:
                    found.append(f"{name}:{node.lineno}: {node.name} has {methods} methods")
    assert found == []


def test_the_root_of_runtime_holds_the_public_api_only():
    assert len(list((ROOT / "runtime").glob("*.py"))) <= 12
