"""Who may import whom. The whole of it is read from the sources; what is loaded is seen in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)

# Libraries outside the standard one that each package may name anywhere, also inside functions.
LIBRARIES = {
    "kernels": {"numpy", "triton"},
    "runtime": {
        "numpy",
        "av",
        "PIL",
        "pillow_heif",
        "tokenizers",
        "ftfy",
        "pycocotools",
        "tqdm",
        "onnxruntime",
        "cuda",
        "tensorrt",
        "tensorrt_rtx",
        "openvino",
    },
}
# Libraries of the extras of servers; only `runtime/serve` names them.
SERVERS = {"prometheus_client", "ray", "starlette", "triton_python_backend_utils", "uvicorn", "websockets"}
# Which parts of `runtime` each part may import. A part is a folder, or a module in the root; all may import the plain
# values and errors in `LEAVES`. The engine and what it gives out are the root.
LEAVES = {"errors", "prompts", "results", "metrics", "versions"}
PARTS = {
    "errors": set(),
    "prompts": {"errors"},
    "results": set(),
    "metrics": {"errors"},
    "versions": set(),
    "kernels": set(),
    "bundle": LEAVES,
    "device": LEAVES | {"bundle", "kernels"},
    "backends": LEAVES | {"bundle", "device"},
    "imaging": LEAVES | {"bundle", "device"},
    "media": LEAVES | {"bundle"},
    "tokenizer": LEAVES | {"bundle"},
    "tracking": LEAVES | {"bundle", "device", "imaging", "media"},
    "models": LEAVES | {"bundle", "device", "imaging", "media", "tokenizer", "tracking"},
    "image": LEAVES | {"media", "models", "tracking"},
    "engine": LEAVES | {"bundle", "device", "backends", "media", "models", "tracking", "image"},
    "scheduler": LEAVES | {"backends", "engine", "tracking"},
    "__init__": LEAVES | {"engine", "backends", "media", "models", "scheduler", "tracking", "image"},
    "cli": LEAVES
    | {"__init__", "engine", "bundle", "device", "backends", "imaging", "media", "models", "scheduler", "tokenizer"}
    | {"tracking"},
    "run": {"cli"},
    "autotune": {"cli"},
    "doctor": {"cli"},
    "serve": LEAVES
    | {"__init__", "engine", "backends", "bundle", "cli", "imaging", "media", "models", "scheduler", "tracking"},
}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """(absolute name, line, whether it is for type checkers only) of every import of a file, relative ones resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        id(node)
        for top in ast.walk(tree)
        if isinstance(top, ast.If) and "TYPE_CHECKING" in ast.unparse(top.test)
        for node in ast.walk(top)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) in hints


def offences(package, forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(package)
        for name, line, hint in imports(path)
        if forbidden(path, name, hint)
    ]


def under(name, *packages):
    return any(name == p or name.startswith(p + ".") for p in packages)


def test_the_walk_sees_imports():
    found = {name for name, _, _ in imports(ROOT / "runtime" / "media" / "video_reader.py")}
    assert {"numpy", "weakref", "runtime.errors.VideoError", "runtime.media.video_sources.open_source"} <= found


@pytest.mark.parametrize("package", ["runtime", "kernels"])
def test_only_the_libraries_of_the_package(package):
    allowed = STANDARD | LIBRARIES[package] | {package}

    def forbidden(path, name, hint):
        here = allowed | (SERVERS if ROOT / "runtime" / "serve" in path.parents else set())
        # for type checkers, which bring it
        return name.split(".")[0] not in here and not (hint and under(name, "typing_extensions"))

    assert offences(package, forbidden) == []


def test_kernels_are_reached_through_one_door():
    def forbidden(path, name, hint):
        return path != ROOT / "runtime" / "device" / "kernels.py" and under(name, "kernels", "runtime.kernels")

    assert offences("runtime", forbidden) == []


def part(name):
    """The part of `runtime` that a module or a name in one belongs to."""
    words = name.split(".")
    return words[1] if len(words) > 1 and words[1] in PARTS else "__init__"


def test_parts_of_runtime_import_downwards_only():
    def forbidden(path, name, hint):
        own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
        return not hint and under(name, "runtime") and part(name) not in PARTS[own] | {own}

    assert offences("runtime", forbidden) == []


@pytest.mark.parametrize("package", ["benchmarks", "export", "kernels", "runtime"])
def test_no_import_cycle(package):
    """Also none that an import inside a function or for type checkers would hide."""
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sources(package)
    }

    def module(name):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    edges = {
        m: {module(name) for name, _, _ in imports(path) if not under(name, "runtime.kernels")} - {m, ""}
        for m, path in modules.items()
    }
    # importing a.b.c runs a/__init__ and a.b/__init__ as well, but those hold no code that needs c
    finished, stack, cycles = set(), [], []

    def visit(m):
        if m in stack:
            cycles.append(" -> ".join([*stack[stack.index(m) :], m]))
        elif m not in finished:
            stack.append(m)
            for other in sorted(edges[m]):
                visit(other)
            stack.pop()
            finished.add(m)

    for m in sorted(edges):
        visit(m)
    assert cycles == []


def test_export_does_not_use_the_command():
    assert (
        offences(
            "export",
            lambda path, name, hint: under(name, "runtime.cli", "runtime.run", "runtime.autotune", "runtime.doctor"),
        )
        == []
    )


@pytest.mark.parametrize("package", ["runtime", "kernels", "export"])
def test_nothing_imports_tests_or_benchmarks(package):
    assert offences(package, lambda path, name, hint: under(name, "tests", "benchmarks")) == []


def test_no_name_of_a_model_or_backend_is_compared():
    """A network or backend is chosen by its registry; code that asks for a name would grow with every new one."""
    found = []
    for path in sources("runtime"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
                left, right = ast.unparse(node.left).split(".")[-1], node.comparators[0]
                named = isinstance(right, ast.Constant) and isinstance(right.value, str)
                if named and left in ("model", "backend", "network"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_kernels_is_no_package_of_its_own():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy():
    loaded = set(fresh("import runtime, sys; print(*{m.split('.')[0] for m in sys.modules})").split())
    heavy = {
        "torch",
        "transformers",
        "export",
        "onnx",
        "onnxruntime",
        "tensorrt",
        "av",
        "PIL",
        "tokenizers",
        "ftfy",
        "pycocotools",
        "triton",
        "tqdm",
        "cuda",
    }
    assert loaded & heavy == set()


def test_help_needs_no_library_either():
    out = fresh(
        "import sys\nfrom runtime.run import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    assert {"onnxruntime", "av", "PIL", "tokenizers"} & set(out.splitlines()[-1].split()) == set()
