"""The device that torch computes on, its precision, and seeds derived from the run's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU. It also makes a GPU's convolutions deterministic and float32."""
    torch.backends.cudnn.deterministic = True  # a resumed training must give the same weights
    torch.backends.cudnn.allow_tf32 = False  # latents must equal those of the agent; V trains in bfloat16 anyway
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on the device: on GPUs, and on CPUs with AVX512-BF16 or AMX.

    The capabilities decide, and not a timing, since results must not depend on one.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context manager in which matrix products and convolutions run in bfloat16 where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts` only; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(make: Callable[[], Model], seed: int) -> Model:
    """Builds a network with initial weights from `seed`; torch's global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
