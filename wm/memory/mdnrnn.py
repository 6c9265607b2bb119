"""M, the MDN-RNN (paper, section 2.2 and appendix A.2), its loss, sampling from it, and mdnrnn.pt.

    [z_t, a_t], (h, c) ─LSTM→ (h, c);  h ─→ K Gaussians for each dimension of z_{t+1}, r_t, terminated_t, outlook_t

r_t and terminated_t are the environment's answer to a_t, together with the frame of z_{t+1}. outlook_t (not in the
paper, optional) is the mean rate of pulses or the mean reward of the following steps. Nothing reads this prediction. It
makes h hold, in a linear form, what the outlook depends on, such as the speed and the bend ahead, since C is linear in
h as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from wm.config.earlier import present
from wm.contracts import Memory, Noise, Pays
from wm.memory.cell import LSTMCell, weight_shapes
from wm.run.artifact import fill, load_artifact, save_artifact
from wm.run.errors import UserError
from wm.run.remedies import redo

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

State = tuple[Tensor, Tensor]
"""(h, c) of the LSTM, each f32[1,B,H] as torch.nn.LSTM has it."""


class Prediction(NamedTuple):
    """M's predictions of the next step, after each of T steps.

    Attributes:
        logmix: f32[B,T,Z,K], log weights of the mixtures, normalised over K.
        mu: f32[B,T,Z,K], means.
        logsigma: f32[B,T,Z,K], log standard deviations, above the floor.
        reward: f32[B,T], logit of a positive reward in this step, a pulse; for a value head the reward itself.
        terminated: f32[B,T], logit of terminating the episode with this step.
        outlook: f32[B,T,N], for each of N horizons of n steps: mean number of pulses per step over the n steps after
            this one; for a value head their mean reward.
    """

    logmix: Tensor
    mu: Tensor
    logsigma: Tensor
    reward: Tensor
    terminated: Tensor
    outlook: Tensor


class MDNRNN(nn.Module):
    """The paper's M with heads for reward and termination, and one for the outlook if it has horizons.

    `forward` takes whole sequences as well as single steps.

    Attributes:
        features: F = Z+H, size of [z; h].
        reward: "pulse" or "value", what the reward head predicts (see `wm.config.vmc.MDNRNNConfig`).
        outlook: The horizons in steps.
    """

    kind = "mdnrnn"

    def __init__(
        self,
        z: int = 32,
        actions: int = 3,
        hidden: int = 256,
        mixtures: int = 5,
        reward: str = "pulse",
        logsigma_floor: float = -7.0,
        outlook: Sequence[int] = (),
    ) -> None:
        """Builds M with torch's own initial weights, which the global torch seed fixes.

        Args:
            z: Z, size of the latent vector.
            actions: A, length of the action vector.
            hidden: H, LSTM units.
            mixtures: K, Gaussians per latent dimension.
            reward: What the reward head predicts.
            logsigma_floor: Lower bound of log sigma.
            outlook: Horizons of the outlook in steps, each >= 1.
        """
        super().__init__()
        if reward not in ("pulse", "value"):
            raise ValueError(f"reward is {reward!r}, neither 'pulse' nor 'value'")
        if any(steps < 1 for steps in outlook):
            raise ValueError(f"outlook is {tuple(outlook)}, not steps of at least 1")
        self.z, self.actions, self.hidden, self.mixtures = z, actions, hidden, mixtures
        self.features = z + hidden
        self.reward, self.logsigma_floor, self.outlook = reward, logsigma_floor, tuple(outlook)
        self.lstm = nn.LSTM(z + actions, hidden, batch_first=True)
        self.mixture_head = nn.Linear(hidden, 3 * mixtures * z)
        self.reward_head = nn.Linear(hidden, 1)
        self.terminated_head = nn.Linear(hidden, 1)
        if self.outlook:
            self.outlook_head = nn.Linear(hidden, len(self.outlook))

    def forward(
        self, z: Tensor, a: Tensor, state: State | None = None, head_mask: Tensor | None = None
    ) -> tuple[Prediction, State]:
        """Advances over T >= 1 steps.

        Args:
            z: f32[B,T,Z], latents.
            a: f32[B,T,A], the actions at these latents.
            state: (h, c) before the first step, each f32[1,B,H]; None: zeros, the start of an episode.
            head_mask: f32[B,1,H], factors on the h that the heads read (dropout). The recurrent h is not masked. None:
                1.

        Returns:
            The predictions after each step, and (h, c) after the last; its h[0] is f32[B,H].
        """
        h, state = self.lstm(torch.cat([z, a], dim=-1), state)  # [B,T,H]
        h = h if head_mask is None else h * head_mask
        # Z lies innermost in memory, so that sums over the few K components run over whole rows of Z. The bfloat16
        # results of matrix products under autocast become float32 here, since logarithms need the precision.
        raw = self.mixture_head(h).float().unflatten(-1, (3, self.mixtures, self.z)).transpose(-1, -2)  # [B,T,3,Z,K]
        logits, mu, logsigma = raw.unbind(2)  # [B,T,Z,K] each
        return (
            Prediction(
                logmix=logits - logits.logsumexp(-1, keepdim=True),
                mu=mu,
                # Unlike softplus, a clamp has no gradient below the floor, and values would stay there.
                logsigma=self.logsigma_floor + softplus(logsigma - self.logsigma_floor),
                reward=self.reward_head(h)[..., 0].float(),  # [B,T,1] to [B,T]
                terminated=self.terminated_head(h)[..., 0].float(),  # [B,T,1] to [B,T]
                outlook=(self.outlook_head(h) if self.outlook else h[..., :0]).float(),
            ),
            state,
        )

    @property
    def reads(self) -> tuple[tuple[str, int], ...]:
        """Name and size of the parts of a state that C reads."""
        return ("z", self.z), ("h", self.hidden)

    def follow(self, z: Tensor, a: Tensor) -> Tensor:
        """[z; h] at each moment of a record: z f32[T+1,Z] and a f32[T,A] to f32[T+1,F]."""
        h, _ = self.lstm(torch.cat([z[:-1], a], 1)[None])  # [1,T,H]
        # h at a moment comes from the moment before and its action.
        return torch.cat([z, torch.cat([h.new_zeros(1, self.hidden), h[0]])], 1)

    def foresee(self, z: Tensor, a: Tensor) -> dict[str, Tensor]:
        """Logits f32[T] of the heads at each step of a record: "terminated", and "pulse" unless it is a value head."""
        prediction, _ = self(z[None, :-1], a[None])
        heads = {"pulse": prediction.reward[0]} if self.reward == "pulse" else {}
        return {**heads, "terminated": prediction.terminated[0]}

    def abduct(self, z: Tensor, a: Tensor, generator: torch.Generator) -> Noise:
        """The noise f32[T,Z] of a record z f32[T+1,Z], a f32[T,A]; see `abduct`."""
        prediction, _ = self(z[None, :-1], a[None])
        uniform, noise = abduct(prediction, z[None, 1:], generator)
        return {"uniform": uniform[0], "noise": noise[0]}

    def acting(self) -> Callable[[], LSTMCell]:
        """A picklable function that makes the cell."""
        weights = self.state_dict()
        mine = {name: weights[name].detach().cpu().numpy() for name in weight_shapes(self.z, self.actions, self.hidden)}
        return partial(LSTMCell, mine, self.z)

    def dreaming(
        self, pays: Pays, temperature: float = 1.0, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Memory:
        """The memory that dreams with these weights; see `wm.memory.fused.FusedMDNRNN`."""
        from wm.memory.fused import FusedMDNRNN

        return FusedMDNRNN(self, pays=pays, temperature=temperature, device=device, dtype=dtype or torch.float32)

    def graph(self, pays: Pays) -> bytes:
        """The dreamt step as an ONNX graph; see `wm.memory.graph.dream_graph`."""
        from wm.memory.graph import dream_graph

        return dream_graph(self, pays)


def draw(mu: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """Draws z ~ N(mu, exp(logvar)), with the shape of `mu`. The noise comes from `generator`, on its device."""
    noise = torch.randn(mu.shape, generator=generator, device=generator.device).to(mu.device)
    return mu + (0.5 * logvar).exp() * noise


def draw_head_mask(shape: Sequence[int], dropout: float, generator: torch.Generator) -> Tensor:
    """Dropout factors f32 on the generator's device: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    uniform = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return (uniform >= dropout).float() / (1 - dropout)


