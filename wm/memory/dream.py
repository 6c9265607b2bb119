"""M dreaming: its step on what it has drawn itself, for many dreams at once. The environment and the evolution use it.

    [z, a, h] ─one product→ gates → c', h';  h' ─one product→ mixtures and heads;  z' drawn from the mixtures

The noise comes from outside: who dreams says whether two dreams share it. Nothing here remembers a dream.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from wm.memory.mdnrnn import MDNRNN, check_temperature


class Dreamt(NamedTuple):
    """What a dreamed step leads to; the leading dimensions are those of the call.

    Attributes:
        z: f32[...,Z], the next latent, drawn.
        h: f32[...,H], M's output.
        c: f32[...,H], its cell.
        reward: f32[...], the expected reward of the step if it does not terminate the episode.
        terminated: f32[...], probability that it does.
    """

    z: Tensor
    h: Tensor
    c: Tensor
    reward: Tensor
    terminated: Tensor


class Dreamer:
    """M's weights laid out for dreaming.

    A step is `MDNRNN.forward` over one step and `wm.memory.mdnrnn.sample`, but one product of matrices gives all
    gates and one all heads, in `dtype`; only the chosen component of a mixture is looked at.

    Attributes:
        z: Z, size of the latent vector.
        hidden: H, LSTM units.
        actions: A, length of the action vector.
        device: Where it dreams.
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
            miss: What a step that touches no tile earns. A value head says the reward itself; then this and `hit`
                are not looked at.
            hit: What a step that touches a tile earns, on average.
            temperature: tau > 0 of what is drawn: logits/tau and sigma·sqrt(tau) (paper, section 4).
            device: Where to dream.
            dtype: Of the products of matrices: float32, or bfloat16 where that is faster. All else is float32.

        Raises:
            ValueError: The temperature is not above 0 and finite.
        """
        check_temperature(temperature)
        self.z, self.hidden, self.actions, self.device = model.z, model.hidden, model.actions, torch.device(device)
        self._mixtures, self._floor, self._dtype = model.mixtures, model.logsigma_floor, dtype
        self._spread = math.sqrt(temperature)
        self._pays = (miss, hit) if model.reward == "tile" else None
        h, lstm = model.hidden, dict(model.lstm.named_parameters())
        # tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid is six times as fast as its tanh on a CPU: so all four gates
        # are sigmoids, and the rows of g (in torch's order i, f, g, o) are doubled.
        double = torch.ones(4 * h, device=lstm["bias_ih_l0"].device)
        double[2 * h : 3 * h] = 2
        gates = torch.cat([lstm["weight_ih_l0"], lstm["weight_hh_l0"]], 1) * double[:, None]
        gate_bias = (lstm["bias_ih_l0"] + lstm["bias_hh_l0"]) * double
        parts: list[nn.Linear] = [model.mixture_head, model.reward_head, model.terminated_head]
        heads, head_bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        # The logits are the first rows; their temperature is a factor of the weights.
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
        """Dreams one step; what it is given stays as it is.

        Args:
            z: f32[...,Z], latents that are acted on.
            h: f32[...,H], M's output before.
            c: f32[...,H], M's cell before.
            a: f32[...,A], the actions.
            uniform: f32[...,Z] in [0, 1), chooses the components; it may be broadcast over leading dimensions.
            noise: f32[...,Z], standard normal, as `uniform`.
            head_mask: f32[...,H], factors on the h that the heads read (dropout), broadcast as `uniform`. The returned
                h is not masked. None: 1.
        """
        h, c = self.remember(z, h, c, a)
        z, reward, terminated = self.draw(self.expect(h, head_mask), uniform, noise)
        return Dreamt(z, h, c, reward, terminated)

    def remember(self, z: Tensor, h: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The first part of `step`, the LSTM: h and c after z and a."""
        x = torch.cat([z, a, h], -1).to(self._dtype)
        i, f, g, o = linear(x, self._gates, self._gate_bias).float().sigmoid_().split(self.hidden, -1)
        c = (f * c).addcmul_(i, g, value=2).sub_(i)  # f c + i (2 g - 1)
        h = (c + c).sigmoid_().mul_(2).sub_(1).mul_(o)  # o tanh(c)
        return h, c

    def expect(self, h: Tensor, head_mask: Tensor | None = None) -> Tensor:
        """The second part, the heads side by side: f32[...,3KZ+2], for `draw` and `mean` alone to read."""
        seen = h if head_mask is None else h * head_mask
        return linear(seen.to(self._dtype), self._heads, self._head_bias).float()

    def mean(self, raw: Tensor) -> Tensor:
        """The mean f32[...,Z] of the mixtures that `expect` gave, at the temperature that z is drawn at."""
        size, by_component = self._mixtures * self.z, (self._mixtures, self.z)
        weights = raw[..., :size].unflatten(-1, by_component).softmax(-2)
        return (weights * raw[..., size : 2 * size].unflatten(-1, by_component)).sum(-2)

    def draw(self, raw: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The third part: z, reward and probability of terminating, of what `expect` gave."""
        size = self._mixtures * self.z
        logits, mu, logsigma, reward, terminated = raw.split([size, size, size, 1, 1], -1)
        by_component = (self._mixtures, self.z)
        # The component is the number of cumulative weights that the uniform draw has reached; the last of them,
        # which is 1, is left out, so that rounding cannot lead past the last component.
        cumulative = logits.unflatten(-1, by_component).softmax(-2).cumsum(-2)[..., :-1, :]
        component = (uniform.unsqueeze(-2) >= cumulative).sum(-2, keepdim=True)
        mu = mu.unflatten(-1, by_component).gather(-2, component).squeeze(-2)
        logsigma = logsigma.unflatten(-1, by_component).gather(-2, component).squeeze(-2)
        sigma = (self._floor + softplus(logsigma - self._floor)).exp()
        z = mu + (sigma * self._spread) * noise

        paid = reward.squeeze(-1)
        if self._pays is not None:
            miss, hit = self._pays
            paid = miss + (hit - miss) * paid.sigmoid()
        return z, paid, terminated.squeeze(-1).sigmoid()
