"""One dreamt step."""

from __future__ import annotations

from torch import Tensor

from wm.contracts import Memory, Noise, State


def dream_step(
    memory: Memory, state: State, action: Tensor, noise: Noise, mask: Tensor | None = None
) -> tuple[State, Tensor, Tensor]:
    """Advance, expect, draw.

    Args:
        memory: M.
        state: Its state, f32[...,size] of each name.
        action: f32[...,A].
        noise: All randomness, f32[...,size] of each name of `memory.chances`.
        mask: f32[...,masked], factors on what the heads read (dropout); None: 1.

    Returns:
        The next state, the expected reward f32[...] of a step that does not terminate the episode, and the probability
        f32[...] that it does.
    """
    state = memory.advance(state, action)
    return memory.draw(state, memory.expect(state, mask), noise)
