"""What stands in the street scenes: each function takes a place in metres and returns what draws the thing there."""

import math
from collections.abc import Callable

import numpy as np

from .scene_canvas import BICYCLIST, BUILDING, CAR, LIGHT, PEDESTRIAN, POLE, SIGN, TREE, VOID, Canvas, Colour

Draw = Callable[[], None]

WALLS = ((176, 120, 92), (198, 178, 146), (150, 142, 134), (170, 92, 76), (206, 196, 180), (134, 118, 110),
          (186, 158, 112), (142, 152, 160), (214, 186, 150))
_PAINT = ((172, 26, 30), (28, 58, 120), (208, 210, 212), (30, 32, 36), (120, 124, 128), (34, 96, 74), (222, 178, 40),
          (70, 110, 160), (240, 240, 238))
_CLOTHES = ((180, 40, 44), (40, 66, 128), (236, 226, 210), (38, 40, 46), (60, 120, 84), (214, 150, 50), (120, 70, 130))
_SKIN = ((232, 190, 160), (198, 146, 110), (142, 96, 68), (96, 64, 46))


def house(c: Canvas, x: float, way: int, z0: float, z1: float) -> Draw:
    rng = np.random.default_rng(c.rng.integers(2**32))
    colour, floors, high = c.pick(WALLS, 30), int(rng.integers(2, 6)), rng.uniform(2.8, 3.4)
    lit = 1.0 + 0.16 * c.sun * (-1 if way == c.sun_side else 1)
    shop = rng.random() < 0.45
    awning, glass = c.pick(_PAINT), np.array((62, 76, 92)) * rng.uniform(0.7, 1.3)

    def draw() -> None:
        top = floors * high + 0.8
        c.wall(x, 0, x + way * 12, top, z0, colour * 0.78, BUILDING)
        c.side(x, 0, top, z0, z1, colour * lit, BUILDING)
        c.side(x, top - 0.35, top, z0, z1, colour * lit * 0.82)
        c.side(x, 0, 0.5, z0, z1, colour * 0.7)
        if shop:
            c.side(x, 0.5, 2.3, z0 + 0.5, z1 - 0.5, glass * 0.8)
            c.side(x, 2.4, 3.0, z0 + 0.3, z1 - 0.3, awning)
        columns = max(1, int((z1 - z0) / 2.7))
        for column in range(columns):
            a = z0 + (z1 - z0) * (column + 0.27) / columns
            b = z0 + (z1 - z0) * (column + 0.73) / columns
            if c.focal * abs(x) * (1 / a - 1 / b) < 1.5:
                break  # narrower than a pixel from here on
            for floor in range(int(shop), floors):
                light = np.array((255, 208, 120)) * 1.7 if c.dusk and rng.random() < 0.4 else glass
                light = light * rng.uniform(0.85, 1.2)
                y = floor * high + 0.9
                c.side(x, y - 0.12, y, a - 0.08, b + 0.08, colour * lit * 1.15)
                c.side(x, y, y + 1.5, a, b, light)
                c.side(x, y + 1.3, y + 1.5, a, b, light * 0.6)

    return draw


def tree(c: Canvas, x: float, z: float, scale: float) -> Draw:
    rng = np.random.default_rng(c.rng.integers(2**32))
    leaf = c.pick([(70, 112, 48), (92, 124, 52), (58, 96, 56), (150, 118, 46), (104, 130, 60)], 20)
    stem = rng.uniform(1.9, 2.9) * scale

    def draw() -> None:
        c.wall(x - 0.16 * scale, 0, x + 0.16 * scale, stem + 0.8, z, (84, 66, 50), TREE, 0.04)
        for level in range(15):  # dark leaves below, light ones above
            up = level / 14
            dx, dy = rng.normal(0, 0.62) * (1.25 - up * 0.8) * scale, (0.2 + 2.5 * up) * scale
            r = rng.uniform(0.5, 0.95) * scale * (1.1 - 0.35 * up)
            shade = 0.66 + 0.5 * up + 0.1 * c.sun * (-1 if dx * c.sun_side > 0 else 1) + rng.normal(0, 0.05)
            c.disc(x + dx, stem + dy, z, r * 1.1, r, leaf * shade, TREE)

    return draw


def lamp(c: Canvas, x: float, z: float, arm: int) -> Draw:
    high = c.rng.uniform(4.8, 6.2)

    def draw() -> None:
        c.wall(x - 0.07, 0, x + 0.07, high, z, (82, 86, 88), POLE)
        c.wall(x, high - 0.1, x + arm * 1.3, high, z, (82, 86, 88), POLE)
        glow = (255, 236, 180) if c.dusk else (210, 212, 206)
        c.wall(x + arm * 0.9, high - 0.25, x + arm * 1.5, high - 0.08, z, glow, POLE)

    return draw


