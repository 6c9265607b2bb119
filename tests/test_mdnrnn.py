"""M: the paper's counts, the NLL against torch.distributions, shapes, alignment, padding, floors, sampling, files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from wm.memory.mdnrnn import (
    MDNRNN,
    Prediction,
    abduct,
    clip_losses,
    draw,
    draw_head_mask,
    gaussian_nll,
    load_mdnrnn,
    mean_losses,
    mixture_moments,
    mixture_nll,
    outlook_targets,
    sample,
    save_mdnrnn,
    step_losses,
    total_loss,
)
from wm.run.artifact import save_artifact
from wm.run.device import has_fast_bf16
from wm.run.errors import UserError

CONFIG = {"z": 4, "actions": 2, "hidden": 8, "mixtures": 3, "reward": "pulse", "logsigma_floor": -7.0}


def small(**changes: object) -> MDNRNN:
    torch.manual_seed(0)
    return MDNRNN(**{**CONFIG, **changes})  # type: ignore[arg-type]


def mixture(b: int, t: int, z: int, k: int, seed: int, spread: float = 1.0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return spread * torch.randn(shape, generator=generator)

    return Prediction(
        logmix=normal(b, t, z, k).log_softmax(-1),
        mu=normal(b, t, z, k),
        logsigma=normal(b, t, z, k).clamp(-5, 5),
        reward=normal(b, t),
        terminated=normal(b, t),
        outlook=torch.empty(b, t, 0),
    )


def reference(prediction: Prediction) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(logits=prediction.logmix.double()),
        Normal(prediction.mu.double(), prediction.logsigma.double().exp()),
    )


def test_the_papers_count() -> None:
    """422,368 in the paper; torch's LSTM has a second bias of 1024, and the two heads have 257 each."""
    model = MDNRNN()
    heads = sum(p.numel() for head in (model.reward_head, model.terminated_head) for p in head.parameters())
    without_heads = sum(p.numel() for p in model.parameters()) - heads
    assert without_heads == 423_392
    assert without_heads - model.state_dict()["lstm.bias_hh_l0"].numel() == 422_368
    assert heads == 2 * 257


# --- the mixture -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(1, 3),
    t=st.integers(1, 4),
    z=st.integers(1, 5),
    k=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_nll_and_moments_against_torch(b: int, t: int, z: int, k: int, seed: int, spread: float) -> None:
    prediction = mixture(b, t, z, k, seed, spread)
    target = torch.randn(b, t, z, generator=torch.Generator().manual_seed(seed + 1))
    found = mixture_nll(prediction, target)
    wanted = -reference(prediction).log_prob(target.double())
    assert found.shape == (b, t, z)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    mean, logsigma = mixture_moments(prediction)
    torch.testing.assert_close(mean.double(), reference(prediction).mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((2 * logsigma.double()).exp(), reference(prediction).variance, rtol=1e-3, atol=1e-3)


def test_gaussian_nll_against_torch() -> None:
    x, mu, logsigma = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gaussian_nll(x, mu, logsigma), -Normal(mu, logsigma.exp()).log_prob(x))


def test_sigma_has_a_floor_that_can_be_left() -> None:
    """A head that wants sigma 0 gets the floor: the loss stays bounded, and the gradient points out of there."""
    model = small(logsigma_floor=-3.0)
    with torch.no_grad():
        model.mixture_head.weight.zero_()
        model.mixture_head.bias.fill_(-12.0)  # of all of logits, mu and logsigma
    prediction, _ = model(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2))
    assert prediction.logsigma.min() >= -3.0
    torch.testing.assert_close(prediction.logsigma, torch.full_like(prediction.logsigma, -3.0), atol=1e-3, rtol=0)
    nll = mixture_nll(prediction, torch.full((1, 2, 4), -12.0))
    assert nll.min() >= -3.0 + 0.5 * math.log(2 * math.pi) - 1e-3
    mixture_nll(prediction, torch.full((1, 2, 4), -11.0)).sum().backward()
    gradient = model.mixture_head.bias.grad
    assert gradient is not None
    assert (gradient.unflatten(0, (3, 3, 4))[2] < 0).all()  # a larger sigma is what the far target asks for


def test_far_targets_stay_finite() -> None:
    model = small()
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    prediction, _ = model(z, torch.zeros(2, 3, 2))
    loss = mixture_nll(prediction, 1e6 * z).mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_component_without_weight_does_no_harm() -> None:
    prediction = mixture(1, 1, 1, 3, seed=0)
    weightless = torch.tensor([[[[0.0, -math.inf, -math.inf]]]])
    found = mixture_nll(prediction._replace(logmix=weightless), torch.zeros(1, 1, 1))
    assert found.isfinite().all()


