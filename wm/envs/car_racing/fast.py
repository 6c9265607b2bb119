"""CarRacing-v3 with a fast drawing of the observation; tracks, physics and rewards are Gymnasium's own.

Stock CarRacing spends 98% of a step drawing about 730 polygons on a 1000x800 surface and shrinking it to 96x96. Here
the field is painted once into a texture in world coordinates, at about twice the resolution of the observation. Each
frame is one affine warp of that texture, plus a small picture of the car and a few cached strips of the dashboard. Only
the drawing of "state_pixels" is replaced, so that everything else is equal bit for bit.

How the parts match the stock picture:

- The texture is filled cell by cell as the camera comes near, so that a reset stays fast. A cell is drawn at four times
  its size with filled polygons, in stock's order, and averaged, since stock averages its large surface, too.
- Stock's averaging rounds down and darkens every colour by 2; the colours here are darkened in the same way.
- A tile changes colour when it is first touched, and its rectangle is drawn again.
- In the first second the camera zooms in from above the whole field. These frames come from a coarser texture and its
  halvings, painted at reset, until the fine texture is needed.
- The car is fixed in the picture; only its wheels turn. Their pictures are cached for rounded angles.
- Dashboard bars and score digits are drawn by pygame as in stock, once for each different value, and cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import Box2D
import cv2
import numpy as np
import pygame
from Box2D.b2 import polygonShape
from gymnasium.envs.box2d.car_dynamics import (
    ENGINE_POWER,
    FRICTION_LIMIT,
    HULL_POLY1,
    HULL_POLY2,
    HULL_POLY3,
    HULL_POLY4,
    SIZE,
    WHEEL_COLOR,
    WHEEL_MOMENT_OF_INERTIA,
    WHEEL_R,
    WHEEL_W,
    WHEEL_WHITE,
    WHEELPOS,
    Car,
)
from gymnasium.envs.box2d.car_racing import (
    GRASS_DIM,
    PLAYFIELD,
    SCALE,
    STATE_H,
    STATE_W,
    WINDOW_H,
    WINDOW_W,
    ZOOM,
    CarRacing,
)

PX_X = WINDOW_W / STATE_W  # stock surface pixels per observation pixel, across
PX_Y = WINDOW_H / STATE_H  # and down
DASH_ROW = 84  # the dashboard is rows 84..95: 5/40 of the height
FULL_ZOOM = ZOOM * SCALE  # surface pixels per world unit once the zoom-in is over

# One period of the grass pattern: a patch and a gap, both ways. The field is 20 x 20 periods.
PERIOD = 2 * GRASS_DIM
N_PERIODS = 20
SUPERSAMPLE = 4  # polygons are drawn at this multiple of the texture's resolution
SUBPIXEL_BITS = 4  # fixed-point fraction of OpenCV's polygon vertices
FINE = 96  # texels per period: 0.35 units a texel, against 0.64 x 0.51 units an observation pixel
COARSE = 64  # the same for the texture of the zoom-in
N_COARSE = 4  # and its halvings: 64, 32, 16, 8 texels per period
FINE_FROM_ZOOM = 10.0  # surface pixels per unit from which the zoom-in, too, uses the fine texture


class _Field:
    """The static picture of one track as textures in world coordinates (rows along y, columns along x).

    Colours are RGBX, since OpenCV warps four channels twice as fast as three.
    """

    def __init__(self) -> None:
        self.fine = np.zeros((N_PERIODS * FINE, N_PERIODS * FINE, 4), np.uint8)
        side = N_PERIODS * COARSE
        self.coarse = [np.zeros((side >> k, side >> k, 4), np.uint8) for k in range(N_COARSE)]

    def new_track(self, polygons: np.ndarray, colours: np.ndarray, bg: np.ndarray, grass: np.ndarray) -> None:
        """Take a new track: paint the coarse textures, clear the fine one.

        Args:
            polygons: f64[n, 4, 2], road tiles and curbs in drawing order, world units.
            colours: f64[n, 3], their colours, 0..255; kept, and read again by every later painting.
            bg: f64[3], colour of the field.
            grass: f64[3], colour of the grass patches.
        """
        # Bounding boxes in texels, and one texel more, for the drawn edges are a little outside of the polygons.
        texels = (polygons + PLAYFIELD) * (FINE / PERIOD)
        self.low = np.floor(texels.min(axis=1)).astype(int) - 1
        self.high = np.ceil(texels.max(axis=1)).astype(int) + 1
        self.colours = colours
        self.large = _fixed_point(polygons, FINE * SUPERSAMPLE)
        self.clear()
        # Two by two cells, so that the empty ground of any rectangle up to a cell's size is a slice of them.
        self.empty_large = np.tile(_grass_cell(FINE * SUPERSAMPLE, bg, grass), (2, 2, 1))
        self.empty = _halve(_halve(self.empty_large[: FINE * SUPERSAMPLE, : FINE * SUPERSAMPLE]))

        coarse = self.coarse[0]
        cell = _grass_cell(COARSE, bg, grass)
        coarse.reshape(N_PERIODS, COARSE, N_PERIODS, COARSE, 4)[:] = cell[None, :, None]
        _fill(coarse, _fixed_point(polygons, COARSE), colours)
        for large, small in zip(self.coarse[:-1], self.coarse[1:], strict=True):
            _halve(large, small)

    def clear(self) -> None:
        """Forget what the fine texture holds: every cell is painted anew when it is next seen."""
        self.painted = np.zeros((N_PERIODS, N_PERIODS), bool)  # cells, one period each
        self.seen: set[tuple[int, int, int, int]] = set()  # ranges of cells known to be painted

    def paint_around(self, x: float, y: float, radius: float) -> None:
        """Make sure that the fine texture is painted within `radius` of (x, y), world units."""
        last = N_PERIODS - 1
        i0 = min(max(int((x - radius + PLAYFIELD) / PERIOD), 0), last)
        i1 = min(max(int((x + radius + PLAYFIELD) / PERIOD), 0), last)
        j0 = min(max(int((y - radius + PLAYFIELD) / PERIOD), 0), last)
        j1 = min(max(int((y + radius + PLAYFIELD) / PERIOD), 0), last)
        if (i0, i1, j0, j1) in self.seen:
            return
        self.seen.add((i0, i1, j0, j1))
        for j in range(j0, j1 + 1):
            for i in range(i0, i1 + 1):
                if not self.painted[j, i]:
                    self.painted[j, i] = True
                    self.fine[j * FINE : (j + 1) * FINE, i * FINE : (i + 1) * FINE] = self.empty
                    self._paint(i * FINE, j * FINE, (i + 1) * FINE, (j + 1) * FINE)

    def repaint(self, index: int) -> None:
        """Paint again the surroundings of one polygon, whose colour has changed."""
        (x0, y0), (x1, y1) = self.low[index].tolist(), self.high[index].tolist()
        # What of it lies in cells not yet painted will be painted over.
        if self.painted[y0 // FINE : y1 // FINE + 1, x0 // FINE : x1 // FINE + 1].any():
            self._paint(x0, y0, x1, y1)

    def _paint(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Paint the part of a rectangle of texels, at most one cell large, that any polygon touches."""
        touching = np.flatnonzero(((self.low < (x1, y1)) & (self.high > (x0, y0))).all(axis=1))
        if not len(touching):
            return
        low, high = self.low[touching].min(axis=0).tolist(), self.high[touching].max(axis=0).tolist()
        x0, y0, x1, y1 = max(x0, low[0]), max(y0, low[1]), min(x1, high[0]), min(y1, high[1])
        left, top = x0 % FINE * SUPERSAMPLE, y0 % FINE * SUPERSAMPLE
        width, height = (x1 - x0) * SUPERSAMPLE, (y1 - y0) * SUPERSAMPLE
        large = self.empty_large[top : top + height, left : left + width].copy()
        origin = np.array([x0, y0], np.int32) * (SUPERSAMPLE << SUBPIXEL_BITS)
        _fill(large, self.large[touching] - origin, self.colours[touching])
        self.fine[y0:y1, x0:x1] = _halve(_halve(large))


