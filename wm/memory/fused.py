"""M's step in the dream, on its own samples, for many dreams at once. The environment and the evolution use it.

    [z, a, h] ─one product→ gates → c', h';  h' ─one product→ mixtures and heads;  z' drawn from the mixtures

The noise comes from the caller, who decides whether two dreams share it. This module has no state of a dream.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from wm.contracts import Chances, Floats, Noise, Pays, State
from wm.memory.mdnrnn import MDNRNN, check_temperature


class FusedMDNRNN:
    """M's weights in the layout for dreaming.

    `advance`, `expect` and `draw` together equal `MDNRNN.forward` over one step followed by `wm.memory.mdnrnn.sample`.
    But one matrix product gives all gates and one gives all heads, in `dtype`, and only the chosen component of a
    mixture is computed. A state holds z f32[...,Z], h and c f32[...,H]; C reads [z; h].

    Attributes:
        features: F = Z+H.
        masked: H, the units of h that the heads read.
        bound: f32[F], largest absolute values of [z; h].
        chances: "uniform" chooses the components, "noise" is the distance from their means.
    """

    features: int
    masked: int
    bound: Floats
    chances: Chances

    def __init__(
        self,
        model: MDNRNN,
        *,
        pays: Pays,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Copies M's weights.

        Args:
            model: M.
            pays: Mean rewards of the record. Unused with a value head, which predicts the reward.
            temperature: tau > 0 of the samples: logits/tau and sigma·sqrt(tau) (paper, section 4).
            device: Device of the computation.
            dtype: Type of the matrix products: float32, or bfloat16 where it is faster. All else is float32.

        Raises:
            ValueError: The temperature is not above 0 and finite.
        """
        check_temperature(temperature)
        self._z, self._hidden, self._device = model.z, model.hidden, torch.device(device)
        self.features, self.masked = model.features, model.hidden
        self.bound = np.concatenate([np.full(model.z, np.inf), np.ones(model.hidden)]).astype(np.float32)
        self.chances = {"uniform": ("uniform", model.z), "noise": ("normal", model.z)}
        self._mixtures, self._floor, self._dtype = model.mixtures, model.logsigma_floor, dtype
        self._spread = math.sqrt(temperature)
        self._pays = (pays.miss, pays.hit) if model.reward == "pulse" else None
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
            return values.detach().to(self._device, dtype).contiguous().clone()

        self._gates, self._gate_bias = take(gates), take(gate_bias)
        self._heads, self._head_bias = take(heads * factor[:, None]), take(head_bias * factor)

    def see(self, state: State, z: Tensor) -> State:
        """The state with this z f32[...,Z]; h and c stay."""
        return {**state, "z": z}

    def read(self, state: State) -> Tensor:
        """[z; h], f32[...,F]."""
        return torch.cat([state["z"], state["h"]], -1)

    def advance(self, state: State, action: Tensor) -> State:
        """The LSTM: h and c after z and the actions f32[...,A]."""
        x = torch.cat([state["z"], action, state["h"]], -1).to(self._dtype)  # [...,Z+A+H]
        i, f, g, o = linear(x, self._gates, self._gate_bias).float().sigmoid_().split(self._hidden, -1)  # [...,H] each
        c = (f * state["c"]).addcmul_(i, g, value=2).sub_(i)  # f c + i (2 g - 1), [...,H]
        h = (c + c).sigmoid_().mul_(2).sub_(1).mul_(o)  # o tanh(c), [...,H]
        return {"z": state["z"], "h": h, "c": c}

    def expect(self, state: State, mask: Tensor | None = None) -> Tensor:
        """The outputs of all heads, f32[...,3KZ+2]; `mask` f32[...,H] multiplies the h that they read (dropout)."""
        seen = state["h"] if mask is None else state["h"] * mask
        return linear(seen.to(self._dtype), self._heads, self._head_bias).float()  # [...,3KZ+2]

    def mean(self, raw: Tensor) -> Tensor:
        """The mean f32[...,Z] of the mixtures in `raw` of `expect`, at the temperature of the samples."""
        size, by_component = self._mixtures * self._z, (self._mixtures, self._z)
        weights = raw[..., :size].unflatten(-1, by_component).softmax(-2)  # [...,K,Z]
        return (weights * raw[..., size : 2 * size].unflatten(-1, by_component)).sum(-2)  # [...,K,Z] to [...,Z]

    def draw(self, state: State, raw: Tensor, noise: Noise) -> tuple[State, Tensor, Tensor]:
        """Draws z; `noise` is broadcast over leading dimensions."""
        size = self._mixtures * self._z
        # [...,KZ] three times, then [...,1] twice
        logits, mu, logsigma, reward, terminated = raw.split([size, size, size, 1, 1], -1)
        by_component = (self._mixtures, self._z)
        # The component is the number of cumulative weights <= the uniform draw. The last weight, which is 1, is left
        # out, so that rounding cannot give an index past the last component.
        cumulative = logits.unflatten(-1, by_component).softmax(-2).cumsum(-2)[..., :-1, :]  # [...,K-1,Z]
        component = (noise["uniform"].unsqueeze(-2) >= cumulative).sum(-2, keepdim=True)  # [...,1,Z]
        mu = mu.unflatten(-1, by_component).gather(-2, component).squeeze(-2)  # [...,K,Z] to [...,Z]
        logsigma = logsigma.unflatten(-1, by_component).gather(-2, component).squeeze(-2)  # [...,K,Z] to [...,Z]
        sigma = (self._floor + softplus(logsigma - self._floor)).exp()  # [...,Z]
        z = mu + (sigma * self._spread) * noise["noise"]  # [...,Z]

        paid = reward.squeeze(-1)  # [...,1] to [...]
        if self._pays is not None:
            miss, hit = self._pays
            paid = miss + (hit - miss) * paid.sigmoid()
        return self.see(state, z), paid, terminated.squeeze(-1).sigmoid()
