"""The camera and the brushes of `scenes`: shapes given in metres become pixels of an image and of its mask."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, LIGHT, CAR, PEDESTRIAN, BICYCLIST = range(11)
VOID = 255
"""Things that no class covers: litter bins."""

_EYE = 1.5  # height of the camera in metres
_SUPER = 2  # drawn at this many times the size
_WEATHER: tuple[tuple[tuple[int, int, int], tuple[int, int, int], tuple[float, float, float], float, float], ...] = (
    # sky above, sky at the horizon, light, haze distance in metres, sunshine 0 … 1
    ((84, 142, 208), (198, 220, 236), (1.06, 1.03, 0.97), 220, 1.0),    # clear
    ((110, 156, 204), (222, 226, 226), (1.00, 1.00, 1.00), 150, 0.6),   # some clouds
    ((168, 174, 182), (206, 208, 210), (0.86, 0.88, 0.92), 110, 0.0),   # overcast
    ((196, 198, 200), (214, 214, 212), (0.88, 0.89, 0.90), 38, 0.0),    # mist
    ((92, 108, 168), (246, 206, 164), (1.05, 0.92, 0.80), 130, 0.7),    # low sun
    ((28, 34, 66), (92, 84, 112), (0.5, 0.53, 0.7), 120, 0.0),        # dusk
)

Colour = Sequence[float] | np.ndarray
Point = tuple[float, float, float]


class Canvas:
    """An image and its mask, and a camera at x = ``-offset`` that looks along the street."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.size = rng, size
        height, width = (n * _SUPER for n in size)
        self.image, self.mask = Image.new("RGB", (width, height)), Image.new("L", (width, height), SKY)
        self.pen, self.label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self.glaze = ImageDraw.Draw(self.image, "RGBA")  # blends with what is there, and is slower for it
        self.focal = min(0.8 * max(width, height), 2.0 * height)
        self.horizon, self.vanish = height * rng.uniform(0.45, 0.54), width * rng.uniform(0.38, 0.62)
        self.near = self.focal * _EYE / (height - self.horizon)  # what stands at the lower edge of the image
        self.offset = rng.uniform(-2.2, 2.2)  # of the street's centre from the camera, in metres
        self.road, self.walk = rng.uniform(3.6, 5.2), rng.uniform(2.2, 4.4)  # half a road, one pavement
        self.weather = _WEATHER[rng.choice(len(_WEATHER), p=(0.28, 0.22, 0.2, 0.08, 0.12, 0.1))]
        self.sun, self.sun_side = self.weather[4], rng.choice((-1, 1))
        self.haze = np.array(self.weather[1], np.float32)
        self.dusk = self.weather[2][0] < 0.5

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel of a point; x counts from the street's centre."""
        scale = self.focal / z
        return self.vanish + (x + self.offset) * scale, self.horizon + (_EYE - y) * scale

    def visible(self, x: float, z0: float, z1: float) -> tuple[float, float]:
        """The distances from ``z0`` to ``z1``, moved away as far as needed for what stands at ``x`` to be in view."""
        room = (self.vanish if x + self.offset < 0 else self.image.width - self.vanish) - 0.04 * self.image.width
        nearest = max(z0, abs(x + self.offset) * self.focal / room)
        return nearest, nearest + z1 - z0

    def seen(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """A colour through ``z`` metres of haze."""
        clear = math.exp(-z / self.weather[3])
        red, green, blue = (int(min(255.0, max(0.0, c * clear + h * (1 - clear))))
                            for c, h in zip(colour, self.weather[1], strict=True))
        return red, green, blue

    def shape(self, points: Sequence[Point], colour: Colour, label: int | None = None) -> None:
        """A polygon. Without a label it is paint on what is there."""
        flat = [self.at(*point) for point in points]
        self.pen.polygon(flat, fill=self.seen(colour, sum(p[2] for p in points) / len(points)))
        if label is not None:
            self.label_pen.polygon(flat, fill=label)

    def wall(self, x0: float, y0: float, x1: float, y1: float, z: float, colour: Colour, label: int | None = None,
             lean: float = 0.0) -> None:
        """An upright rectangle that faces the camera, its upper edge ``lean`` narrower on both sides."""
        self.shape([(x0, y0, z), (x1, y0, z), (x1 - lean, y1, z), (x0 + lean, y1, z)], colour, label)

    def side(self, x: float, y0: float, y1: float, z0: float, z1: float, colour: Colour, label: int | None = None,
             lean: float = 0.0) -> None:
        """An upright rectangle along the street."""
        self.shape([(x, y0, z0), (x, y0, z1), (x, y1, z1 - lean), (x, y1, z0 + lean)], colour, label)

    def flat(self, x0: float, x1: float, z0: float, z1: float, colour: Colour, label: int | None = None) -> None:
        """A rectangle on the ground, without haze: `veil` covers the whole ground at once, far more than near."""
        flat = [self.at(x, 0, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
        self.pen.polygon(flat, fill=self.seen(colour, 0))
        if label is not None:
            self.label_pen.polygon(flat, fill=label)

    def shadow(self, x0: float, x1: float, z0: float, z1: float, alpha: int) -> None:
        """A darker rectangle on the ground; ``alpha`` of 255 is black."""
        self.glaze.polygon([self.at(x, 0, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))],
                           fill=(18, 20, 36, alpha))

    def veil(self) -> None:
        """Haze over the ground drawn so far."""
        top = int(self.horizon) + 1
        ground = np.asarray(self.image, np.float32)[top:]
        z = self.focal * _EYE / (np.arange(top, self.image.height) - self.horizon + 0.5)
        clear = np.exp(-z / self.weather[3]).astype(np.float32)[:, None, None]
        self.image.paste(Image.fromarray((ground * clear + self.haze * (1 - clear)).astype(np.uint8)), (0, top))

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, colour: Colour,
             label: int | None = None) -> None:
        """An ellipse that faces the camera."""
        cx, cy = self.at(x, y, z)
        a, b = rx * self.focal / z, ry * self.focal / z
        box = (cx - a, cy - b, cx + a, cy + b)
        self.pen.ellipse(box, fill=self.seen(colour, z))
        if label is not None:
            self.label_pen.ellipse(box, fill=label)

    def pick(self, colours: Sequence[Colour], spread: float = 14) -> np.ndarray:
        """One of the colours, a little changed."""
        return np.asarray(colours[int(self.rng.integers(len(colours)))], np.float64) + self.rng.normal(0, spread / 3, 3)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Light, texture, vignette, exposure and noise; then the final size."""
        rng, (height, width) = self.rng, self.size
        picture = np.asarray(self.image.reduce(_SUPER), np.float32)
        mask = np.array(self.mask)[_SUPER // 2 :: _SUPER, _SUPER // 2 :: _SUPER]
        grain = Image.fromarray(rng.standard_normal((height // 2, width // 2), np.float32))
        texture = np.asarray(grain.resize((width, height), Image.Resampling.BILINEAR)) * 0.03
        texture = 1 + texture * (mask != SKY)
        y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
        exposure = rng.uniform(0.88, 1.1) * (1 - 0.11 * (x * x + y * y))
        picture = picture * (texture * exposure)[..., None] * np.array(self.weather[2], np.float32)
        sigma = rng.uniform(4, 7) if self.dusk else rng.uniform(2, 5)
        picture += rng.standard_normal(picture.shape, np.float32) * np.float32(sigma)
        return np.clip(picture, 0, 255).astype(np.uint8), mask
