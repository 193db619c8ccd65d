"""Embed the runtime in a PyCUDA program: frames that are on the GPU stay there, and the logits are read there.

    python examples/embed_pycuda.py engines/NAME video.mp4 "the horse on the left"

Needs a CUDA GPU, `pip install 'samwise-runtime[gpu]' pycuda`, and compiled kernels in the bundle
(`python -m export.kernels engines/NAME`). Not yet run on a GPU.
"""

from __future__ import annotations

import sys

import numpy as np
import pycuda.driver as cuda
import pycuda.gpuarray as gpuarray

import runtime
from runtime.media.video_reader import open_video


def main(bundle: str, video: str, sentence: str) -> None:
    cuda.init()
    context = cuda.Device(0).retain_primary_context()  # the one that the runtime uses, too
    context.push()
    try:
        with runtime.load(bundle, backend="ort-cuda", kernels="on") as engine, open_video(video) as source:
            with engine.session([runtime.Text(sentence)]) as session:
                for frame in source:
                    on_gpu = gpuarray.to_gpu(np.ascontiguousarray(frame))  # stands for a decoder or a camera on the GPU
                    context.synchronize()  # PyCUDA's arrays name no stream, so their work must be done
                    for result in session.push(on_gpu):  # read in place: __cuda_array_interface__
                        show(result, session)
                for result in session.flush():
                    show(result, session)
    finally:
        context.pop()


def show(result: runtime.Result, session: runtime.TextSession) -> None:
    """The mask has come to the host in bits; `device_logits` are where the decoder wrote them."""
    (logits,) = session.device_logits  # one per batch of sentences
    view = gpuarray.GPUArray(logits.shape, logits.dtype, gpudata=logits.ptr)  # the same memory
    print(result.frame_index, f"{result.scores[0]:.2f}", int(result.masks[0].sum()), float(gpuarray.max(view).get()))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
