"""Schemas of JSON values: what a file has to hold before it is used."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

Schema = Any
"""Schema of a JSON value. One of: a type; a tuple of schemas, of which one must fit; a list with the schema of its
items; a dict with the schemas of an object's fields by name ("name?": optional), or with `...` as the key for all
fields; a function that returns a bool."""

NUMBER = (int, float)
LARGEST = 1e100
"""Largest absolute value that counts as a plausible number."""


def is_histogram(value: Any) -> bool:
    """Whether a JSON value is a histogram: counts between ascending edges."""
    if not fits(value, {"edges": [NUMBER], "counts": [NUMBER]}):
        return False
    edges = value["edges"]
    return len(edges) == len(value["counts"]) + 1 > 1 and all(low < high for low, high in pairwise(edges))


def fits(value: Any, schema: Schema) -> bool:
    """Whether a JSON value has a schema; additional fields of an object are allowed."""
    if isinstance(schema, tuple):
        return any(fits(value, one) for one in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(item, schema[0]) for item in value)
    if isinstance(schema, type):
        return isinstance(value, schema) and not (isinstance(value, int | float) and abs(value) > LARGEST)
    if not isinstance(schema, dict):
        return bool(schema(value))
    if not isinstance(value, dict):
        return False
    if ... in schema:
        return all(fits(item, schema[...]) for item in value.values())
    return all(
        fits(value[key], one) if (key := name.removesuffix("?")) in value else key != name
        for name, one in schema.items()
    )
