"""The fake CUDA libraries, built by gcc: `runtime.c`, and a body for every other symbol that onnxruntime-gpu needs.

A function that launches work is counted as "gemm" or "cudnn"; one that creates returns a handle; all others succeed and
are counted under their own names, except those that only set up or ask.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
RUNTIME = "libcudart.so.13"
LIBRARIES = (RUNTIME, "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1")
CUDNN = "libcudnn.so.9"
SILENT = re.compile(
    r"Destroy|Set|Get|Init|Unload|Unregister|Register|Peek|Finalize|Derive|cudaMemPool|EventRecord|LoadData"
)
"""Calls that neither wait nor allocate nor launch."""
WORK = re.compile(
    r"(?i)gemm|matmul$|geam|MatrixTransform$|Sscal|Scopy|get[fr]|BackendExecute|Forward|ReduceTensor|AddTensor"
)

SPECIAL = {
    "cublasLtMatmulAlgoGetHeuristic": """(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int n,
    void *result, int *found) { *found = 1; return 0; }""",
    "cublasGetMathMode": "(void *h, int *mode) { *mode = 0; return 0; }",
    # one engine for a graph (202) and its configuration (300); no knobs, no notes; all numbers are 0
    "cudnnBackendGetAttribute": """(void *d, int name, int type, long wanted, long *found, void *out) {
    int number = type == 3 || type == 23;
    if (found) *found = number || name == 202 || name == 300;
    if (number && out && wanted) memset(out, 0, type == 3 ? 8 : 4);
    return 0;
}""",
    "cudnnBackendCreateDescriptor": "(int type, void **h) { *h = malloc(64); return 0; }",
}
"""Bodies that return something."""


def symbols(provider: Path) -> dict[str, list[str]]:
    """Return the functions that each library must have; those of cuDNN, which is opened later, are strings."""
    table = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {name: [] for name in LIBRARIES}
    for line in table.stdout.splitlines():
        symbol, _, library = line.split()[-1].partition("@")
        if library in found:
            found[library].append(symbol)
        elif symbol.startswith("cu") and not library:
            found["libcuda.so.1"].append(symbol)
    names = set(re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes()))
    found[CUDNN] = sorted(name.decode() for name in names | {b"cudnnGetCudartVersion"})
    return found


def body(symbol: str) -> str:
    """Return the C text of one function."""
    if symbol in SPECIAL:
        return f"int {symbol}{SPECIAL[symbol]}"
    if symbol == "cudnnGetVersion":
        return f"size_t {symbol}(void) {{ return 91900; }}"
    if re.search(r"GetStatus|GetErrorString", symbol):
        return f'const char *{symbol}(int status) {{ return "fake"; }}'
    if symbol == "cudnnGetLastErrorString":
        return f"void {symbol}(char *text, size_t size) {{ *text = 0; }}"
    if re.match(r"(cublas|cudnn)\w*Create", symbol):
        return f"int {symbol}(void **h) {{ *h = malloc(64); return 0; }}"
    if re.search(r"Size$", symbol):
        return f"int {symbol}(void*a, void*b, void*c, void*d, size_t*size) {{ *size = 256; return 0; }}"
    if WORK.search(symbol) and not symbol.startswith("cuda"):
        return f'int {symbol}(void) {{ fake_count("{"cudnn" if symbol.startswith("cudnn") else "gemm"}"); return 0; }}'
    counted = "" if SILENT.search(symbol) else f'fake_count("{symbol}"); '
    return f"int {symbol}(void) {{ {counted}return 0; }}"


def build(packages: Path, out: Path) -> Path:
    """Build the libraries for the onnxruntime-gpu installed in `packages` into `out`, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    written = (HERE / "runtime.c").read_text()
    for library, needed in symbols(packages / PROVIDER).items():
        missing = [name for name in needed if not re.search(rf"\b{name}\(", written)]
        source = out / f"{library}.c"
        heading = "#include <stdlib.h>\n#include <string.h>\nvoid fake_count(const char *);\n"
        source.write_text(heading + "\n".join(map(body, missing)) + "\n")
        version = out / f"{library}.map"
        version.write_text(f"{library} {{ global: *; }};\n")
        rest = HERE / "runtime.c" if library == RUNTIME else out / RUNTIME
        command = ["gcc", "-w", "-O1", "-fPIC", "-shared", source, rest, "-o", out / library]
        subprocess.run([*command, f"-Wl,-soname,{library},--version-script={version}"], check=True)
    return out


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
