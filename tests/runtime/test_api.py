"""The public API: what `runtime` exports is documented and complete."""

import ast
import builtins
import inspect
import re
import sys
from pathlib import Path

import pytest

import runtime

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "api.md"
OBJECTS = [
    runtime.Engine,
    runtime.ImagePredictor,
    runtime.LiveSession,
    runtime.TextSession,
    runtime.VideoReader,
    runtime.VideoSession,
]
KEYWORDS = re.compile(r"Unpack\[(\w+)Keywords\]")
"""A TypedDict that spells out keywords; the dataclass of the same name, with `Options`, documents them."""


def public_methods(cls):
    """(name, function) of public methods and properties, inherited ones included, without constructors."""
    for name, member in inspect.getmembers(cls):
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, function


def classes(function):
    """Classes of `runtime` in the annotations of a function, and those that keywords stand for."""
    scope = vars(sys.modules[function.__module__])
    for annotation in function.__annotations__.values():
        for keywords in KEYWORDS.findall(annotation):
            yield f"{keywords}Options"
        for node in ast.walk(ast.parse(KEYWORDS.sub("object", annotation), mode="eval")):
            if isinstance(node, ast.Name):
                value = scope.get(node.id)
                # a name that is imported for type checkers only is one of this package, or of `typing`
                if inspect.isclass(value) and value.__module__.startswith("runtime."):
                    yield value.__name__
                elif value is None and not hasattr(builtins, node.id):
                    yield node.id


@pytest.mark.parametrize("name", sorted(runtime.__all__))
def test_every_export_is_documented(name):
    assert hasattr(runtime, name)
    lines = [line for line in GUIDE.read_text().splitlines() if re.match(rf"\| `{name}[`(]", line)]
    assert len(lines) == 1, f"docs/guides/api.md must have one row for `{name}`"
    assert len(lines[0].split("|")[-2].strip()) > 10


def test_guide_lists_only_exports():
    listed = re.findall(r"^\| `([A-Za-z_]+)[`(]", GUIDE.read_text(), re.MULTILINE)
    assert sorted(set(listed) - set(runtime.__all__)) == []


def test_exports_are_sorted_and_unique():
    assert runtime.__all__ == sorted(set(runtime.__all__))


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_every_class_of_a_public_method_is_exported(cls):
    named = {(name, found) for name, function in public_methods(cls) for found in classes(function)}
    missing = sorted((name, found) for name, found in named if found not in runtime.__all__)
    assert not missing, f"{cls.__name__} takes or returns classes that `runtime` does not export: {missing}"


def test_public_classes_are_found():
    found = set(classes(runtime.Engine.session)) | set(classes(runtime.Engine.video))
    assert {"Text", "TextSession", "VideoSession", "TrackingOptions"} <= found


@pytest.mark.parametrize("name", sorted(runtime.__all__))
def test_every_export_has_a_docstring(name):
    assert inspect.getdoc(getattr(runtime, name))
