"""A network as an ONNX file, run by onnxruntime: the one module that imports it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean, first_line
from ..paths import expand

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class Onnx:
    """A network that an ONNX file holds: give it to `meal_gpu.query` as the network.

    >>> meal_gpu.query(meal_gpu.Onnx("net.onnx"), "photos", (4, 4), 32, strategy="entropy", prepare="imagenet")
    ... # doctest: +SKIP

    An ONNX file does not say how pixels are normalised: ``prepare`` of `meal_gpu.query` does. Batches may be dynamic
    or of one fixed size, which is then filled up; results do not depend on that.

    Parameters
    ----------
    file
        As ``torch.onnx.export`` writes it, with one input ``[B, 3, H, W]`` of float16, float32 or float64. Weights that
        lie beside it (``net.onnx.data``) must stay beside it.
    output
        The name of the logits ``[B, classes, h, w]``; may be left out where there is one output beside ``features``.
    providers
        Of onnxruntime, in order of preference; by default all that its installation has. Scores are computed on the
        host.

    Raises
    ------
    InputError
        onnxruntime is not installed, or the file cannot be used, in one sentence.
    """

    def __init__(self, file: str | Path, output: str | None = None, providers: Sequence[Any] | None = None) -> None:
        self.file = expand(file)
        if not self.file.is_file():
            raise InputError(f"{self.file}: there is no such file. Give an ONNX file, as torch.onnx.export writes it.")
        library = onnxruntime()
        options = library.SessionOptions()
        options.log_severity_level = 3  # its warnings are for whoever exports
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = library.InferenceSession(str(self.file), options,
                                                    providers=providers or library.get_available_providers())
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise InputError(f"{self.file} cannot be opened by onnxruntime: {first_line(error)}.") from None
        self.outputs = [one.name for one in self.session.get_outputs()]
        if output is not None and output not in self.outputs:
            raise self._unnamed(f"no output '{output}'")
        self.output = output
        self._check_input()

    def _unnamed(self, what: str) -> InputError:
        return InputError(f"{self.file} has {what}: its outputs are {', '.join(self.outputs)}. Name that of the "
                          f"logits: Onnx(file, output='{self.outputs[0]}').")

    def _check_input(self) -> None:
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise InputError(f"{self.file} has {len(inputs)} inputs ({', '.join(one.name for one in inputs)}): a "
                             "network that is given images alone has one.")
        [one] = inputs
        shape = list(one.shape)
        if one.type not in DTYPES or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise InputError(f"{self.file} takes {one.type} {shape} as '{one.name}': give a network that takes "
                             "[B, 3, H, W] of float16, float32 or float64.")
        self.input, self.dtype, self.shape = one.name, DTYPES[one.type], shape
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        """How many images it takes at once; None for any number."""

    def with_maps(self, features: str | None) -> "Reader":
        """Logits, and the output of that name beside them. Raises `InputError` where there is none."""
        if features is not None and features not in self.outputs:
            raise InputError(f"features is '{features}', and the outputs of {self.file} are {', '.join(self.outputs)}."
                             f"{did_you_mean(features, self.outputs)} Maps inside the network must be exported as an "
                             "output.")
        others = [name for name in self.outputs if name != features]
        if self.output is None and len(others) != 1:
            raise self._unnamed("several outputs")
        return Reader(self, [self.output or others[0]] + ([features] if features is not None else []))

    def run(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Outputs of these names of images ``[B, 3, H, W]``, in parts as large as the network takes."""
        given, wanted = list(images.shape[2:]), self.shape[2:]
        if any(isinstance(side, int) and side != have for side, have in zip(wanted, given, strict=True)):
            raise InputError(f"{self.file} takes images {wanted} (height, width), and {given} are given: use images of "
                             "its size (size=, data.image_size), or export it for any size.")
        size, made = self.batch or len(images), []
        for part in images.split(size):
            full = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            found = self.session.run(list(names), {self.input: full.to("cpu", self.dtype).contiguous().numpy()})
            made.append([torch.from_numpy(one)[: len(part)] for one in found])
        return [torch.cat(parts) for parts in zip(*made, strict=True)]


class Reader:
    """What `meal_gpu.query` calls: ``[B, 3, H, W]`` → the named outputs."""

    def __init__(self, network: Onnx, names: list[str]) -> None:
        self.network, self.names = network, names

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.run(images, self.names))


def onnxruntime() -> Any:
    """The library. Raises `InputError` where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"An ONNX file is run by onnxruntime, which cannot be imported ({error}): "
                         "pip install 'meal-gpu[onnx]'.") from None
    return onnxruntime