@lru_cache(maxsize=1)
def _shrunk() -> np.ndarray:
    """What stock's shrinking makes of a plain area of each grey level, u8[256]: its rounding darkens by 2."""
    levels = []
    for level in range(256):
        surface = pygame.Surface((round(12 * PX_X), round(12 * PX_Y)))
        surface.fill((level, level, level))
        levels.append(pygame.transform.smoothscale(surface, (12, 12)).get_at((6, 6))[0])
    return np.array(levels, np.uint8)


def _grass_cell(side: int, bg: np.ndarray, grass: np.ndarray) -> np.ndarray:
    """One period of the empty field, u8[side, side, 4]: a patch of grass in the low corner."""
    cell = np.zeros((side, side, 4), np.uint8)
    cell[..., :3] = _shrunk()[np.asarray(bg, int)]
    cell[: side // 2, : side // 2, :3] = _shrunk()[np.asarray(grass, int)]
    return cell


def _halve(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Average blocks of 2 x 2 (OpenCV's fast path; twice it is quicker than once with 4 x 4)."""
    size = (image.shape[1] // 2, image.shape[0] // 2)
    return cv2.resize(image, size, dst=out, interpolation=cv2.INTER_AREA)


def _fixed_point(polygons: np.ndarray, texels: int) -> np.ndarray:
    """World units to OpenCV's fixed-point pixels, i32, for a texture of so many texels per period."""
    # OpenCV has whole coordinates at pixel centres, hence the half.
    pixels = (polygons + PLAYFIELD) * (texels / PERIOD) - 0.5
    return np.rint(pixels * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _fill(image: np.ndarray, polygons: np.ndarray, colours: np.ndarray) -> None:
    """Fill convex polygons, i32[n, 4, 2] in fixed point, in order; colours f64[n, 3] before stock's shrinking."""
    for points, colour in zip(polygons, _shrunk()[colours.astype(int)].tolist(), strict=True):
        cv2.fillConvexPoly(image, points, colour, cv2.LINE_8, SUBPIXEL_BITS)


# The observation's pixels that the car can cover, and the same on stock's surface.
CAR_ROWS, CAR_COLS = slice(66, 78), slice(44, 52)
CAR_LEFT, CAR_RIGHT = math.floor(CAR_COLS.start * PX_X), math.ceil(CAR_COLS.stop * PX_X)
CAR_TOP, CAR_BOTTOM = math.floor(CAR_ROWS.start * PX_Y), math.ceil(CAR_ROWS.stop * PX_Y)
HULL_COLOUR = (204, 0, 0)  # 0.8 * 255
N_STEER = 40  # pictures per radian of steering
N_PHASE = 32  # pictures per turn of a wheel

# All of the ground is seen but for what the car covers; and a half, since the conversion to u8 cuts off.
_GROUND = np.array([1, 0.5], np.float32)[:, None, None]


def _as_in_box2d(corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """World units; pygame fills a polygon a little differently if its corners come in another order than Box2D's."""
    return np.array(polygonShape(vertices=[(x * SIZE, y * SIZE) for x, y in corners]).vertices)


HULL = [_as_in_box2d(corners) for corners in (HULL_POLY1, HULL_POLY2, HULL_POLY3, HULL_POLY4)]
TYRE = _as_in_box2d([(-WHEEL_W, WHEEL_R), (WHEEL_W, WHEEL_R), (WHEEL_W, -WHEEL_R), (-WHEEL_W, -WHEEL_R)])


def _area_weights(start: int, stop: int, px: float, low: int, high: int) -> np.ndarray:
    """Share of each surface pixel low..high-1 in the mean over observation pixels start..stop-1, f32."""
    edges = np.arange(start, stop + 1)[:, None] * px
    pixels = np.arange(low, high)[None, :]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.maximum(overlap, 0) / px).astype(np.float32)


_CAR_DOWN = _area_weights(CAR_ROWS.start, CAR_ROWS.stop, PX_Y, CAR_TOP, CAR_BOTTOM)
_CAR_ACROSS = np.hstack(  # from RGBA to both halves of a picture: minus the coverage thrice, RGB
    [
        np.kron(_area_weights(CAR_COLS.start, CAR_COLS.stop, PX_X, CAR_LEFT, CAR_RIGHT).T, channels)
        for channels in (np.outer([0, 0, 0, -1 / 255], [1, 1, 1]), np.eye(4, 3))
    ]
).astype(np.float32)


def _draw_car_part(canvas: pygame.Surface, points: np.ndarray, zoom: float, colour: tuple[int, int, int]) -> None:
    """Fill a polygon given in the car's frame (world units)."""
    pixels = points * zoom + (WINDOW_W / 2 - CAR_LEFT, WINDOW_H / 4 - (WINDOW_H - CAR_BOTTOM))
    pygame.draw.polygon(canvas, _car_colour(colour), pixels.tolist())


@lru_cache(maxsize=4)
def _car_colour(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return (*_shrunk()[list(colour)].tolist(), 255)


def _draw_hull(canvas: pygame.Surface, zoom: float) -> None:
    for polygon in HULL:
        _draw_car_part(canvas, polygon, zoom, HULL_COLOUR)


def _draw_wheel(canvas: pygame.Surface, wheel: int, angle: float, phase: float, zoom: float) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])

    def draw(points: np.ndarray, colour: tuple[int, int, int]) -> None:
        _draw_car_part(canvas, points @ turn + np.array(WHEELPOS[wheel]) * SIZE, zoom, colour)

    draw(TYRE, WHEEL_COLOR)
    # The pale stripe is painted on 1.2 radians of the tyre and seen from above while sin < 0 (Car.draw).
    sin1, sin2, cos1, cos2 = math.sin(phase), math.sin(phase + 1.2), math.cos(phase), math.cos(phase + 1.2)
    if sin1 <= 0 or sin2 <= 0:
        end1 = WHEEL_R * (math.copysign(1, cos1) if sin1 > 0 else cos1)
        end2 = WHEEL_R * (math.copysign(1, cos2) if sin2 > 0 else cos2)
        stripe = [(-WHEEL_W, end1), (WHEEL_W, end1), (WHEEL_W, end2), (-WHEEL_W, end2)]
        draw(np.array(stripe) * SIZE, WHEEL_WHITE)


def _car_canvas() -> pygame.Surface:
    """The part of stock's surface around the car, transparent; like there, upside down until it is shrunk."""
    return pygame.Surface((CAR_RIGHT - CAR_LEFT, CAR_BOTTOM - CAR_TOP), pygame.SRCALPHA)


def _car_pixels(canvas: pygame.Surface) -> np.ndarray:
    """The upright RGBA of a canvas, u8[h, w, 4]."""
    data = pygame.image.tobytes(canvas, "RGBA", True)  # True: flip
    return np.frombuffer(data, np.uint8).reshape(canvas.get_height(), canvas.get_width(), 4)


def _shrink_car(pixels: np.ndarray) -> np.ndarray:
    """RGBA on stock's surface as a picture on the observation's pixels."""
    rows = _CAR_DOWN @ pixels.reshape(len(pixels), -1).astype(np.float32)
    return (rows @ _CAR_ACROSS).reshape(len(rows), 2, -1).swapaxes(0, 1).copy()


@lru_cache(maxsize=1)
def _hull_pixels() -> np.ndarray:
    canvas = _car_canvas()
    _draw_hull(canvas, FULL_ZOOM)
    return _car_pixels(canvas)


@lru_cache(maxsize=1)
def _beside_hull() -> np.ndarray:
    """1 where the hull leaves a surface pixel free, else 0, in all four channels."""
    return np.repeat(_hull_pixels()[..., 3:] == 0, 4, axis=2).astype(np.uint8)


@lru_cache(maxsize=1)
def _hull_picture() -> np.ndarray:
    return _shrink_car(_hull_pixels())


@lru_cache(maxsize=8192)
def _wheel_picture(wheel: int, steer: int, phase: int) -> np.ndarray:
    """What the hull leaves visible of a wheel, for a rounded angle and phase."""
    canvas = _car_canvas()
    _draw_wheel(canvas, wheel, steer / N_STEER, phase * 2 * math.pi / N_PHASE, FULL_ZOOM)
    return _shrink_car(_car_pixels(canvas) * _beside_hull())


def _draw_car(view: np.ndarray, car: Car, zoom: float) -> None:
    """Blend the car over the field: `view` is u8[12, 24], the observation where the car can be."""
    wheels = car.wheels
    picture = _car_picture([w.joint.angle for w in wheels], [w.phase for w in wheels], zoom)
    picture += _GROUND
    np.copyto(view, view * picture[0] + picture[1], casting="unsafe")


def _car_picture(angles: list[float], phases: list[float], zoom: float) -> np.ndarray:
    """The picture of the whole car."""
    if zoom == FULL_ZOOM:
        picture = _hull_picture().copy()
        for wheel in range(4):
            steer = round(angles[wheel] * N_STEER)
            phase = round(phases[wheel] * (N_PHASE / (2 * math.pi))) % N_PHASE
            picture += _wheel_picture(wheel, steer, phase)
        return picture
    canvas = _car_canvas()
    for wheel in range(4):
        _draw_wheel(canvas, wheel, angles[wheel], phases[wheel], zoom)
    _draw_hull(canvas, zoom)
    return _shrink_car(_car_pixels(canvas))


# ---- The dashboard, rows 84..95: its parts are drawn by pygame as in stock, shrunk, and cached.
DASH_TOP = round(DASH_ROW * PX_Y)  # 700
UNIT_X, UNIT_Y = WINDOW_W // 40, WINDOW_H // 40  # stock's dashboard grid
BOTTOM = WINDOW_H - UNIT_Y  # where vertical bars stand
SCORE_COLS = 12  # of the observation; exactly 125 surface pixels


@lru_cache(maxsize=4096)
def _bar(left: int, top: int, right: int, bottom: int, colour: tuple[int, int, int]) -> tuple[slice, np.ndarray]:
    """A filled bar with these corners on stock's surface: the observation's columns and u8[12, columns, 3]."""
    surface = pygame.Surface((WINDOW_W, WINDOW_H - DASH_TOP))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    pygame.draw.polygon(surface, colour, [(x, y - DASH_TOP) for x, y in corners])
    first = max(int(min(left, right) / PX_X), 0)
    stop = min(int(max(left, right) / PX_X) + 1, STATE_W)
    return slice(first, stop), _shrink(surface, STATE_W)[:, first:stop]


@lru_cache(maxsize=1)
def _font() -> pygame.font.Font:
    pygame.font.init()
    return pygame.font.Font(pygame.font.get_default_font(), 42)


@lru_cache(maxsize=4096)
def _score(text: str) -> np.ndarray:
    """The score's digits: u8[12, 12, 3], the lower left corner of the observation."""
    try:
        digits = _font().render(text, True, (255, 255, 255), (0, 0, 0))
    except pygame.error:  # another environment's close() has shut pygame down, and its fonts with it
        _font.cache_clear()
        digits = _font().render(text, True, (255, 255, 255), (0, 0, 0))
    place = digits.get_rect()
    place.center = (60, int(WINDOW_H - WINDOW_H * 2.5 / 40.0))
    surface = pygame.Surface((round(SCORE_COLS * PX_X), WINDOW_H - DASH_TOP))
    surface.blit(digits, place.move(0, -DASH_TOP))
    return _shrink(surface, SCORE_COLS)


def _shrink(surface: pygame.Surface, columns: int) -> np.ndarray:
    small = pygame.transform.smoothscale(surface, (columns, STATE_H - DASH_ROW))
    return np.ascontiguousarray(pygame.surfarray.array3d(small).swapaxes(0, 1))


def _draw_dashboard(dash: np.ndarray, car: Car, score: float) -> None:
    """Draw the dashboard over u8[12, 96, 3]; places, factors and colours as in stock's `_render_indicators`."""
    dash[:] = 0
    dash[:, :SCORE_COLS] = _score(f"{score:04.0f}")

    speed = math.hypot(*car.hull.linearVelocity)
    if speed > 1e-4:
        columns, strip = _bar(5 * UNIT_X, _bar_top(0.02 * speed), 6 * UNIT_X, BOTTOM, (255, 255, 255))
        dash[:, columns] = strip
    for place, wheel in enumerate(car.wheels, start=7):
        omega = float(wheel.omega)  # may be a numpy scalar, which is slow
        if abs(omega) > 1e-4:
            # Neighbouring bars share a column of surface pixels: leave it to the right one.
            right = (place + 1) * UNIT_X - (place < 10)
            colour = (0, 0, 255) if place < 9 else (51, 0, 255)
            columns, strip = _bar(place * UNIT_X, _bar_top(0.01 * omega), right, BOTTOM, colour)
            dash[:, columns] += strip
    steer = car.wheels[0].joint.angle
    if abs(steer) > 1e-4:
        _draw_horizontal_bar(dash, 20, -10.0 * steer, (0, 255, 0))
    turn = car.hull.angularVelocity
    if abs(turn) > 1e-4:
        _draw_horizontal_bar(dash, 30, -0.8 * turn, (255, 0, 0))


def _draw_horizontal_bar(dash: np.ndarray, place: int, value: float, colour: tuple[int, int, int]) -> None:
    end = min(max(int((place + value) * UNIT_X), 0), WINDOW_W)
    columns, strip = _bar(place * UNIT_X, WINDOW_H - 4 * UNIT_Y, end, WINDOW_H - 2 * UNIT_Y, colour)
    dash[:, columns] = strip


def _bar_top(value: float) -> int:
    """Where on stock's surface a vertical bar ends, kept within the dashboard."""
    return min(max(int(BOTTOM - UNIT_Y * value), DASH_TOP), WINDOW_H)


class _World(Box2D.b2World):
    """Box2D's world without pybox2d's leak of 2.4 kB a car.

    A fixture definition takes over its shape from Python but never frees it; Box2D itself copies the shape into the
    body. So every shape of a new car would stay for ever. Here Python gets it back.
    """

    def CreateDynamicBody(self, **kwargs: Any) -> Box2D.b2Body:
        """Create a body as `b2World` does; its fixture definitions are used up."""
        body = super().CreateDynamicBody(**kwargs)
        fixtures = kwargs.get("fixtures", [])
        for definition in fixtures if isinstance(fixtures, list) else [fixtures]:
            shape = definition.shape
            definition.shape = None
            shape.thisown = True  # freed with this last reference
        return body


# What Gymnasium's car has written in its code, in its units.
GRASS_GRIP = FRICTION_LIMIT * 0.6
STIFFNESS = 205000 * SIZE * SIZE
BRAKE_FORCE = 15


class _Car(Car):
    """Gymnasium's car with the arithmetic of a step in plain floats, and without reading from Box2D twice.

    The numbers are the same bit for bit: numpy's scalars, which are several times slower, round as Python's floats do.
    """

    def step(self, dt: float) -> None:
        """Turns the wheels, drives and brakes them, and applies their friction for `dt` seconds."""
        for wheel in self.wheels:
            turn = wheel.steer - wheel.joint.angle
            wheel.joint.motorSpeed = math.copysign(min(50.0 * abs(turn), 3.0), turn)

            grip = max([GRASS_GRIP, *(FRICTION_LIMIT * tile.road_friction for tile in wheel.tiles)])
            # The wheel's axes in the world: to its side, and forward, which is a quarter turn to the left of it.
            side_x, side_y = wheel.GetWorldVector((1, 0))
            v_x, v_y = wheel.linearVelocity
            v_forward = -side_y * v_x + side_x * v_y
            v_side = side_x * v_x + side_y * v_y

            omega = float(wheel.omega)
            power = dt * ENGINE_POWER * float(wheel.gas)
            # 5 keeps a standing wheel's acceleration finite.
            omega += power / WHEEL_MOMENT_OF_INERTIA / (abs(omega) + 5.0)
            self.fuel_spent += power
            if wheel.brake >= 0.9:
                omega = 0.0
            elif wheel.brake > 0:
                omega -= math.copysign(min(BRAKE_FORCE * float(wheel.brake), abs(omega)), omega)
            wheel.phase += omega * dt

            # What would bring the contact patch to rest, as far as the grip allows.
            forward = (omega * wheel.wheel_rad - v_forward) * STIFFNESS
            side = -v_side * STIFFNESS
            force = math.sqrt(forward * forward + side * side)
            self._leave_skid_mark(wheel, force > 2.0 * grip)
            if force > grip:
                forward, side = forward / force * grip, side / force * grip
            wheel.omega = omega - dt * forward * wheel.wheel_rad / WHEEL_MOMENT_OF_INERTIA
            wheel.ApplyForceToCenter((side * side_x - forward * side_y, side * side_y + forward * side_x), True)

    def _leave_skid_mark(self, wheel: Any, skids: bool) -> None:
        """What `render` draws on the road behind a sliding wheel: a line of up to 30 points after another."""
        if not skids:
            wheel.skid_start = wheel.skid_particle = None
            return
        mark, on_grass = wheel.skid_particle, not wheel.tiles
        if mark and mark.grass == on_grass and len(mark.poly) < 30:
            mark.poly.append(tuple(wheel.position))
        elif wheel.skid_start is None:
            wheel.skid_start = wheel.position
        else:
            wheel.skid_particle = self._create_particle(wheel.skid_start, wheel.position, on_grass)
            wheel.skid_start = None


class FastCarRacing(CarRacing):
    """Gymnasium's CarRacing-v3, some 25 to 30 times faster, by its drawing of the observations.

    Takes the arguments of `gymnasium.envs.box2d.car_racing.CarRacing`. For the same seed and actions the tracks,
    rewards, terminations, truncations and infos equal stock's exactly; observations (u8[96, 96, 3], RGB, 0..255)
    differ by well under one grey level on average. `render` ("human", "rgb_array") is stock's.
    An environment takes about 30 MB.

    With `dashboard=False` rows 84..95 of an observation stay black, for callers that crop them.
    """

    def __init__(self, *args: Any, dashboard: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dashboard = dashboard
        self.world = _World((0, 0), contactListener=self.contactListener_keepref)
        self._field: _Field | None = None  # made at the first reset
        self._before: Mapping[str, Any] = {}  # state of the random numbers before the track that is there was made
        self._after: Mapping[str, Any] = {}  # and after it
        self._again = False  # whether the reset under way wants that track once more

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """As stock's. A track that is asked for twice in a row is not made twice."""
        observation, info = super().reset(seed=seed, options=options)
        assert self.car is not None
        self.car.__class__ = _Car  # reset names Gymnasium's class; ours has the same attributes
        return observation, info

    def _destroy(self) -> None:
        """Remove the car, and the track unless the one to come is the same."""
        before = self.np_random.bit_generator.state
        self._again = bool(self.road) and before == self._before and not self.domain_randomize
        if self._again:
            assert self.car is not None
            self.car.destroy()
        else:
            super()._destroy()
            self._before = before

    def _create_track(self) -> bool:
        if self._again:
            self._take_track_again()
            return True
        if not super()._create_track():
            return False  # no closed loop: stock tries again
        self._after = self.np_random.bit_generator.state
        if self._field is None:
            self._field = _Field()
        # Touching a tile writes into `tile.color`. Make those arrays rows of one array, so that a change
        # is seen by a single comparison. The same objects stay in `road_poly`, which stock's modes draw from.
        self._colours = np.array([colour for _, colour in self.road_poly], np.float64)
        rows = {id(colour): row for (_, colour), row in zip(self.road_poly, self._colours, strict=True)}
        self.road_poly = [(polygon, rows[id(colour)]) for polygon, colour in self.road_poly]
        tiles: list = self.road or []
        for tile in tiles:
            tile.color = rows[id(tile.color)]
        self._new_colours, self._road_poly = self._colours.copy(), self.road_poly
        self._painted_colours = self._colours.copy()
        polygons = np.array([polygon for polygon, _ in self.road_poly])
        self._field.new_track(polygons, self._colours, self.bg_color, self.grass_color)
        return True

    def _take_track_again(self) -> None:
        """Resets the current track to its state before the first step."""
        tiles: list = self.road or []
        for tile in tiles:
            tile.road_visited = False
        assert self._field is not None
        self.road_poly = self._road_poly
        self._colours[:] = self._painted_colours[:] = self._new_colours
        self._field.clear()
        self.np_random.bit_generator.state = self._after

    def _render(self, mode: str) -> np.ndarray | bool | None:
        if mode != "state_pixels" or self._field is None:
            return super()._render(mode)
        frame = np.empty((STATE_H, STATE_W, 3), np.uint8)
        zoom = 0.1 * SCALE * max(1 - self.t, 0) + FULL_ZOOM * min(self.t, 1)
        if self.t > 1 - 1e-9:  # fifty additions of 1/50 miss 1 by a rounding
            zoom = FULL_ZOOM
        assert self.car is not None
        self._draw_field(frame[:DASH_ROW], self.car, zoom)
        # Three channels a pixel as columns: numpy is faster on long rows.
        car_pixels = frame.reshape(STATE_H, -1)[CAR_ROWS, 3 * CAR_COLS.start : 3 * CAR_COLS.stop]
        _draw_car(car_pixels, self.car, zoom)
        if self._dashboard:
            _draw_dashboard(frame[DASH_ROW:], self.car, self.reward)
        else:
            frame[DASH_ROW:] = 0
        return frame

    def _draw_field(self, view: np.ndarray, car: Car, zoom: float) -> None:
        field, hull = self._field, car.hull
        assert field is not None
        if (self._colours != self._painted_colours).any():
            for index in np.flatnonzero((self._colours != self._painted_colours).any(axis=1)).tolist():
                field.repaint(index)
            self._painted_colours[:] = self._colours

        (x, y), cos, sin = hull.position, math.cos(hull.angle), math.sin(hull.angle)
        oversample = 1 if zoom == FULL_ZOOM else 2
        # World units between neighbouring samples.
        right, down = PX_X / zoom / oversample, PX_Y / zoom / oversample
        if zoom >= FINE_FROM_ZOOM:
            # The view's middle is 30 pixels before the car; 42 and 48 are half its height and width. One unit more,
            # for a sample takes in the texels around it.
            ahead = 30 * PX_Y / zoom
            radius = math.hypot(48 * PX_X, 42 * PX_Y) / zoom + 1
            field.paint_around(x - sin * ahead, y + cos * ahead, radius)
            texture = field.fine
        else:
            level = int(math.log2(max((right + down) / 2 * COARSE / PERIOD, 1)) + 0.5)
            texture = field.coarse[min(level, N_COARSE - 1)]
        scale = len(texture) / (2 * PLAYFIELD)  # texels a unit
        right, down = right * scale, down * scale
        # Sample (i, j) of the view -> texel; the car is at column 48, row 72 of the observation (pixel edges).
        ci, cj = 48 * oversample - 0.5, 72 * oversample - 0.5
        xi, xj, yi, yj = cos * right, sin * down, sin * right, -cos * down
        matrix = np.array(
            [
                [xi, xj, (x + PLAYFIELD) * scale - 0.5 - xi * ci - xj * cj],
                [yi, yj, (y + PLAYFIELD) * scale - 0.5 - yi * ci - yj * cj],
            ]
        )
        size = (STATE_W * oversample, DASH_ROW * oversample)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        sampled = cv2.warpAffine(texture, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT)
        if oversample == 2:
            sampled = _halve(sampled)
        cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB, dst=view)
