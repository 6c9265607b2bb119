"""Damage to files, drawn from a seed: what disks, cables and editors do, and what somebody might put in their place."""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

Rng = np.random.Generator
Damage = Callable[[bytearray, Rng], bytearray]


def flip_bit(content: bytearray, rng: Rng) -> bytearray:
    content[place(content, rng)] ^= 1 << int(rng.integers(8))
    return content


def flip_bits(content: bytearray, rng: Rng) -> bytearray:
    for _ in range(int(rng.integers(2, 20))):
        flip_bit(content, rng)
    return content


def overwrite(content: bytearray, rng: Rng) -> bytearray:
    """A stretch of zeros, of ones, or of noise."""
    first, stop = stretch(content, rng)
    fill = (b"\0", b"\xff", rng.bytes(1))[rng.integers(3)] * (stop - first)
    content[first:stop] = fill if rng.random() < 0.7 else rng.bytes(stop - first)
    return content


def truncate(content: bytearray, rng: Rng) -> bytearray:
    return content[: place(content, rng)]


def extend(content: bytearray, rng: Rng) -> bytearray:
    return content + rng.bytes(int(rng.integers(1, 300)))


def cut_out(content: bytearray, rng: Rng) -> bytearray:
    first, stop = stretch(content, rng)
    del content[first:stop]
    return content


def double(content: bytearray, rng: Rng) -> bytearray:
    first, stop = stretch(content, rng)
    content[stop:stop] = content[first:stop]
    return content


def swap(content: bytearray, rng: Rng) -> bytearray:
    """Two stretches of equal length change places."""
    length = int(rng.integers(1, max(2, min(600, len(content) // 3))))
    a, b = sorted(int(at) for at in rng.integers(0, len(content) - length, 2))
    if a + length <= b:
        content[a : a + length], content[b : b + length] = content[b : b + length], content[a : a + length]
    return content


DAMAGES: tuple[Damage, ...] = (
    *(flip_bit, flip_bit, flip_bit, flip_bits, overwrite, overwrite),
    *(truncate, extend, cut_out, double, swap),
)


def damaged(whole: bytes, seed: int) -> bytes:
    """`whole` with one damage of `DAMAGES`; now and then two."""
    rng = np.random.default_rng(seed)
    content = bytearray(whole)
    for _ in range(1 + (rng.random() < 0.1)):
        if len(content) > 8:
            content = DAMAGES[rng.integers(len(DAMAGES))](content, rng)
    return bytes(content)


def place(content: bytearray, rng: Rng) -> int:
    """Anywhere; every other time near the start or the end, where formats keep what they live by."""
    size = len(content)
    edge = min(size, 400)
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.integers(edge))
    if kind == 1:
        return size - 1 - int(rng.integers(edge))
    return int(rng.integers(size))


def stretch(content: bytearray, rng: Rng) -> tuple[int, int]:
    first = place(content, rng)
    return first, min(len(content), first + int(rng.integers(1, 600)))


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, (f"touch '{self.flag}'",)


def malicious(flag: Path, names: tuple[str, ...]) -> Iterator[bytes]:
    """Files whose pickles would run code: bare, in torch's archives of today and of old, in numpy's under `names`."""
    bomb = Bomb(flag)
    yield pickle.dumps(bomb)
    yield pickle.dumps({"format": 1, "kind": "vae", "model": bomb}, protocol=2)
    for new in (True, False):
        content = io.BytesIO()
        torch.save({"format": 1, "kind": "vae", "model": bomb}, content, _use_new_zipfile_serialization=new)
        yield content.getvalue()
    arrays = io.BytesIO()
    np.savez(arrays, **{name: np.array([bomb], dtype=object) for name in names})  # type: ignore[arg-type]
    yield arrays.getvalue()
    array = io.BytesIO()
    np.save(array, np.array([bomb], dtype=object))
    yield array.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("archive/data.pkl", "data.pkl", *(f"{name}.npy" for name in names)):
            file.writestr(name, pickle.dumps(bomb))
    yield archive.getvalue()