def litter_bin(c: Canvas, x: float, z: float) -> Draw:
    def draw() -> None:
        c.wall(x - 0.25, 0, x + 0.25, 0.9, z, (58, 74, 62), VOID)
        c.wall(x - 0.28, 0.82, x + 0.28, 0.95, z, (40, 52, 46), VOID)

    return draw


def car(c: Canvas, x: float, z: float, away: bool) -> Draw:
    rng = c.rng
    paint, long, high, wide = c.pick(_PAINT), rng.uniform(3.8, 4.6), rng.uniform(1.4, 1.7), rng.uniform(0.8, 0.9)
    waist, glass, black = high * 0.58, (44, 54, 66), (22, 22, 24)
    flank = x - wide if x + c.offset > 0 else x + wide  # the side that the camera sees
    inset = 0.17 if flank < x else -0.17
    lamp = (196, 24, 22) if away else (250, 244, 214)
    if c.dusk:
        lamp = (255, 40, 30) if away else (255, 255, 255)

    def draw() -> None:
        c.shadow(x - wide - 0.2, x + wide + 0.2, z - 0.25, z + long, 130)
        end = z + long
        for near, far in ((z + 0.45, z + 1.1), (end - 1.1, end - 0.45)):
            c.side(flank, 0, 0.62, near, far, black, CAR, 0.12)
        c.side(flank, 0.25, waist, z, end, paint * 0.8, CAR, 0.05)
        c.shape([(flank, waist, z + 0.15), (flank, waist, end - 0.9), (flank + inset, high, end - 1.7),
                    (flank + inset, high, z + 0.6)], paint * 0.8, CAR)
        for near, far in ((z + 0.5, z + long * 0.42), (z + long * 0.46, end - 1.25)):
            c.shape([(flank + inset * 0.1, waist + 0.05, near - 0.1), (flank + inset * 0.1, waist + 0.05, far + 0.1),
                        (flank + inset * 0.9, high - 0.1, far - 0.25), (flank + inset * 0.9, high - 0.1, near + 0.15)],
                       glass)
        c.wall(x - wide + 0.05, 0, x - wide + 0.3, 0.4, z, black, CAR)
        c.wall(x + wide - 0.3, 0, x + wide - 0.05, 0.4, z, black, CAR)
        c.wall(x - wide, waist - 0.05, x + wide, high, z + 0.3, paint * 1.06, CAR, 0.17)
        c.wall(x - wide + 0.16, waist + 0.04, x + wide - 0.16, high - 0.12, z + 0.25, glass, None, 0.1)
        c.wall(x - wide, 0.24, x + wide, waist, z, paint, CAR, 0.04)
        c.wall(x - wide, 0.24, x + wide, 0.42, z, paint * 0.6)
        for light in (x - wide + 0.06, x + wide - 0.4):
            c.wall(light, waist - 0.25, light + 0.34, waist - 0.09, z, lamp)
        c.wall(x - 0.26, 0.44, x + 0.26, 0.56, z, (228, 226, 200))

    return draw


def sign(c: Canvas, x: float, z: float) -> Draw:
    kind, high = c.rng.integers(4), c.rng.uniform(2.3, 2.9)

    def draw() -> None:
        c.wall(x - 0.05, 0, x + 0.05, high, z, (140, 142, 144), POLE)
        if kind == 0:  # give way
            for r, colour in ((0.52, (206, 30, 34)), (0.33, (244, 242, 236))):
                c.shape([(x - r, high + r * 0.6, z), (x + r, high + r * 0.6, z), (x, high - r, z)], colour, SIGN)
        elif kind == 1:  # parking
            c.wall(x - 0.42, high - 0.42, x + 0.42, high + 0.42, z, (24, 76, 170), SIGN)
            c.wall(x - 0.14, high - 0.28, x - 0.02, high + 0.28, z, (244, 244, 244))
            c.wall(x - 0.02, high, x + 0.2, high + 0.28, z, (244, 244, 244))
        else:  # speed limit, no entry
            c.disc(x, high, z, 0.46, 0.46, (206, 30, 34), SIGN)
            if kind == 2:
                c.disc(x, high, z, 0.34, 0.34, (244, 242, 236))
                c.wall(x - 0.16, high - 0.14, x + 0.16, high + 0.14, z, (40, 40, 44))
            else:
                c.wall(x - 0.32, high - 0.09, x + 0.32, high + 0.09, z, (244, 242, 236))

    return draw