# --- shapes and states -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "t", "z", "k"), [(1, 1, 4, 3), (1, 5, 4, 3), (3, 1, 4, 1), (1, 1, 1, 1)])
def test_shapes_with_ones(b: int, t: int, z: int, k: int) -> None:
    model = small(z=z, mixtures=k)
    prediction, (h, c) = model(torch.zeros(b, t, z), torch.zeros(b, t, 2))
    assert prediction.logmix.shape == prediction.mu.shape == prediction.logsigma.shape == (b, t, z, k)
    assert prediction.reward.shape == prediction.terminated.shape == (b, t)
    assert h.shape == c.shape == (1, b, 8)
    assert sample(prediction, 1.0, torch.Generator()).shape == (b, t, z)
    losses = step_losses(prediction, torch.zeros(b, t, z), torch.ones(b, t), torch.ones(b, t).bool(), "pulse")
    assert all(loss.shape == (b, t) for loss in losses)
    torch.testing.assert_close(prediction.logmix.exp().sum(-1), torch.ones(b, t, z))


def test_a_batch_is_its_members() -> None:
    model = small().eval()
    z, a = torch.randn(3, 6, 4), torch.randn(3, 6, 2)
    with torch.no_grad():
        together, _ = model(z, a)
        for i in range(3):
            alone, _ = model(z[i : i + 1], a[i : i + 1])
            for one, all_of_them in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0], all_of_them[i], atol=1e-5, rtol=1e-5)


def test_a_sequence_is_its_steps() -> None:
    model = MDNRNN()
    z, a = torch.randn(2, 50, 32), torch.rand(2, 50, 3)
    state = None
    with torch.no_grad():
        sequence, last = model(z, a)
        for t in range(50):
            step, state = model(z[:, t : t + 1], a[:, t : t + 1], state)
            for one, whole in zip(step, sequence, strict=True):
                torch.testing.assert_close(one[:, 0], whole[:, t], atol=1e-5, rtol=1e-4)
    assert state is not None
    for one, whole in zip(state, last, strict=True):
        torch.testing.assert_close(one, whole, atol=1e-5, rtol=1e-4)


