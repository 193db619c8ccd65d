"""Follow a sentence on frames that are in GPU memory, and read the logits there. Needs a GPU; not yet run on one.

    pip install 'samwise-runtime[gpu]' pycuda
    python -m export.kernels engines/NAME            # compiled kernels, which read the frames
    python examples/frames_on_gpu.py clip.mp4 --engine engines/NAME --text "the horse on the left"

PyCUDA stands for any library whose arrays have `__cuda_array_interface__` or DLPack (CuPy, torch).
"""

import argparse

import numpy as np
import pycuda.driver as cuda
import pycuda.gpuarray as gpuarray

import runtime

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", help="file, folder of images, address")
parser.add_argument("--text", required=True, help="a sentence")
parser.add_argument("--engine", required=True, help="a bundle with compiled kernels")
parser.add_argument("--backend", default="ort-cuda", help="ort-cuda, tensorrt or tensorrt_rtx")
args = parser.parse_args()


def show(result: runtime.Result) -> None:
    (logits,) = session.device_logits  # one array per batch of sentences, overwritten by the next frame
    view = gpuarray.GPUArray(logits.shape, logits.dtype, gpudata=logits.ptr)  # the same memory
    largest = float(gpuarray.max(view).get())
    print(f"frame {result.frame_index}  {result.masks[0].sum()} pixels, largest logit {largest:.2f}")


cuda.init()
context = cuda.Device(0).retain_primary_context()  # the context that the runtime uses, too
context.push()
try:
    with (
        runtime.load(args.engine, backend=args.backend, kernels="on") as engine,
        runtime.open_video(args.video) as video,
    ):
        with engine.session([runtime.Text(args.text)]) as session:
            for frame in video:
                on_gpu = gpuarray.to_gpu(np.ascontiguousarray(frame))  # stands for a decoder or camera on the GPU
                context.synchronize()  # PyCUDA's arrays name no stream, so their work must be done
                for result in session.push(on_gpu):  # read in place
                    show(result)
            for result in session.flush():
                show(result)
finally:
    context.pop()
