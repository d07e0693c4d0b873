"""The one place that imports NVIDIA DALI: a pipeline that decodes files, and one that reads frames from a store.

Both are one definition for CPU and GPU: the device is an argument. Importing this module imports DALI.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from ..grid import Size
from .imagefile import Picture

Rows = list[np.ndarray]
Batch = list[np.ndarray] | np.ndarray
"""Images one by one, or in one array ``[B, H, W, 3]``, which nothing needs to gather."""
_AHEAD = 2
"""Batches in the pipeline at once: one that is used, one that is being read."""
_READ_LATE = 4
"""Batches that the device may lag behind; then the host waits for it."""


class DaliDecoder:
    """Files → pixels of one size. ``mixed`` decodes JPEG on the GPU (PNG never is) and resizes there."""

    def __init__(self, size: Size, threads: int, mixed: bool = False) -> None:
        self.size, self.batch = size, max(4, min(16, 2 * threads))
        # Resizing to the same size changes nothing, and costs more than decoding a JPEG.
        self._plain, self._resizing = (
            _decoding(resized, mixed, batch_size=self.batch, num_threads=threads,
                      device_id=torch.cuda.current_device() if mixed else None)
            for resized in (None, size))

    def decode(self, pictures: Sequence[Picture]) -> Rows:
        """Pixels uint8 ``[*size, 3]`` of each picture, of which there are ``batch`` at most.

        Raises `RuntimeError`, which names no file, when one of them cannot be decoded; the next call works again.
        """
        pipe = self._plain if all(picture.size == self.size for picture in pictures) else self._resizing
        contents = [picture.content for picture in pictures]
        (out,) = pipe.run(encoded=[content if content.ndim == 1 else _as_ppm(content) for content in contents])
        host = out.as_cpu() if hasattr(out, "as_cpu") else out
        return [np.asarray(host[i]) for i in range(len(host))]


class FrameReader:
    """Images uint8 → frames uint8 on the device, double-buffered. Normalising them is PyTorch's (`pixels.normalise`): a
    quarter of the bytes come through here, and the arithmetic is one everywhere.

    Parameters
    ----------
    size
        (height, width) of the images that come in.
    tiles
        Cut each image into ``(rows, cols)`` equal patches, each a frame; what the grid leaves over is cropped. None:
        the image is the frame.
    device
        Where frames are delivered.
    batch
        Images in a batch, at most.
    """

    def __init__(self, size: Size, tiles: Size | None, device: torch.device, batch: int) -> None:
        gpu, self.batch = device.type == "cuda", batch
        self._pending: Iterator[Batch] = iter(())
        # DALI reads the arrays where they are: those of the batches under way must not be freed.
        self._under_way: deque[Batch] = deque(maxlen=_AHEAD + 2)
        self._device = device
        # PyTorch reads DALI's own memory. It is given back when the device has passed what was asked of it since.
        self._read_late: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        weakref.finalize(self, _wait, self._read_late).atexit = False
        device_id = (torch.cuda.current_device() if device.index is None else device.index) if gpu else None
        self._pipe = _reading(self._next, size, tiles, gpu=gpu, batch_size=batch,
                              num_threads=min(8, torch.get_num_threads()), device_id=device_id)
        self._pipe.build()

    def _next(self) -> Batch:
        self._under_way.append(next(self._pending))
        return self._under_way[-1]

    def read(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Frames ``[B, h, w, 3]`` of each batch of images (``[B, cells, h, w, 3]`` with tiles).

        While one batch is used the next is being read: a batch is asked for before the one ahead of it is handed out.
        One pass at a time. The images are not copied: they must stay as they are until their frames have come. On a GPU
        whoever keeps frames beyond the next batch copies them, on the stream that is current here.
        """
        self._pending = iter(batches)
        while True:
            stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
            try:
                (out,) = self._pipe.run(stream)  # by position: a keyword would be taken for an input of the pipeline
            except StopIteration:
                self._pipe.reset()
                return
            frames = torch.from_dlpack(out.as_tensor())
            yield frames
            if stream is not None:
                self._read_late.append((frames, stream.record_event()))
                while self._read_late and (len(self._read_late) > _READ_LATE or self._read_late[0][1].query()):
                    self._read_late.popleft()[1].synchronize()
            del frames


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
def _decoding(size: Size | None, mixed: bool) -> Pipeline:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    # Fancy upsampling makes the GPU's JPEG decoder do as the CPU's does.
    images = fn.decoders.image(encoded, device="mixed" if mixed else "cpu", output_type=types.RGB,
                               jpeg_fancy_upsampling=True)
    if size is None:
        return images
    return fn.resize(images, size=list(size), interp_type=types.INTERP_LINEAR, antialias=True)


@pipeline_def(exec_dynamic=True, prefetch_queue_depth=_AHEAD)
def _reading(source: Callable[[], Batch], size: Size, tiles: Size | None, gpu: bool) -> Pipeline:
    images = fn.external_source(source=source, dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
    if gpu:
        images = images.gpu()
    if tiles is not None:
        (rows, cols), (height, width) = tiles, (size[0] // tiles[0], size[1] // tiles[1])
        if (rows * height, cols * width) != size:
            images = fn.crop(images, crop_h=rows * height, crop_w=cols * width, crop_pos_y=0.0, crop_pos_x=0.0)
        images = fn.reshape(images, shape=[rows, height, cols, width, 3])
        images = fn.transpose(images, perm=[0, 2, 1, 3, 4])
        images = fn.reshape(images, shape=[rows * cols, height, width, 3], layout="FHWC")
    return images


def _wait(read_late: "deque[tuple[Tensor, torch.cuda.Event]]") -> None:
    """Before memory that the device may still read is given back."""
    while read_late:
        read_late.popleft()[1].synchronize()


def _as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Pixels as a file that every decoder reads without loss, so that one pipeline serves both."""
    height, width, _ = pixels.shape
    return np.frombuffer(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes(), np.uint8)