def gaussian_nll(x: Tensor, mu: Tensor, logsigma: Tensor) -> Tensor:
    """-log N(x; mu, sigma²) in nats, elementwise."""
    return 0.5 * ((x - mu) * (-logsigma).exp()).square() + logsigma + HALF_LOG_TWO_PI


def mixture_nll(prediction: Prediction, z: Tensor) -> Tensor:
    """-log p(z) in nats for each latent dimension: f32[B,T,Z] for targets f32[B,T,Z]."""
    components = gaussian_nll(z[..., None], prediction.mu, prediction.logsigma)  # [B,T,Z,K]
    return -torch.logsumexp(prediction.logmix - components, dim=-1)  # [B,T,Z]


def mixture_moments(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of the mixtures, each f32[B,T,Z].

    The Gaussian with these moments is the best single Gaussian for the mixture.
    """
    weights = prediction.logmix.exp()  # [B,T,Z,K]
    mean = (weights * prediction.mu).sum(-1)  # [B,T,Z]
    spread = (2 * prediction.logsigma).exp() + (prediction.mu - mean[..., None]).square()  # [B,T,Z,K]
    return mean, 0.5 * (weights * spread).sum(-1).log()  # [B,T,Z] each


class StepLosses(NamedTuple):
    """The parts of the loss at each step, f32[B,T], or their means.

    Attributes:
        nll: Nats per latent dimension, averaged over the dimensions.
        reward: Cross-entropy in nats of a pulse; for a value head the squared error of the reward.
        terminated: Cross-entropy in nats.
    """

    nll: Tensor
    reward: Tensor
    terminated: Tensor


def pulses(r: Tensor) -> Tensor:
    """f32: 1 where the reward is positive, else 0."""
    return (r > 0).float()


def step_losses(prediction: Prediction, z: Tensor, r: Tensor, terminated: Tensor, reward: str) -> StepLosses:
    """The loss of predictions at each step.

    Args:
        prediction: M's prediction after (z_t, a_t).
        z: f32[B,T,Z], z_{t+1}.
        r: f32[B,T], r_t, the environment's own rewards.
        terminated: bool[B,T], terminated_t.
        reward: "pulse" or "value", what the reward head predicts.
    """
    if reward == "pulse":
        reward_loss = binary_cross_entropy_with_logits(prediction.reward, pulses(r), reduction="none")
    else:
        reward_loss = (prediction.reward - r).square()
    return StepLosses(
        nll=mixture_nll(prediction, z).mean(-1),  # [B,T,Z] to [B,T]
        reward=reward_loss,
        terminated=binary_cross_entropy_with_logits(prediction.terminated, terminated.float(), reduction="none"),
    )


def outlook_targets(r: Tensor, mask: Tensor, horizons: Sequence[int], reward: str) -> tuple[Tensor, Tensor]:
    """The targets of the outlook. Only a step whose whole horizon lies in the clip has a target.

    Args:
        r: f32[B,T], the environment's own rewards.
        mask: bool[B,T], True at real steps, False at the padding after them.
        horizons: N numbers of steps.
        reward: "pulse" or "value", what the reward head predicts.

    Returns:
        f32[B,T,N], means over the steps t+1 to t+n, and bool[B,T,N], True where they are known.
    """
    steps = r.shape[1]
    paid = torch.where(mask, pulses(r) if reward == "pulse" else r, 0)
    before = torch.nn.functional.pad(paid.cumsum(1), (1, 0))  # [B,T+1]: the sum of all steps before t
    targets, known = r.new_zeros(*r.shape, len(horizons)), mask.new_zeros(*r.shape, len(horizons))  # [B,T,N] each
    for i, n in enumerate(horizons):
        if n < steps:
            targets[:, : steps - n, i] = (before[:, n + 1 :] - before[:, 1 : steps - n + 1]) / n
            known[:, : steps - n, i] = mask[:, n:]
    return targets, known


def clip_losses(
    model: MDNRNN,
    mu: Tensor,
    logvar: Tensor,
    a: Tensor,
    r: Tensor,
    terminated: Tensor,
    generator: torch.Generator,
    dropout: float = 0.0,
) -> tuple[StepLosses, Prediction, Tensor]:
    """Runs M over clips and compares its prediction at each step with the next step.

    Each z is drawn anew from V's posterior, once, as the input of its own step and as the target of the step before. So
    M cannot overfit to a single z of a frame (paper, appendix A.2).

    Args:
        model: M.
        mu: f32[B,T+1,Z], posterior means; one frame more than actions.
        logvar: f32[B,T+1,Z], log variances.
        a: f32[B,T,A], the action at each frame but the last.
        r: f32[B,T], the reward of the action.
        terminated: bool[B,T], whether the episode terminated with the action.
        generator: Source of the draws.
        dropout: Probability that a unit of h is hidden from the heads, the same units at all steps of a clip.

    Returns:
        The losses f32[B,T], the predictions, and the targets z f32[B,T,Z].
    """
    z = draw(mu, logvar, generator)  # [B,T+1,Z]
    # [B,1,H]
    head_mask = draw_head_mask((len(z), 1, model.hidden), dropout, generator).to(z.device) if dropout else None
    prediction, _ = model(z[:, :-1], a, head_mask=head_mask)
    return step_losses(prediction, z[:, 1:], r, terminated, model.reward), prediction, z[:, 1:]


def mean_losses(losses: StepLosses, mask: Tensor) -> StepLosses:
    """Means over the real steps, where `mask` bool[B,T] is True."""
    return StepLosses(*(each.where(mask, 0).sum() / mask.sum() for each in losses))


def total_loss(means: StepLosses, head_weight: float) -> Tensor:
    """M's training loss: nats per latent dimension, plus `head_weight` times the heads' losses."""
    return means.nll + head_weight * (means.reward + means.terminated)


def check_temperature(temperature: float) -> None:
    """ValueError unless it is above 0 and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, not above 0 and finite")


def sample(prediction: Prediction, temperature: float, generator: torch.Generator) -> Tensor:
    """Draws the next latents f32[B,T,Z] at a temperature tau: logits/tau and sigma·sqrt(tau) (paper, 4).

    Args:
        prediction: M's prediction.
        temperature: tau > 0; 1 draws from the mixtures as they are, less makes the dream more certain.
        generator: Source of the two draws: first the component, then the noise.

    Raises:
        ValueError: The temperature is not above 0 and finite.
    """
    check_temperature(temperature)
    shape, device = prediction.logmix.shape[:-1], prediction.logmix.device  # [B,T,Z]
    uniform = torch.rand(shape, generator=generator, device=generator.device).to(device)
    noise = torch.randn(shape, generator=generator, device=generator.device).to(device)
    component = chosen((prediction.logmix / temperature).softmax(-1), uniform)  # [B,T,Z,1]
    mu = prediction.mu.gather(-1, component)[..., 0]  # [B,T,Z]
    logsigma = prediction.logsigma.gather(-1, component)[..., 0]  # [B,T,Z]
    return mu + logsigma.exp() * math.sqrt(temperature) * noise  # [B,T,Z]


def chosen(weights: Tensor, uniform: Tensor) -> Tensor:
    """The component i64[...,1] that `uniform` f32[...] in [0, 1) chooses by weights f32[...,K] with sum 1."""
    # It is the number of cumulative weights <= the uniform draw. The last weight, which is 1, is left out, so that
    # rounding cannot give an index past the last component.
    return (uniform[..., None] >= weights.cumsum(-1)[..., :-1]).sum(-1, keepdim=True)  # [...,1]


def abduct(prediction: Prediction, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Abduction: the noise with which M would have drawn z at temperature 1 (Buesing et al., 2019).

    The noise is drawn from its posterior: the component is sampled by the probability that it gave z.

    Args:
        prediction: M's prediction.
        z: f32[B,T,Z], the recorded latents.
        generator: Source of the draws.

    Returns:
        uniform f32[B,T,Z] in [0, 1), which chooses the components, and noise f32[B,T,Z], the distance of z from their
        means in standard deviations.
    """
    noise = (z[..., None] - prediction.mu) * (-prediction.logsigma).exp()  # [B,T,Z,K]
    guesses = torch.rand((2, *z.shape), generator=generator, device=generator.device).to(z.device)  # [2,B,T,Z]
    likely = (prediction.logmix - prediction.logsigma - 0.5 * noise.square()).softmax(-1)  # [B,T,Z,K]
    component = chosen(likely, guesses[0])  # [B,T,Z,1]
    weight = prediction.logmix.exp()  # [B,T,Z,K]
    upper, share = (each.gather(-1, component)[..., 0] for each in (weight.cumsum(-1), weight))  # [B,T,Z] each
    # Not at the edges of the component's interval, where rounding could choose its neighbour.
    uniform = upper - share * (0.01 + 0.98 * guesses[1])  # [B,T,Z]
    return uniform.clamp(0, 1 - 2**-24), noise.gather(-1, component)[..., 0]


def save_mdnrnn(
    path: Path, model: Mapping[str, Tensor], config: Mapping[str, Any], made_from: Mapping[str, str]
) -> None:
    """Writes mdnrnn.pt.

    Args:
        path: The file.
        model: M's state_dict; float32, or float16 to halve the file.
        config: Must hold the fields from which M is rebuilt: "z", "actions", "hidden", "mixtures", "reward",
            "logsigma_floor" and, if it has one, "outlook".
        made_from: Hashes of "rollouts" and "vae.pt".
    """
    save_artifact(path, "mdnrnn", model, config, made_from)


def load_mdnrnn(path: Path) -> tuple[MDNRNN, dict[str, Any]]:
    """Reads mdnrnn.pt: M on the CPU in eval mode, and {"config", "made_from", ...}.

    Raises:
        UserError: The file is missing, damaged, foreign, or not an M.
    """
    meta = load_artifact(path, "mdnrnn")
    weights, config = meta.pop("model"), meta["config"]
    damaged = UserError(f"{path} is damaged (its config is not valid): {redo('mdnrnn')}.")
    sizes = {name: config.get(name) for name in ("z", "actions", "hidden", "mixtures")}
    if not all(isinstance(size, int) and 1 <= size <= 65536 for size in sizes.values()):
        raise damaged
    floor, reward = config.get("logsigma_floor"), present("reward", config.get("reward"))
    if reward not in ("pulse", "value") or not isinstance(floor, float):
        raise damaged
    outlook = config.get("outlook", ())  # older files have none
    if not isinstance(outlook, list | tuple) or not all(isinstance(n, int) and 1 <= n <= 65536 for n in outlook):
        raise damaged
    with torch.random.fork_rng(devices=[]):  # initial weights must not change the caller's random state
        model = MDNRNN(**sizes, reward=reward, logsigma_floor=floor, outlook=outlook)
    fill(model, weights, path, "mdnrnn")
    return model.eval(), meta
