"""The true state of CarRacing, as the simulator knows it: road, car, and what lies ahead."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


BACKWARDS = math.pi / 2
"""Steps with at least this angle (rad) to the road's direction do not count. A road looks the same in both directions,
so a car that has turned round sees the road's right side on its left, and a frame does not show the difference."""

OFF_ROAD = 12.0
"""Steps at this distance (units) from the centre line or beyond do not count. The road ends at 6.7, so such a car is in
the grass; far out, the nearest piece of road may be a different one, or out of the picture."""


def is_on_road(env: gym.Env[Any, Any]) -> bool:
    """Whether a wheel of the car touches the road now."""
    return any(wheel.tiles for wheel in env.unwrapped.car.wheels)  # type: ignore[attr-defined]


AHEAD = (5, 10, 15)
"""Distances ahead of the car, in tiles of 3.5 units, at which the road's bend is probed. The frame shows ten tiles of a
straight road."""

TARGETS = {
    "lateral": "units",
    "heading": "rad",
    "speed": "units/s",
    "slip": "units/s",
    "turn rate": "rad/s",
    **{f"bend, {tiles} tiles": "rad" for tiles in AHEAD},
}
"""Units of the probed quantities by name, in the order of all arrays and tables."""


class Road:
    """The centre line of a track as a closed polygon. A place on it is a number of tiles from the start, a float."""

    def __init__(self, track: ArrayLike) -> None:
        """Takes CarRacing's track, f64[N,4]: angle seen from the middle, direction (0: along y), x, y of each tile."""
        _, directions, *places = np.array(track, np.float64).T
        self._places = np.stack(places, axis=1)
        self._steps = np.roll(self._places, -1, axis=0) - self._places
        # The first direction is appended again, after a full turn.
        self._directions = np.unwrap(np.append(directions, directions[0]))
        self._tiles = np.arange(len(self._directions))

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The place of the road nearest to (x, y) in tiles, 0 to N, and the distance of (x, y) to its left in units."""
        offset = (x, y) - self._places
        share = np.clip((offset * self._steps).sum(axis=1) / (self._steps**2).sum(axis=1), 0, 1)
        away = offset - share[:, None] * self._steps
        distance = np.hypot(away[:, 0], away[:, 1])
        i = int(distance.argmin())
        left = self._steps[i, 0] * away[i, 1] - self._steps[i, 1] * away[i, 0]
        return i + float(share[i]), math.copysign(distance[i], left)

    def direction(self, place: float) -> float:
        """The road's direction at a place in rad, interpolated between tiles; each lap adds a full turn."""
        lap, tile = divmod(place, len(self._places))
        turn = self._directions[-1] - self._directions[0]
        return float(np.interp(tile, self._tiles, self._directions) + lap * turn)


def true_state(road: Road, hull: Any) -> Array:
    """The state of the car, a Box2D body, on a road: f64[8], in the order of `TARGETS`.

    lateral: distance from the centre line. heading: angle to the road's direction, -pi to pi. speed, slip: velocity
    along and across the car. bend: change of the road's direction from here to this number of tiles ahead.
    """
    (x, y), (v_x, v_y), angle = hull.position, hull.linearVelocity, hull.angle
    sin, cos = math.sin(angle), math.cos(angle)
    place, lateral = road.nearest(x, y)
    direction = road.direction(place)
    heading = math.remainder(angle - direction, 2 * math.pi)
    bends = [road.direction(place + tiles) - direction for tiles in AHEAD]
    return np.array([lateral, heading, cos * v_y - sin * v_x, -cos * v_x - sin * v_y, hull.angularVelocity, *bends])
