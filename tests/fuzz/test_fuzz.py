"""Invariants on damaged manifests, bundles, command lines, videos, checkpoints and tokenizers.

The same strategies and invariants as in the coverage-guided campaign (`run.py`), with fixed inputs, within a minute.
"""

import json
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from fuzz import TARGETS, invariants
from fuzz.mutations import ANYTHING, replaced
from fuzz.targets import target
from helpers import audit
from helpers.damage import KINDS

EXAMPLES = {"manifest": 220, "prompt": 300, "video": 160, "checkpoint": 60, "tokenizer": 200}

QUICK = settings(
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

pytestmark = pytest.mark.timeout(300)


def _skip_without_libraries(name):
    needed = {"checkpoint": "torch", "tokenizer": "torch", "manifest": "onnx"}
    if name in needed:
        pytest.importorskip(needed[name])


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_inputs(name):
    _skip_without_libraries(name)
    chosen = target(name)

    @settings(QUICK, max_examples=EXAMPLES[name])
    @given(chosen.inputs)
    def holds(value):
        assert chosen.check(value) in ("taken", "refused")

    holds()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_good_inputs_are_taken(name):
    """Otherwise all inputs might be refused for one reason, and the mutations test nothing."""
    _skip_without_libraries(name)
    outcomes = [target(name).check(example) for example in target(name).examples()]
    assert outcomes.count("taken") >= 4


MANIFEST_PATHS = """
bounds bounds.objects bounds.slots.1 demo files files.neck/onnx format image_size precision provenance networks
networks.samwise networks.samwise.conditional_memory networks.samwise.conditional_memory.every networks.samwise.mean
networks.samwise.std.0 networks.samwise.memory.num_maskmem networks.samwise.resize networks.samwise.resize.max
networks.samwise.text networks.samwise.text.max_tokens networks.samwise.window networks.sam2
networks.sam2.resample.video stages stages.neck stages.neck.files.default stages.neck.inputs
stages.neck.outputs.0.shape stages.mask_decoder.outputs.0.dtype stages.memory_attention.inputs.2.shape.1 tokenizer
variant
""".split()
PATHS = st.sampled_from(MANIFEST_PATHS).map(
    lambda path: [int(key) if key.isdigit() else key.replace("/", ".") for key in path.split(".")]
)


@settings(QUICK, max_examples=300)
@given(st.sampled_from(("toy_samwise", "toy_sam2")), st.lists(st.tuples(PATHS, ANYTHING), min_size=1, max_size=2))
def test_any_value_anywhere_in_a_manifest(base, edits):
    pytest.importorskip("onnx")
    from fuzz.manifest import BundleCase
    from helpers.toy_contents import manifest

    data = manifest(base)
    for path, value in edits:
        data = replaced(data, path, value)
    target("manifest").check(BundleCase(base, data))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_folders(kind):
    pytest.importorskip("onnx")
    from fuzz.manifest import BundleCase
    from helpers.toy_contents import manifest

    for number in range(0, 15, 3):
        case = BundleCase("toy_samwise", manifest("toy_samwise"), ((number, kind, 10 + number),), ort=True)
        assert target("manifest").check(case) == "refused" or kind == "noise"


@settings(QUICK, max_examples=200)
@given(
    st.sampled_from(("--point", "--box", "--mask", "--tokens", "--verbs", "--text", "--stride", "--max-frames")),
    st.text(st.sampled_from("0123456789.,-+@#e n\u0663\u00b2a:/\\\n"), max_size=24),
)
def test_values_of_options(option, value):
    argv = ["--text", "a red square", option, value] if option == "--verbs" else [option, value]
    target("prompt").check({"argv": argv})


@settings(QUICK, max_examples=150)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(("object", "frame", "points", "labels", "box", "mask", "name")), ANYTHING),
        max_size=3,
    )
    | ANYTHING
)
def test_prompt_files(entries):
    target("prompt").check({"argv": ["--prompts", "FILES/p.json"], "files": {"p.json": json.dumps(entries)}})


# -- the invariants can be violated


def busy():
    while True:
        pass


def two_lines():
    error = runtime.UserError("one")
    error.args = ("one\ntwo",)
    raise error


def test_every_violation_is_detected(tmp_path):
    (tmp_path / "inside").mkdir()
    for action, words in (
        (lambda: (tmp_path / "elsewhere").write_text("x"), "for writing"),
        (two_lines, "2 lines"),
        (audit.tripwire, "code from the input"),
        (lambda: subprocess.run(["true"], check=True), "subprocess.Popen"),
    ):
        with pytest.raises(invariants.InvariantViolation, match=words):
            invariants.check_invariants(action, tmp_path)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
    with pytest.raises(RuntimeWarning):
        invariants.check_invariants(lambda: np.array([1e300]).astype(np.float32), tmp_path)
    with pytest.raises(invariants.InvariantViolation, match="still busy"), invariants.cpu_limit(0.2):
        busy()
    with pytest.raises(ZeroDivisionError):
        invariants.check_invariants(lambda: 1 / 0, tmp_path)
    assert invariants.check_invariants(lambda: None, tmp_path) == "taken"
