"""Mutated manifests, bundles, command lines, videos, checkpoints and tokenizers: taken, or refused in one line.

The properties are those of `invariants.py`, the readers those of the coverage-guided run
(`run.py`). Here Hypothesis mutates, always the same way, within a minute.
"""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from fuzz import invariants, mutate
from fuzz.targets import TARGETS, target

EXAMPLES = {"manifest": 220, "prompt": 300, "video": 160, "checkpoint": 60, "tokenizer": 200}

QUICK = settings(
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(mutate.ODD) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

pytestmark = pytest.mark.timeout(300)


@st.composite
def damaged(draw, name):
    """A good input of this target with a few bytes, or a few values of its JSON, changed."""
    chosen = target(name)
    data = draw(st.sampled_from(chosen.seeds()))
    if chosen.structured and draw(st.booleans()):
        changed = mutate.mutated(data, random.Random(draw(st.integers(0, 1 << 32))), chosen.words)
        if changed is not None:
            return changed
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        action = draw(st.sampled_from(("change", "insert", "cut", "remove", "repeat")))
        if action == "change":
            piece = draw(st.binary(min_size=1, max_size=4))
            data = data[:at] + piece + data[at + len(piece) :]
        elif action == "insert":
            data = data[:at] + draw(st.sampled_from(chosen.words)) + data[at:]
        elif action == "cut":
            data = data[:at]
        else:
            to = min(len(data), at + draw(st.integers(1, 64)))
            data = data[:at] + (data[at:to] if action == "repeat" else b"") + data[at if action == "repeat" else to :]
    return data


def _skip_without_libraries(name):
    needed = {"checkpoint": "torch", "tokenizer": "torch", "manifest": "onnx"}.get(name)
    if needed:
        pytest.importorskip(needed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_inputs(name):
    _skip_without_libraries(name)
    chosen = target(name)

    @settings(QUICK, max_examples=EXAMPLES[name])
    @given(damaged(name))
    def holds(data):
        assert chosen(data) in ("taken", "refused")

    holds()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_good_inputs_are_taken(name):
    """Else everything might be refused at the door and the mutations test nothing."""
    _skip_without_libraries(name)
    outcomes = [target(name)(seed) for seed in target(name).seeds()]
    assert outcomes.count("taken") >= 4


MANIFEST_PLACES = st.sampled_from(
    [
        ["bounds"],
        ["bounds", "objects"],
        ["bounds", "slots", 1],
        ["demo"],
        ["files"],
        ["files", "neck.onnx"],
        ["format"],
        ["image_size"],
        ["networks"],
        ["networks", "samwise"],
        ["precision"],
        ["provenance"],
        ["networks", "samwise", "conditional_memory"],
        ["networks", "samwise", "conditional_memory", "every"],
        ["networks", "samwise", "mean"],
        ["networks", "samwise", "std", 0],
        ["networks", "samwise", "memory", "num_maskmem"],
        ["networks", "samwise", "resize"],
        ["networks", "samwise", "resize", "max"],
        ["networks", "samwise", "text"],
        ["networks", "samwise", "text", "max_tokens"],
        ["networks", "samwise", "window"],
        ["networks", "sam2"],
        ["networks", "sam2", "resample", "video"],
        ["stages"],
        ["stages", "neck"],
        ["stages", "neck", "files", "default"],
        ["stages", "neck", "inputs"],
        ["stages", "neck", "outputs", 0, "shape"],
        ["stages", "mask_decoder", "outputs", 0, "dtype"],
        ["stages", "memory_attention", "inputs", 2, "shape", 1],
        ["tokenizer"],
        ["variant"],
    ]
)


@settings(QUICK, max_examples=300)
@given(st.sampled_from(("toy", "toy_sam2")), st.lists(st.tuples(MANIFEST_PLACES, ANYTHING), min_size=1, max_size=2))
def test_any_value_anywhere_in_a_manifest(base, edits):
    pytest.importorskip("onnx")
    target("manifest")(json.dumps({"base": base, "edits": edits}).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("what", ["cut", "noise", "gone", "folder", "link", "loop", "pipe"])
def test_damaged_folders(what):
    pytest.importorskip("onnx")
    for number in range(0, 15, 3):
        outcome = target("manifest")(
            json.dumps({"edits": [], "files": [[number, what, 10 + number]], "ort": True}).encode()
        )
        assert outcome == "refused" or what == "noise"


@settings(QUICK, max_examples=200)
@given(
    st.sampled_from(("--point", "--box", "--mask", "--tokens", "--verbs", "--text", "--stride", "--max-frames")),
    st.text(st.sampled_from("0123456789.,-+@#e n\u0663\u00b2a:/\\\n"), max_size=24),
)
def test_values_of_options(option, value):
    argv = ["--text", "a red square", option, value] if option == "--verbs" else [option, value]
    target("prompt")(json.dumps({"argv": argv}).encode())


@settings(QUICK, max_examples=150)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(("object", "frame", "points", "labels", "box", "mask", "name")), ANYTHING),
        max_size=3,
    )
    | ANYTHING
)
def test_prompt_files(entries):
    given_ = {"argv": ["--prompts", "FILES/p.json"], "files": {"p.json": json.dumps(entries)}}
    target("prompt")(json.dumps(given_).encode())


# ----------------------------------------------------------------------------------------------- the guard can say no


def test_the_guard_sees_what_it_forbids(tmp_path):
    (tmp_path / "inside").mkdir()

    def writes():
        (tmp_path / "elsewhere").write_text("x")

    def busy():
        while True:
            pass

    def two_lines():
        error = runtime.UserError("one")
        error.args = ("one\ntwo",)
        raise error

    def warns():
        import numpy as np

        np.array([1e300]).astype(np.float32)

    def runs():
        import subprocess

        subprocess.run(["true"], check=True)

    for action, words in (
        (writes, "for writing"),
        (two_lines, "2 lines"),
        (invariants.tripwire, "code from the input"),
        (runs, "subprocess.Popen"),
    ):
        with pytest.raises(invariants.Broken, match=words):
            invariants.hold(action, tmp_path)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
    with pytest.raises(RuntimeWarning):
        invariants.hold(warns, tmp_path)
    with pytest.raises(invariants.Broken, match="still busy"), invariants.limited(0.2):
        busy()
    with pytest.raises(ZeroDivisionError):
        invariants.hold(lambda: 1 / 0, tmp_path)
    assert invariants.hold(lambda: None, tmp_path) == "taken"
