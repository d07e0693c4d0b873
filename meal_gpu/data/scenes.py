"""Procedural street scenes with exact masks: the data set of the demo, drawn when needed, nothing downloaded.

A pinhole camera 1.5 m above a straight street: x metres to the right, y metres up, z metres ahead. Everything is drawn
from far to near, once in colour and once as class index, at twice the size, so that edges are smooth in the image and
exact in the mask. Light, haze, exposure and noise differ from scene to scene; traffic signs and lights, pedestrians and
bicyclists stand in some scenes only, so that there is something to find.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from .scene_actors import WALLS, Draw, car, cyclist, house, lamp, light, litter_bin, person, sign, tree
from .scene_canvas import BICYCLIST, BUILDING, LIGHT, PAVEMENT, PEDESTRIAN, ROAD, SIGN, TREE, Canvas

CLASSES = {
    "sky": (128, 178, 214), "building": (128, 64, 64), "pole": (196, 196, 140), "road": (128, 64, 128),
    "pavement": (232, 124, 204), "tree": (96, 142, 35), "sign": (240, 214, 40), "traffic light": (250, 130, 30),
    "car": (30, 40, 160), "pedestrian": (220, 30, 60), "bicyclist": (20, 150, 170),
}
"""Class name -> colour for display; the index of a class is its place here."""
VERSION = 1
"""Raised when the scenes change, so that older files are not mistaken for these."""

RARE = {SIGN: 3, LIGHT: 3, PEDESTRIAN: 3, BICYCLIST: 2}
"""In how many of each run of `BLOCK` consecutive scenes a rare class stands."""
BLOCK = 8


def draw_scene(index: int, split: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw scene ``index`` of split 0 (pool) or 1 (validation).

    Returns the image, uint8 ``[H, W, 3]``, and the mask, uint8 ``[H, W]``, of indices into `CLASSES` and 255 for void.
    Equal arguments give equal arrays.
    """
    rng = np.random.default_rng([VERSION, split, index])
    c = Canvas(rng, size)
    ground(c)
    on_street = [*kerbside(c), *traffic(c), *rare(c, _rare_classes(index, split))]
    for things in (houses(c), on_street):  # seen from the street, no house hides what stands there
        for _, draw in sorted(things, key=lambda thing: -thing[0]):
            draw()
    return c.finish()


