"""Interfaces of the networks: capabilities, one Protocol for each, and the signature that a bundle must fit.

A word of a shape in a signature is a number, a capital letter for a size that is the same wherever the letter stands in
this network, or a small letter for any size. `I` is the bundle's image size. The word before a colon is the type,
where it is not a floating one. A tensor that no table names is not checked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..bundle.manifest import Manifest, StageSpec, TensorSpec
from ..bundle.schema import Group
from ..device.base import Array
from ..errors import BundleError
from ..media.random_access import FrameSequence
from ..prompts import Concept, Text
from ..results import Prediction, Result, Segment
from ..tracking.live import LiveSession
from ..tracking.object_memory import BlockPool
from ..tracking.state import TrackingOptions
from ..tracking.video import VideoSession
from .context import NetworkContext
from .options import AutomaticMaskOptions, ConceptOptions, TextOptions
from .samwise.session import TextSession

if TYPE_CHECKING:
    from .sam3.session import ConceptSession

FLOATS = ("float32", "float16", "bfloat16")


class Capability(Enum):
    """Tasks that a network can do. The value completes the sentence "this bundle cannot ..."."""

    TEXT_VIDEO = "follow sentences"
    PROMPT_VIDEO = "follow points, boxes and masks"
    PROMPT_IMAGE = "segment an image by points, boxes and masks"
    TEXT_IMAGE = "find sentences in an image"
    CONCEPT_IMAGE = "find concepts in an image"
    CONCEPT_VIDEO = "follow concepts"


@dataclass(frozen=True, slots=True)
class Signature:
    """`bounds` that must be there, and `tensors`: shape by name, or by `stage.name` where it is needed. `inputs` and
    `outputs` by stage, of those that the schedule reads by name."""

    bounds: tuple[str, ...]
    tensors: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


MEMORY_ATTENTION = {
    "embedding": "t N D",
    "map_index": "int64: b",
    "memory": "b s N M",
    "maskmem_tpos_index": "int64: b s",
    "obj_ptrs": "b p D",
    "obj_ptr_tpos": "b p",
    "conditioned": "b N D",
    "maskmem_features": "b N M",
    "mask_logits": "b q q",
}
MASK_DECODER = {
    "embedding_no_memory": "t N D",
    "high_res_0": "t F S S",
    "high_res_1": "t G H H",
    "sparse_count": "int64: b",
    "picture_index": "int64: b",
    "low_res_logits": "b S S",
    "score": "b",
    "obj_ptr": "b D",
}


class Network(Protocol):
    """One network of a bundle, with its buffers allocated. A Protocol below adds what each capability takes."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Tasks that it can do."""

    @property
    def pools(self) -> Collection[BlockPool]:
        """The memory of its objects, as far as it is made."""

    settings_schema: ClassVar[Group]
    signature: ClassVar[Signature]
    required_stages: ClassVar[tuple[str, ...]]
    """Names of the stages that it needs."""
    optional_stages: ClassVar[tuple[str, ...]]
    uses_kernels: ClassVar[bool]
    """Use of compiled kernels in place of the host's preprocessing and mask upsampling."""
    records_stages: ClassVar[bool]
    """Recording of its stages one by one as CUDA graphs, because they find their arrays where they were before."""

    def __init__(self, context: NetworkContext) -> None: ...


class TextVideoNetwork(Network, Protocol):
    """`Capability.TEXT_VIDEO`"""

    window: int
    """Frames that are fused with text at a time, as trained."""

    def open_text_session(self, prompts: Sequence[Text], logits: bool, options: TextOptions) -> TextSession:
        """Start following sentences through a new video."""


class PromptVideoNetwork(Network, Protocol):
    """`Capability.PROMPT_VIDEO`"""

    tracking_defaults: TrackingOptions

    def open_live(self, logits: bool, options: TrackingOptions) -> LiveSession:
        """Start tracking objects through a video whose frames come one by one."""

    def open_video(self, frames: FrameSequence, logits: bool, options: TrackingOptions) -> VideoSession:
        """Start tracking objects through a video whose frames are known."""


class PromptImage(Protocol):
    """An encoded image, segmented by visual prompts."""

    def predict(
        self, points: Any, labels: Any, box: Any, mask_input: Any, multimask: bool, normalized: bool
    ) -> Prediction: ...

    def segment_all(self, options: AutomaticMaskOptions) -> list[Segment]: ...