def test_autocast_leaves_the_loss_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    if not has_fast_bf16(torch.device("cpu")):  # a processor without bfloat16 has no such LSTM; heads it has
        lstm = model.lstm.forward

        def in_float32(x: Tensor, state: Any = None) -> Any:
            with torch.autocast("cpu", enabled=False):
                return lstm(x.float(), state)

        monkeypatch.setattr(model.lstm, "forward", in_float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses, prediction, _ = run_clip(model, *clip(2, 5))
    assert all(value.dtype == torch.float32 for value in (*losses, *prediction))
    wanted, _, _ = run_clip(model, *clip(2, 5))
    torch.testing.assert_close(losses.nll, wanted.nll, atol=0.05, rtol=0.05)


def test_an_unknown_reward_head_is_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        small(reward="points")


# --- the loss over clips ---------------------------------------------------------------------------------

Clip = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def clip(b: int, t: int, seed: int = 0) -> Clip:
    """Clips mu, logvar, a, r, terminated of a toy world in which step t is answered by what only a_t decides.

    z_{t+1} = 0.5 a_t, r_t is a pulse for a_t[0] > 0, and the episode terminates for a_t[1] > 0. The actions are
    independent of one another, so a loss that compared with z_t, with r or terminated of another step, or that
    fed the action of another step, could not be brought down that far.
    """
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(b, t, 2, generator=generator)
    first = torch.randn(b, 1, 4, generator=generator)
    mu = torch.cat([first, 0.5 * torch.cat([a, -a], -1)], 1)
    r = torch.where(a[..., 0] > 0, 3.2, -0.1)
    return mu, torch.full_like(mu, -6.0), a, r, a[..., 1] > 0


def run_clip(model: MDNRNN, mu: Tensor, logvar: Tensor, a: Tensor, r: Tensor, terminated: Tensor, seed: int = 1):  # type: ignore[no-untyped-def]
    return clip_losses(model, mu, logvar, a, r, terminated, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reward", ["pulse", "value"])
def test_alignment_on_a_toy_world(reward: str) -> None:
    model = small(hidden=32, mixtures=2, reward=reward)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    everything = torch.ones(32, 8, dtype=torch.bool)
    for update in range(300):
        losses, _, _ = run_clip(model, *clip(32, 8, seed=update), seed=update)
        optimizer.zero_grad()
        total_loss(mean_losses(losses, everything), head_weight=1.0).backward()
        optimizer.step()
    mu, logvar, a, r, terminated = clip(64, 8, seed=999)
    with torch.no_grad():
        losses, prediction, z = run_clip(model, mu, logvar, a, r, terminated)
    assert torch.equal(z[0, 0] > 0, mu[0, 1] > 0)
    # Knowing a_t leaves V's noise, sigma exp(-3): -1.6 nats. Not knowing it leaves sigma 0.5: 0.73 nats.
    assert losses.nll.mean() < -0.8
    mean, _ = mixture_moments(prediction)
    assert (mean - mu[:, 1:]).abs().mean() < 0.1
    constant = math.log(2)
    assert losses.terminated.mean() < 0.3 * constant
    assert losses.reward.mean() < (0.3 * constant if reward == "pulse" else 0.3 * r.var())
    sure = a.abs().amin(-1) > 0.3  # well away from the two thresholds
    assert torch.equal(prediction.terminated[sure] > 0, terminated[sure])
    threshold = 0.0 if reward == "pulse" else 1.5
    assert torch.equal(prediction.reward[sure] > threshold, r[sure] > 0)


def test_each_call_draws_z_anew_and_only_once() -> None:
    """The z that is the target of step t is the very one that is the input of step t + 1."""
    seen: list[Tensor] = []

    class Watched(MDNRNN):
        def forward(self, z, a, *rest, **more):  # type: ignore[no-untyped-def]
            seen.append(z)
            return super().forward(z, a, *rest, **more)

    model = Watched(**CONFIG)  # type: ignore[arg-type]
    _, _, targets = run_clip(model, *clip(2, 5), seed=1)
    _, _, same = run_clip(model, *clip(2, 5), seed=1)
    _, _, other = run_clip(model, *clip(2, 5), seed=2)
    assert torch.equal(targets[:, :-1], seen[0][:, 1:])
    assert torch.equal(targets, same)
    assert not torch.isclose(targets, other).any()


def test_draw_is_the_posterior() -> None:
    mu, logvar = torch.tensor([1.0, -2.0]).expand(20_000, 2), torch.tensor([0.0, -4.0]).expand(20_000, 2)
    z = draw(mu, logvar, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), (0.5 * logvar[0]).exp(), atol=0.03, rtol=0)


def test_padding_has_no_part_in_the_loss() -> None:
    model = small()
    mu, logvar, a, r, terminated = clip(3, 6)
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    # Frame t + 1 belongs to step t, so the frames of a clip of n steps are the first n + 1.
    frames = torch.cat([torch.ones(3, 1, dtype=torch.bool), mask], 1)[..., None]

    def loss_and_gradient(fill: float) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        losses, _, _ = run_clip(
            model,
            mu.where(frames, fill),
            logvar.where(frames, 0.0),
            a.where(mask[..., None], fill),
            r.where(mask, fill),
            terminated | ~mask,
        )
        loss = total_loss(mean_losses(losses, mask), head_weight=1.0)
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(gradients)

    zero_loss, zero_gradient = loss_and_gradient(0.0)
    other_loss, other_gradient = loss_and_gradient(1000.0)
    torch.testing.assert_close(zero_loss, other_loss)
    torch.testing.assert_close(zero_gradient, other_gradient)
    losses, _, _ = run_clip(model, mu, logvar, a, r, terminated)
    wanted = torch.cat([losses.nll[0], losses.nll[1, :4], losses.nll[2, :1]]).mean()
    torch.testing.assert_close(mean_losses(losses, mask).nll, wanted)


# --- sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.5])
def test_sampling_at_a_temperature(temperature: float) -> None:
    """logits/tau and sigma·sqrt(tau): compared with the tempered mixture's own cumulative distribution."""
    one = mixture(1, 1, 3, 4, seed=5)
    n = 40_000
    many = Prediction(*(value.expand(n, *value.shape[1:]) for value in one))
    z = sample(many, temperature, torch.Generator().manual_seed(0))[:, 0].double()
    tempered = MixtureSameFamily(
        Categorical(logits=one.logmix[0, 0].double() / temperature),
        Normal(one.mu[0, 0].double(), one.logsigma[0, 0].double().exp() * math.sqrt(temperature)),
    )
    # Kolmogorov-Smirnov: the distance is below 1.95/sqrt(n) in 999 of 1000 draws.
    for dimension in range(3):
        ordered = z[:, dimension].sort().values
        columns = torch.zeros(n, 3, dtype=torch.float64)
        columns[:, dimension] = ordered
        cumulative = tempered.cdf(columns)[:, dimension]
        assert (cumulative - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / math.sqrt(n)


def test_sampling_is_a_function_of_the_generator() -> None:
    prediction = mixture(2, 3, 4, 5, seed=0)
    first = sample(prediction, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(first, sample(prediction, 1.0, torch.Generator().manual_seed(0)))
    assert not torch.isclose(first, sample(prediction, 1.0, torch.Generator().manual_seed(1))).any()


def test_cold_sampling_is_the_likeliest_component() -> None:
    prediction = mixture(4, 3, 2, 5, seed=1)
    z = sample(prediction, 1e-8, torch.Generator().manual_seed(0))
    wanted = prediction.mu.gather(-1, prediction.logmix.argmax(-1, keepdim=True))[..., 0]
    torch.testing.assert_close(z, wanted, atol=1e-2, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 5),
    z=st.integers(1, 4),
    k=st.integers(1, 5),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_what_came_follows_from_its_chance(t: int, z: int, k: int, seed: int, spread: float) -> None:
    """The component that the uniform number chooses, and the noise in its standard deviations, give z again."""
    prediction = mixture(2, t, z, k, seed, spread)
    generator = torch.Generator().manual_seed(seed)
    came = sample(prediction, 1.0, generator)
    uniform, noise = abduct(prediction, came, generator)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    chosen = (uniform[..., None] >= prediction.logmix.exp().cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
    mu, sigma = (part.gather(-1, chosen)[..., 0] for part in (prediction.mu, prediction.logsigma.exp()))
    torch.testing.assert_close(mu + sigma * noise, came, rtol=1e-4, atol=1e-4)


def test_the_component_is_guessed_by_how_likely_each_was() -> None:
    """Two components of equal weight: z at 0.5 is exp(1) times as likely from the one at 0 as from the one at -1."""
    shape = (1, 40_000, 1)
    logmix = torch.full((*shape, 2), math.log(0.5))
    mu = torch.tensor([0.0, -1.0]).expand(*shape, 2)
    nothing = torch.zeros(shape[:2])
    prediction = Prediction(logmix, mu, torch.zeros(*shape, 2), nothing, nothing, torch.zeros(*shape[:2], 0))
    uniform, noise = abduct(prediction, torch.full(shape, 0.5), torch.Generator().manual_seed(0))
    assert (uniform < 0.5).float().mean().item() == pytest.approx(math.e / (1 + math.e), abs=0.01)
    torch.testing.assert_close(noise, torch.where(uniform < 0.5, 0.5, 1.5))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_no_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="not above 0 and finite"):
        sample(mixture(1, 1, 1, 1, seed=0), temperature, torch.Generator())


# --- dropout ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_hides_the_same_units_from_all_heads_at_all_steps_of_a_clip() -> None:
    model = small(outlook=(2,))
    mu, logvar, a, r, terminated = clip(3, 6, seed=0)
    generator = torch.Generator().manual_seed(1)
    losses, found, z = clip_losses(model, mu, logvar, a, r, terminated, generator, dropout=0.4)

    # By hand: the draws in their order, the LSTM over whole h, the heads on what is left of it.
    generator = torch.Generator().manual_seed(1)
    drawn = draw(mu, logvar, generator)
    head_mask = torch.where(torch.rand(3, 1, 8, generator=generator) < 0.4, 0.0, 1 / 0.6)
    assert 0 < (head_mask == 0).sum() < head_mask.numel()
    assert torch.equal(z, drawn[:, 1:])
    state = None
    for t in range(6):
        whole, state = model.lstm(torch.cat([drawn[:, t : t + 1], a[:, t : t + 1]], -1), state)
        raw = model.mixture_head(whole * head_mask).unflatten(-1, (3, 3, 4)).transpose(-1, -2)
        torch.testing.assert_close(found.logmix[:, t : t + 1], raw[:, :, 0].log_softmax(-1))
        torch.testing.assert_close(found.mu[:, t : t + 1], raw[:, :, 1])
        torch.testing.assert_close(found.reward[:, t : t + 1], model.reward_head(whole * head_mask)[..., 0])
        torch.testing.assert_close(found.terminated[:, t : t + 1], model.terminated_head(whole * head_mask)[..., 0])
        torch.testing.assert_close(found.outlook[:, t : t + 1], model.outlook_head(whole * head_mask))
    torch.testing.assert_close(losses.nll, mixture_nll(found, z).mean(-1))


@torch.no_grad()
def test_without_dropout_nothing_is_drawn_for_it() -> None:
    model, given = small(), clip(3, 6, seed=0)
    plain, none = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    wanted, found = clip_losses(model, *given, plain), clip_losses(model, *given, none, dropout=0.0)
    assert torch.equal(plain.get_state(), none.get_state())
    assert torch.equal(wanted[0].nll, found[0].nll)
    draw(given[0], given[1], again := torch.Generator().manual_seed(1))
    assert torch.equal(plain.get_state(), again.get_state())


def test_factors_of_dropout_keep_the_mean() -> None:
    head_mask = draw_head_mask((20_000,), 0.25, torch.Generator().manual_seed(0))
    assert set(head_mask.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (head_mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


# --- outlook ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 12),
    real=st.integers(1, 12),
    horizons=st.lists(st.integers(1, 13), max_size=3),
    reward=st.sampled_from(["pulse", "value"]),
    seed=st.integers(0, 1000),
)
def test_outlook_targets_against_a_plain_loop(t: int, real: int, horizons: list[int], reward: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    r = torch.where(torch.rand(2, t, generator=generator) < 0.4, 3.2, -0.1)
    mask = torch.arange(t).expand(2, t) < min(real, t)
    targets, known = outlook_targets(r, mask, horizons, reward)
    assert targets.shape == known.shape == (2, t, len(horizons))
    for b in range(2):
        steps = r[b][mask[b]].tolist()
        for i in range(t):
            for k, n in enumerate(horizons):
                after = steps[i + 1 : i + 1 + n]
                assert bool(known[b, i, k]) == (len(after) == n)
                if len(after) == n:
                    wanted = sum(x > 0 for x in after) if reward == "pulse" else sum(after)
                    assert targets[b, i, k].item() == pytest.approx(wanted / n, abs=1e-4)


def test_an_outlook_is_one_linear_map_of_h(tmp_path: Path) -> None:
    model = small(outlook=(3, 7))
    prediction, (h, _) = model(torch.ones(2, 1, 4), torch.ones(2, 1, 2))
    wanted = h[0] @ model.outlook_head.weight.T + model.outlook_head.bias
    torch.testing.assert_close(prediction.outlook[:, 0], wanted)
    assert small()(torch.ones(2, 5, 4), torch.ones(2, 5, 2))[0].outlook.shape == (2, 5, 0)
    save_mdnrnn(tmp_path / "mdnrnn.pt", model.state_dict(), {**CONFIG, "outlook": (3, 7)}, {})
    loaded, _ = load_mdnrnn(tmp_path / "mdnrnn.pt")
    assert loaded.outlook == (3, 7)
    assert torch.equal(loaded.outlook_head.weight, model.outlook_head.weight)
    with pytest.raises(ValueError, match="outlook"):
        small(outlook=(0,))


# --- mdnrnn.pt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded(tmp_path: Path, half: bool) -> None:
    model = small()
    weights = {name: value.half() if half else value for name, value in model.state_dict().items()}
    save_mdnrnn(tmp_path / "mdnrnn.pt", weights, CONFIG, {"rollouts": "a", "vae.pt": "b"})
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    loaded, meta = load_mdnrnn(tmp_path / "mdnrnn.pt")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert meta["made_from"] == {"rollouts": "a", "vae.pt": "b"}
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3 if half else 0, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"hidden": 9}, {"mixtures": 0}, {"z": "4"}, {"reward": "points"}, {"logsigma_floor": None}, {"outlook": 3}],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    save_mdnrnn(tmp_path / "mdnrnn.pt", small().state_dict(), {**CONFIG, **changes}, {})
    with pytest.raises(UserError, match=r"mdnrnn\.pt .*make mdnrnn ARGS=--restart"):
        load_mdnrnn(tmp_path / "mdnrnn.pt")


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    save_artifact(tmp_path / "mdnrnn.pt", "vae", small().state_dict(), CONFIG, {})
    with pytest.raises(UserError, match="not a mdnrnn"):
        load_mdnrnn(tmp_path / "mdnrnn.pt")
    with pytest.raises(UserError, match="make mdnrnn"):
        load_mdnrnn(tmp_path / "missing.pt")