def write_scene(index: int, split: int, size: tuple[int, int], image: Path, mask: Path) -> None:
    """Draw a scene into two PNG files; a file that exists is complete. The mask is a palette PNG of class indices."""
    pixels, ids = draw_scene(index, split, size)
    labels = Image.fromarray(ids)
    # All 256 entries: with fewer, Pillow packs the indices into 4 bits and so loses 255.
    labels.putpalette(bytes(channel for colour in CLASSES.values() for channel in colour).ljust(768, b"\0"))
    for picture, path in ((Image.fromarray(pixels), image), (labels, mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            picture.save(part, "PNG", compress_level=1)
            # Equal scenes get equal times: drawn twice at once by two processes, they are still the same files.
            os.utime(part, ns=(0, VERSION * 10**9))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _rare_classes(index: int, split: int) -> set[int]:
    """The rare classes of a scene. Drawn per block of scenes, so that even a small pool has each of them."""
    rng = np.random.default_rng([VERSION, 2 + split, index // BLOCK])
    return {label for label, count in RARE.items() if rng.permutation(BLOCK)[index % BLOCK] < count}


def ground(c: Canvas) -> None:
    """Sky, the end of the street, pavement, road and its markings."""
    rng, near, road = c.rng, c.near * 0.9, c.road
    width = c.image.width
    top, low = np.array(c.weather[0], float), c.haze
    rise = np.linspace(0, 1, int(c.horizon) + 2)[:, None, None] ** 1.4
    sky = np.broadcast_to(top * (1 - rise) + low * rise, (len(rise), width, 3))
    if c.sun > 0.3 or rng.random() < 0.5:  # clouds: smooth noise, stretched
        noise = Image.fromarray(rng.random((5, 7), np.float32)).resize((width, len(rise)), Image.Resampling.BICUBIC)
        fine = Image.fromarray(rng.random((14, 18), np.float32)).resize(noise.size, Image.Resampling.BICUBIC)
        cover = np.clip((np.asarray(noise) * 0.7 + np.asarray(fine) * 0.3 - rng.uniform(0.45, 0.6)) * 3, 0, 0.85)
        sky = sky + (low * 0.25 + 0.75 * (150 if c.dusk else 250) - sky) * cover[..., None] * (1 - rise * 0.6)
    c.image.paste(Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)), (0, 0))
    for x in np.arange(-90, 90, 9.0):  # far houses and trees close the street
        z, high = rng.uniform(95, 120), rng.uniform(4, 15)
        if rng.random() < 0.65:
            c.wall(x, 0, x + rng.uniform(7, 14), high, z, c.pick(WALLS) * 0.8, BUILDING)
        else:
            c.disc(x + 4, high * 0.3, z, rng.uniform(5, 8), high * 0.5 + 2, c.pick([(74, 100, 58)]), TREE)
    stone = c.pick([(158, 152, 148), (172, 164, 150), (140, 138, 140)])
    c.flat(-300, 300, near, 400, stone, PAVEMENT)
    for z in near * 1.12 ** np.arange(26):  # joints between slabs
        c.flat(-road - c.walk, road + c.walk, z, z * 1.012, stone * 0.9)
    asphalt = c.pick([(98, 98, 102), (112, 110, 108), (86, 88, 94)])
    c.flat(-road, road, near, 400, asphalt, ROAD)
    for edge in (-road, road):
        c.flat(edge - 0.12, edge + 0.12, near, 120, stone * 1.14, PAVEMENT)
    for _ in range(4):  # patches and worn lanes
        x, z = rng.uniform(-road, road - 1), rng.uniform(near, 30)
        c.flat(x, x + rng.uniform(0.4, 1.6), z, z + rng.uniform(1, 9), asphalt * rng.uniform(0.88, 1.06))
    paint = np.array((226, 224, 214)) * rng.uniform(0.8, 1)
    for z in np.arange(near + rng.uniform(-6, 0), 90, 6.0):
        c.flat(-0.08, 0.08, max(z, near), max(z + 3, near), paint)
    if rng.random() < 0.6:
        for x in (-road + 0.45, road - 0.45):
            c.flat(x - 0.06, x + 0.06, near, 110, paint)
    if rng.random() < 0.3:  # zebra crossing
        z = rng.uniform(6, 16)
        for x in np.arange(-road + 0.3, road - 0.4, 1.0):
            c.flat(x, x + 0.5, z, z + 3, paint)
    if c.sun > 0.3:  # the shadow of one row of houses
        c.shadow(c.sun_side * 40, c.sun_side * road * rng.uniform(-0.3, 0.9), near, 150, int(90 * c.sun))
    c.veil()


def houses(c: Canvas) -> list[tuple[float, Draw]]:
    """Two rows of houses with gaps, in which trees stand."""
    rng, todo = c.rng, []
    for way in (-1, 1):
        line = way * (c.road + c.walk + rng.uniform(0, 1.2))
        z = c.near * rng.uniform(0.5, 0.9)
        while z < 90:
            length = rng.uniform(6, 17)
            if rng.random() < 0.2:
                length = rng.uniform(4, 9)
                for _ in range(2):
                    place = z + length * rng.random()
                    todo.append((place, tree(c, line + way * rng.uniform(1, 4), place + 2, rng.uniform(1, 1.6))))
            else:
                todo.append((z, house(c, line, way, z, z + length)))
            z += length
    return todo


def kerbside(c: Canvas) -> list[tuple[float, Draw]]:
    """Street trees, lamps and litter bins along both kerbs."""
    rng, todo = c.rng, []
    for way in (-1, 1):
        x, trees, lamps = way * (c.road + 0.5), rng.random() < 0.4, rng.random() < 0.6
        step = rng.uniform(9, 15)
        for z in np.arange(rng.uniform(7, 14), 70, step):
            if trees:
                todo.append((z, tree(c, x + way * 0.3, z, rng.uniform(0.8, 1.2))))
            if lamps:
                todo.append((z - 2, lamp(c, x, z - 2, -way)))
        if rng.random() < 0.35:
            place = rng.uniform(5, 18)
            todo.append((place, litter_bin(c, x, place)))
    return todo


def traffic(c: Canvas) -> list[tuple[float, Draw]]:
    """Parked cars along the kerbs, and cars in both lanes."""
    rng, todo = c.rng, []
    for way in (-1, 1):
        if rng.random() < 0.6:
            z = rng.uniform(4, 14)
            while z < 60:
                todo.append((z, car(c, way * (c.road - 1.05), z, way > 0)))
                z += rng.choice((5.2, 5.6, 6.5, 11, 19))
        elif rng.random() < 0.75:
            z = rng.uniform(8, 40)
            todo.append((z, car(c, way * c.road * 0.45, z, way > 0)))
    return todo


def rare(c: Canvas, labels: set[int]) -> list[tuple[float, Draw]]:
    """One to three of each kind, where the camera sees them."""
    rng, todo = c.rng, []
    for label in sorted(labels):
        for _ in range(rng.integers(1, 4) if label in (PEDESTRIAN, BICYCLIST) else rng.integers(1, 3)):
            way = int(rng.choice((-1, 1)))
            if label in (SIGN, LIGHT):
                x = way * (c.road + 0.45)
            elif label == PEDESTRIAN and rng.random() < 0.7:
                x = way * (c.road + rng.uniform(0.7, c.walk))
            else:
                x = way * c.road * rng.uniform(0.2, 0.95)
            z = rng.uniform(*c.visible(x, 5, 15))
            todo.append((z, {SIGN: sign, LIGHT: light, PEDESTRIAN: person, BICYCLIST: cyclist}[label](c, x, z)))
    return todo