class PromptImageNetwork(Network, Protocol):
    """`Capability.PROMPT_IMAGE`"""

    def open_image(self, frame_hwc: Array) -> PromptImage:
        """Encode an image, uint8 RGB (H,W,3)."""


class TextImage(Protocol):
    """An encoded image, segmented by sentences."""

    def refer(self, prompts: Sequence[Text], logits: bool) -> Result: ...


class TextImageNetwork(Network, Protocol):
    """`Capability.TEXT_IMAGE`"""

    def encode_image(self, frame_hwc: Array) -> TextImage:
        """Encode an image, uint8 RGB (H,W,3)."""


class ConceptImage(Protocol):
    """An encoded image, searched for concepts."""

    def detect(self, concepts: Sequence[Concept], threshold: float, logits: bool, semantic: bool) -> list[Result]: ...


class ConceptImageNetwork(Network, Protocol):
    """`Capability.CONCEPT_IMAGE`"""

    def open_concept_image(self, frame_hwc: Array) -> ConceptImage:
        """Encode an image, uint8 RGB (H,W,3)."""

    def encode_prompt(self, concept: Concept, size: tuple[int, int]) -> object:
        """Convert a concept for images of `size` (H, W). Raises PromptError; warns of words that are cut."""


class ConceptVideoNetwork(Network, Protocol):
    """`Capability.CONCEPT_VIDEO`"""

    def open_concept_session(
        self, concepts: Sequence[Concept], logits: bool, options: ConceptOptions
    ) -> ConceptSession:
        """Start following concepts through a new video."""


def check_signature(name: str, signature: Signature, manifest: Manifest, specs: Mapping[str, StageSpec]) -> None:
    """Raise BundleError for the first thing in a bundle that is missing or does not fit a network's signature."""
    missing = [symbol for symbol in signature.bounds if symbol not in manifest.bounds]
    if missing:
        raise BundleError(f"bounds {', '.join(missing)} are missing; export the bundle again")
    for symbol in signature.bounds:
        if manifest.bounds[symbol][1] < 1:
            raise BundleError(f"bounds.{symbol} leave room for nothing; export the bundle again")
    resize = manifest.networks[name].get("resize")
    if resize is not None and max(resize["max"], resize.get("short", 1)) > manifest.image_size:
        raise BundleError(f"settings.resize makes images larger than image_size {manifest.image_size}")
    sizes: dict[str, Any] = {"I": manifest.image_size}
    for stage, spec in specs.items():
        _named(spec, "input", {t.name for t in spec.inputs}, signature.inputs.get(stage, ""))
        _named(spec, "output", {t.name for t in spec.outputs}, signature.outputs.get(stage, ""))
        for tensor in (*spec.inputs, *spec.outputs):
            wanted = signature.tensors.get(f"{stage}.{tensor.name}", signature.tensors.get(tensor.name))
            if wanted is not None:
                _fits(stage, tensor, wanted, sizes)


def _named(spec: StageSpec, kind: str, have: set[str], wanted: str) -> None:
    missing = sorted(set(wanted.split()) - have)
    if missing:
        raise BundleError(f"stage {spec.name} has no {kind} {', '.join(missing)}; export the bundle again")


def _fits(stage: str, tensor: TensorSpec, wanted: str, sizes: dict[str, Any]) -> None:
    """Compare one tensor with its row of the table; capital letters take their size from the first tensor that has
    them."""
    dtype, _, shape = wanted.rpartition(": ")
    words, where = shape.split(), f"stage {stage}: {tensor.name} {tensor.dtype} {list(tensor.shape)}"
    if tensor.dtype != dtype if dtype else tensor.dtype not in FLOATS:
        raise BundleError(f"{where} must be {dtype or 'of a floating type'}; export the bundle again")
    if len(words) != len(tensor.shape):
        raise BundleError(f"{where} must have {len(words)} dimensions ({shape}); export the bundle again")
    for word, size in zip(words, tensor.shape, strict=True):
        if word.islower():
            continue
        expected = int(word) if word.isdigit() else sizes.setdefault(word, size)
        if size != expected or not isinstance(size, int) or size < 1:
            raise BundleError(
                f"{where}: {size} does not fit the other tensors, {expected} would ({shape}); export the bundle again"
            )