def light(c: Canvas, x: float, z: float) -> Draw:
    on = c.rng.integers(3)

    def draw() -> None:
        c.wall(x - 0.07, 0, x + 0.07, 2.4, z, (70, 74, 78), POLE)
        c.wall(x - 0.27, 2.35, x + 0.27, 3.65, z, (24, 26, 28), LIGHT)
        for i, colour in enumerate(((250, 40, 36), (255, 184, 40), (60, 232, 120))):
            c.disc(x, 3.4 - 0.4 * i, z, 0.16, 0.16, np.array(colour) * (1.0 if i == on else 0.28))

    return draw


def person(c: Canvas, x: float, z: float) -> Draw:
    rng = c.rng
    coat, legs, skin = c.pick(_CLOTHES), c.pick([(36, 40, 58), (62, 56, 52), (110, 104, 96)]), c.pick(_SKIN, 6)
    size, stride, hair = rng.uniform(0.82, 1.08), rng.uniform(0.06, 0.26), c.pick([(40, 30, 24), (120, 90, 50)])

    def draw() -> None:
        c.shadow(x - 0.3, x + 0.3, z - 0.15, z + 0.2, 110)
        for foot in (-stride, stride):
            c.shape([(x + foot - 0.09, 0, z), (x + foot + 0.1, 0, z), (x + 0.13, 0.88 * size, z),
                        (x - 0.13, 0.88 * size, z)], legs * (1 if foot > 0 else 0.85), PEDESTRIAN)
        for hand in (-1, 1):
            c.shape([(x + hand * 0.2, 1.42 * size, z), (x + hand * 0.29, 1.36 * size, z),
                        (x + hand * 0.34, 0.82 * size, z), (x + hand * 0.24, 0.82 * size, z)], coat * 0.85, PEDESTRIAN)
        c.wall(x - 0.22, 0.78 * size, x + 0.22, 1.46 * size, z, coat, PEDESTRIAN, 0.04)
        c.disc(x, 1.62 * size, z, 0.125, 0.155, skin, PEDESTRIAN)
        c.disc(x, 1.69 * size, z, 0.13, 0.1, hair, PEDESTRIAN)

    return draw


def cyclist(c: Canvas, x: float, z: float) -> Draw:
    rng = c.rng
    coat, skin, frame = c.pick(_CLOTHES), c.pick(_SKIN, 6), c.pick(_PAINT)
    turn = rng.choice((-1, 1)) * rng.uniform(0.55, 1.0)  # seen from the side, or at an angle

    def draw() -> None:
        c.shadow(x - 0.9, x + 0.9, z - 0.1, z + 0.15, 90)
        for wheel in (-0.52, 0.52):
            c.disc(x + wheel * turn, 0.35, z, 0.35 * abs(turn), 0.35, (26, 26, 28), BICYCLIST)
            c.disc(x + wheel * turn, 0.35, z, 0.27 * abs(turn), 0.27, (112, 112, 112))
        for a, b in (((-0.52, 0.35), (-0.15, 0.85)), ((-0.15, 0.85), (0.4, 0.8)), ((0.0, 0.35), (0.4, 0.8)),
                     ((0.52, 0.35), (0.42, 1.02)), ((-0.52, 0.35), (0.0, 0.35))):
            limb(c, x, z, turn, a, b, 0.035, frame)
        for a, b, thick, colour in (
                ((-0.16, 0.95), (0.14, 0.7), 0.1, coat * 0.5), ((0.14, 0.7), (0.02, 0.3), 0.07, coat * 0.5),  # leg
                ((-0.18, 0.92), (0.14, 1.45), 0.17, coat), ((0.14, 1.4), (0.42, 1.05), 0.06, coat * 0.85)):  # back, arm
            limb(c, x, z, turn, a, b, thick, colour)
        c.disc(x + 0.22 * turn, 1.63, z, 0.12, 0.15, skin, BICYCLIST)
        c.disc(x + 0.2 * turn, 1.71, z, 0.15, 0.09, frame, BICYCLIST)  # helmet

    return draw


def limb(c: Canvas, x: float, z: float, turn: float, a: tuple[float, float], b: tuple[float, float], thick: float,
         colour: Colour) -> None:
    """A bar between two points beside ``x``, seen at an angle."""
    ax, bx = x + a[0] * turn, x + b[0] * turn
    length = math.hypot(bx - ax, b[1] - a[1])
    nx, ny = -(b[1] - a[1]) / length * thick, (bx - ax) / length * thick
    c.shape([(ax + nx, a[1] + ny, z), (bx + nx, b[1] + ny, z), (bx - nx, b[1] - ny, z), (ax - nx, a[1] - ny, z)],
            colour, BICYCLIST)
