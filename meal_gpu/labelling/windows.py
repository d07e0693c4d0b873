"""A patch in its file, and the window around it that people see."""

from ..grid import Box, Size


class Windowed:
    """Boxes ``(y0, x0, y1, x1)`` in the file's pixels, EXIF applied: of the patch, and of what people see of it."""

    box: Box
    window: Box

    @property
    def shape(self) -> Size:
        """(height, width) of the box."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def window_shape(self) -> Size:
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    @property
    def inside(self) -> tuple[slice, slice]:
        """The patch, within its window."""
        top, left = self.box[0] - self.window[0], self.box[1] - self.window[1]
        return slice(top, top + self.shape[0]), slice(left, left + self.shape[1])
