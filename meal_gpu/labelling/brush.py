"""Label Studio's run lengths of a brush region: an RGBA image of which the alpha says what is painted.

A stream of bits: 32 for the number of values (height * width * 4), 5 for the word size - 1, four times 4 for the run
sizes - 1; then runs: a flag (1: one value, repeated), 2 bits for which run size, the length - 1, and the value, or as
many values as the length. Row by row, the four channels of a pixel side by side. Label Studio writes 0 and 255 and, at
the edge of a stroke, what lies between: a pixel is painted where its alpha is more than half.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..grid import Size

_SIZES = (3, 4, 8, 16)
_HALF = 127


def encode(mask: np.ndarray) -> list[int]:
    """Bytes of a mask, bool ``[H, W]``, as Label Studio's own encoder writes them."""
    values = np.repeat(np.where(mask.ravel(), 255, 0).astype(np.uint8), 4)
    bits = [_bits(len(values), 32), _bits(7, 5), *(_bits(size - 1, 4) for size in _SIZES)]
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges]) if len(values) else np.zeros(0, np.int64)
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    whole = _bits(65535, 16)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = _bits(int(values[start]), 8)
        while length > 0:
            run = min(length, 65536)
            which = next(i for i, size in enumerate(_SIZES) if run <= 1 << size)
            said = whole if run == 65536 else _bits(run - 1, _SIZES[which])
            bits += [_ONE, _bits(which, 2), said, value]
            length -= run
    return [int(byte) for byte in np.packbits(np.concatenate(bits))]


def decode(rle: Sequence[int], size: Size) -> np.ndarray:
    """What is painted, bool ``[H, W]``.

    Raises `InputError` for what is no such stream, is of another size, or is cut off. Nothing is made that is larger
    than ``size`` says.
    """
    count = size[0] * size[1] * 4
    stream = _stream(rle)
    reader = _Bits(stream)
    said = reader.take(32)
    if said != count:
        raise InputError(f"it has {said} values, and its image of {size[1]} x {size[0]} pixels (width x height) has "
                         f"{count}")
    word = reader.take(5) + 1
    if word != 8:
        raise InputError(f"its values have {word} bits, and 8 are expected")
    sizes = [reader.take(4) + 1 for _ in range(4)]
    values, at = np.empty(count, np.uint8), 0
    while at < count:
        repeated = reader.take(1)
        length = reader.take(sizes[reader.take(2)]) + 1
        if at + length > count:
            raise InputError(f"its runs hold more than the {count} values that it announces")
        if repeated:
            values[at : at + length] = reader.take(8)
        else:
            values[at : at + length] = reader.bytes(length)
        at += length
    if len(stream) * 8 - reader.at >= 16:  # its own encoder pads by a byte now and then
        raise InputError("something follows its last run")
    return values[3::4].reshape(size) > _HALF


def _bits(value: int, n: int) -> np.ndarray:
    return (value >> np.arange(n - 1, -1, -1) & 1).astype(np.uint8)


_ONE = _bits(1, 1)


def _stream(rle: object) -> bytes:
    try:
        if not isinstance(rle, list | tuple) or any(type(value) is not int for value in rle):
            raise ValueError
        return bytes(rle)
    except ValueError:
        raise InputError("it is no list of bytes") from None


class _Bits:
    """Reads a stream bit by bit."""

    def __init__(self, stream: bytes) -> None:
        self.stream, self.at, self.end = stream, 0, len(stream) * 8
        self._array = np.frombuffer(stream, np.uint8)

    def take(self, n: int) -> int:
        """The next n bits, at most 32."""
        start, end = self.at, self.at + n
        if end > self.end:
            raise InputError("it is cut off")
        self.at = end
        last = -(-end // 8)
        whole = int.from_bytes(self.stream[start // 8 : last], "big")
        return whole >> (last * 8 - end) & (1 << n) - 1

    def bytes(self, n: int) -> np.ndarray:
        """The next n times 8 bits, uint8 ``[n]``."""
        start, end = self.at, self.at + 8 * n
        if end > self.end:
            raise InputError("it is cut off")
        self.at = end
        shift, first = start % 8, start // 8
        if not shift:
            return self._array[first : first + n]
        part = self._array[first : first + n + 1].astype(np.uint16)
        return (part[:-1] << shift | part[1:] >> 8 - shift).astype(np.uint8)
