"""Checksums of whole files and of the archives (*.npz, *.pt) that numpy and torch read unchecked."""

from __future__ import annotations

import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np


def check_archive(path: Path) -> None:
    """Checks every member of a zip archive (*.npz, *.pt) against its checksum in the archive.

    It is needed since numpy and torch read only the bytes that the headers name, and torch checks no checksums.

    Raises:
        Exception: Of various types, when the archive is not complete.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None or not archive.namelist():
            raise ValueError(f"the checksum of {damaged} does not match")
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_size(archive, member)


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """ValueError unless an array has the size in its header, since numpy allocates that size before it reads."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} does not have the size that its header gives")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
