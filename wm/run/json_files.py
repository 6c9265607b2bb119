"""JSON files and files of one JSON object a line, each object with its checksum."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm.run.errors import UserError, check_read, first_line, writing
from wm.run.files import atomic
from wm.run.schema import Schema, fits

CHECKSUM = "crc32"
"""Last field of every JSON object that is written: the CRC-32 of the other fields. Older files have none."""


def write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically as indented JSON; an object gets its checksum."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_checked(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, **fields: Schema) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        **fields: Schemas of its required fields, by name. If any are given, it must be an object.

    Raises:
        UserError: It is damaged, or lacks one of `fields`.
    """
    try:
        return _parsed(path.read_bytes(), fields)
    except (ValueError, RecursionError, OSError) as error:
        check_read(path, error)
        raise UserError(f"{path} cannot be read as JSON ({first_line(error)}): remove it or restore it.") from error


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends an object with its checksum to a file with one JSON object per line.

    A partial line that a kill left is removed first. The line is flushed to disk, so that a checkpoint that is written
    later never exists without it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json_line(value).encode())
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path, **fields: Schema) -> list[dict[str, Any]]:
    """Reads the objects of a file with one JSON object per line; [] when it is missing.

    A line without a line end, which a kill cut off, is left out.

    Args:
        path: The file.
        **fields: Schemas of the required fields of each object, by name.

    Raises:
        UserError: A line is damaged, or lacks one of `fields`.
    """
    if not path.exists():
        return []
    found = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        check_read(path, error)
        raise UserError(f"{path} cannot be read ({error.strerror}): remove it or restore it.") from error
    for number, line in enumerate(lines, 1):
        try:
            value = _parsed(line, fields)
            if not isinstance(value, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            reason = first_line(error)
            raise UserError(f"{path} is damaged in line {number} ({reason}): restore the line or remove it.") from error
        found.append(value)
    return found


def json_line(value: Mapping[str, Any]) -> str:
    """An object with its checksum, as a line."""
    return json.dumps(_checked(dict(value)), allow_nan=False) + "\n"


def _checked(value: Any) -> Any:
    return {**value, CHECKSUM: _checksum(value)} if isinstance(value, dict) else value


def _checksum(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def _parsed(content: bytes, fields: Mapping[str, Schema]) -> Any:
    """Parses JSON and removes the checksum; ValueError when it is not JSON or the checksum does not match."""
    value = json.loads(content, parse_constant=_no_number)
    if isinstance(value, dict):
        last = value.popitem() if value else ("", None)
        # Recognised by its value, since its name may be damaged.
        if re.fullmatch("[0-9a-f]{8}", str(last[1])):
            if last != (CHECKSUM, _checksum(value)):
                raise ValueError(f"its {CHECKSUM} does not match, so it was changed after it was written")
        elif last[0]:
            value[last[0]] = last[1]
        if CHECKSUM in value:
            raise ValueError(f"its {CHECKSUM} is damaged")
    for name, schema in fields.items():
        if not fits(value, {name: schema}):
            raise ValueError(f"field {name!r} is missing or has the wrong type")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")
