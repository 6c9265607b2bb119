"""M's step in the dream, on its own samples, for many dreams at once. The environment and the evolution use it.

    [z, a, h] ─one product→ gates → c', h';  h' ─one product→ mixtures and heads;  z' drawn from the mixtures

The noise comes from the caller, who decides whether two dreams share it. This module has no state of a dream.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from wm.memory.mdnrnn import MDNRNN, check_temperature
from wm.store.starts import Starts


class Dreamt(NamedTuple):
    """The result of a dreamt step; the leading dimensions are those of the call.

    Attributes:
        z: f32[...,Z], the next latent, drawn.
        h: f32[...,H], M's recurrent output.
        c: f32[...,H], M's LSTM cell.
        reward: f32[...], expected reward of the step if it does not terminate the episode.
        terminated: f32[...], probability that the step terminates the episode.
    """

    z: Tensor
    h: Tensor
    c: Tensor
    reward: Tensor
    terminated: Tensor


class FusedMDNRNN:
    """M's weights in the layout for dreaming.

    A step equals `MDNRNN.forward` over one step followed by `wm.memory.mdnrnn.sample`. But one matrix product gives all
    gates and one gives all heads, in `dtype`, and only the chosen component of a mixture is computed.

    Attributes:
        z: Z, size of the latent vector.
        hidden: H, LSTM units.
        actions: A, length of the action vector.
        device: Device of the computation.
    """

    def __init__(
        self,
        model: MDNRNN,
        *,
        miss: float,
        hit: float,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Copies M's weights.

        Args:
            model: M.
            miss: Mean reward of a step that touches no tile. Unused with a value head, which predicts the reward.
            hit: Mean reward of a step that touches a tile. Unused with a value head.
            temperature: tau > 0 of the samples: logits/tau and sigma·sqrt(tau) (paper, section 4).
            device: Device of the computation.
            dtype: Type of the matrix products: float32, or bfloat16 where it is faster. All else is float32.

        Raises:
            ValueError: The temperature is not above 0 and finite.
        """
        check_temperature(temperature)
        self.z, self.hidden, self.actions, self.device = model.z, model.hidden, model.actions, torch.device(device)
        self._mixtures, self._floor, self._dtype = model.mixtures, model.logsigma_floor, dtype
        self._spread = math.sqrt(temperature)
        self._pays = (miss, hit) if model.reward == "tile" else None
        h, lstm = model.hidden, dict(model.lstm.named_parameters())
        # tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid is six times as fast as its tanh on a CPU. So all four gates
        # are sigmoids, and the rows of g (in torch's order i, f, g, o) are doubled.
        double = torch.ones(4 * h, device=lstm["bias_ih_l0"].device)
        double[2 * h : 3 * h] = 2
        gates = torch.cat([lstm["weight_ih_l0"], lstm["weight_hh_l0"]], 1) * double[:, None]  # [4H,Z+A+H]
        gate_bias = (lstm["bias_ih_l0"] + lstm["bias_hh_l0"]) * double  # [4H]
        parts: list[nn.Linear] = [model.mixture_head, model.reward_head, model.terminated_head]
        # [3KZ+2,H] and [3KZ+2]
        heads, head_bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        # The first rows give the logits; the temperature is folded into their weights.
        factor = torch.ones(len(heads), device=heads.device)
        factor[: model.mixtures * model.z] = 1 / temperature

        def take(values: Tensor) -> Tensor:
            return values.detach().to(self.device, dtype).contiguous().clone()

        self._gates, self._gate_bias = take(gates), take(gate_bias)
        self._heads, self._head_bias = take(heads * factor[:, None]), take(head_bias * factor)

    def step(
        self,
        z: Tensor,
        h: Tensor,
        c: Tensor,
        a: Tensor,
        uniform: Tensor,
        noise: Tensor,
        head_mask: Tensor | None = None,
    ) -> Dreamt:
        """Dreams one step; the arguments are not changed.

        Args:
            z: f32[...,Z], latents before the actions.
            h: f32[...,H], M's recurrent output before the step.
            c: f32[...,H], M's LSTM cell before the step.
            a: f32[...,A], the actions.
            uniform: f32[...,Z] in [0, 1), chooses the components; it is broadcast over leading dimensions.
            noise: f32[...,Z], standard normal, broadcast as `uniform`.
            head_mask: f32[...,H], factors on the h that the heads read (dropout), broadcast as `uniform`. The returned
                h is not masked. None: 1.
        """
        h, c = self.advance(z, h, c, a)
        z, reward, terminated = self.draw(self.expect(h, head_mask), uniform, noise)
        return Dreamt(z, h, c, reward, terminated)

    def advance(self, z: Tensor, h: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The first part of `step`, the LSTM: h and c, each f32[...,H], after z and a."""
        x = torch.cat([z, a, h], -1).to(self._dtype)  # [...,Z+A+H]
        i, f, g, o = linear(x, self._gates, self._gate_bias).float().sigmoid_().split(self.hidden, -1)  # [...,H] each
        c = (f * c).addcmul_(i, g, value=2).sub_(i)  # f c + i (2 g - 1), [...,H]
        h = (c + c).sigmoid_().mul_(2).sub_(1).mul_(o)  # o tanh(c), [...,H]
        return h, c

    def expect(self, h: Tensor, head_mask: Tensor | None = None) -> Tensor:
        """The second part of `step`, the outputs of all heads: f32[...,3KZ+2], which only `draw` and `mean` read."""
        seen = h if head_mask is None else h * head_mask
        return linear(seen.to(self._dtype), self._heads, self._head_bias).float()  # [...,3KZ+2]

    def mean(self, raw: Tensor) -> Tensor:
        """The mean f32[...,Z] of the mixtures in `raw` of `expect`, at the temperature of the samples."""
        size, by_component = self._mixtures * self.z, (self._mixtures, self.z)
        weights = raw[..., :size].unflatten(-1, by_component).softmax(-2)  # [...,K,Z]
        return (weights * raw[..., size : 2 * size].unflatten(-1, by_component)).sum(-2)  # [...,K,Z] to [...,Z]

    def draw(self, raw: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The third part of `step`: z f32[...,Z], reward f32[...] and probability of termination f32[...]."""
        size = self._mixtures * self.z
        # [...,KZ] three times, then [...,1] twice
        logits, mu, logsigma, reward, terminated = raw.split([size, size, size, 1, 1], -1)
        by_component = (self._mixtures, self.z)
        # The component is the number of cumulative weights <= the uniform draw. The last weight, which is 1, is left
        # out, so that rounding cannot give an index past the last component.
        cumulative = logits.unflatten(-1, by_component).softmax(-2).cumsum(-2)[..., :-1, :]  # [...,K-1,Z]
        component = (uniform.unsqueeze(-2) >= cumulative).sum(-2, keepdim=True)  # [...,1,Z]
        mu = mu.unflatten(-1, by_component).gather(-2, component).squeeze(-2)  # [...,K,Z] to [...,Z]
        logsigma = logsigma.unflatten(-1, by_component).gather(-2, component).squeeze(-2)  # [...,K,Z] to [...,Z]
        sigma = (self._floor + softplus(logsigma - self._floor)).exp()  # [...,Z]
        z = mu + (sigma * self._spread) * noise  # [...,Z]

        paid = reward.squeeze(-1)  # [...,1] to [...]
        if self._pays is not None:
            miss, hit = self._pays
            paid = miss + (hit - miss) * paid.sigmoid()
        return z, paid, terminated.squeeze(-1).sigmoid()


def make_dreamer(
    model: MDNRNN,
    starts: Starts,
    temperature: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FusedMDNRNN:
    """M's dreamer with the mean rewards of the recorded steps."""
    miss, hit, _ = starts.rewards.tolist()
    return FusedMDNRNN(model, miss=miss, hit=hit, temperature=temperature, device=device, dtype=dtype)
