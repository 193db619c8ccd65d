"""TensorRT 10.x (JetPack) and 11.x: engines built on the GPU that runs them."""

from __future__ import annotations

from .tensorrt_stage import TensorRtBackend


class TrtBackend(TensorRtBackend):
    """`--backend tensorrt`."""

    name = "tensorrt"
    library = "tensorrt"
    extra = "tensorrt"
