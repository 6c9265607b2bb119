"""M dreaming: one step is M's forward and its sampling, at any temperature, for any shape of a batch."""

import pytest
import torch
from torch import Tensor

from tests.toy_dream import END, HIDDEN, HIT, MISS, Z, toy_mdnrnn
from wm.contracts import Memory, Noise, Pays, State
from wm.dream.step import dream_step
from wm.memory.mdnrnn import MDNRNN, Prediction, sample


def dreamer(model: MDNRNN, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Memory:
    return model.dreaming(Pays(MISS, HIT, END), temperature, dtype=dtype)


def random_input(*shape: int, seed: int = 0) -> tuple[State, Tensor]:
    """A state and a."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(*shape, size, generator=generator)

    return {"z": normal(Z), "h": normal(HIDDEN).tanh(), "c": 3 * normal(HIDDEN)}, normal(3)


def random_noise(*shape: int, seed: int = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return {"uniform": torch.rand(*shape, Z, generator=generator), "noise": torch.randn(*shape, Z, generator=generator)}


def by_itself(model: MDNRNN, state: State, a: Tensor, head_mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
    """M's own forward over one step of dreams [N]: its prediction, and h after it, f32[N,H]."""
    mask = None if head_mask is None else head_mask[:, None]
    prediction, (h, _) = model(state["z"][:, None], a[:, None], (state["h"][None], state["c"][None]), mask)
    return prediction, h[0]


def parts(dreamt: tuple[State, Tensor, Tensor]) -> list[Tensor]:
    """z, h, c, the reward and the probability of terminating."""
    state, reward, terminated = dreamt
    return [*state.values(), reward, terminated]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("reward", ["pulse", "value"])
@torch.no_grad()
def test_it_is_the_plain_forward_and_sample(temperature: float, reward: str) -> None:
    model = toy_mdnrnn(reward=reward)
    fast = dreamer(model, temperature)
    dream, _ = random_input(500)
    state = (dream["h"][None], dream["c"][None])
    for t in range(12):
        a = torch.rand(500, 3, generator=torch.Generator().manual_seed(t))
        prediction, state = model(dream["z"][:, None], a[:, None], state)
        plain = sample(prediction, temperature, torch.Generator().manual_seed(t))[:, 0]
        # The draws of `sample`, in its order.
        generator = torch.Generator().manual_seed(t)
        uniform = torch.rand(500, 1, Z, generator=generator)[:, 0]
        noise = torch.randn(500, 1, Z, generator=generator)[:, 0]
        dream, paid, terminated = dream_step(fast, dream, a, {"uniform": uniform, "noise": noise})
        torch.testing.assert_close(dream["h"], state[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(dream["c"], state[1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dream["z"], plain, atol=1e-4, rtol=1e-4)
        wanted = prediction.reward[:, 0]
        if reward == "pulse":
            hit = wanted.sigmoid()
            wanted = hit * HIT + (1 - hit) * MISS
        torch.testing.assert_close(paid, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(terminated, prediction.terminated[:, 0].sigmoid(), atol=1e-6, rtol=1e-5)
        assert dream["z"].std() > 0.1  # of what stands still nothing would be seen
        state = (dream["h"][None], dream["c"][None])


@torch.no_grad()
def test_dropout_is_that_of_training_and_leaves_h_whole() -> None:
    model = toy_mdnrnn()
    (state, a), noise = random_input(50), random_noise(50)
    head_mask = torch.where(torch.rand(50, HIDDEN, generator=torch.Generator().manual_seed(0)) < 0.4, 0.0, 1 / 0.6)
    after, paid, terminated = dream_step(dreamer(model), state, a, noise, head_mask)
    prediction, whole = by_itself(model, state, a, head_mask)
    torch.testing.assert_close(after["h"], whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(terminated, prediction.terminated[:, 0].sigmoid(), atol=1e-6, rtol=1e-5)
    hit = prediction.reward[:, 0].sigmoid()
    torch.testing.assert_close(paid, hit * HIT + (1 - hit) * MISS, atol=1e-5, rtol=1e-5)
    # Of a noise of 0 what is drawn are means of components, those of M's prediction.
    still = {**noise, "noise": torch.zeros(50, Z)}
    means = dream_step(dreamer(model), state, a, still, head_mask)[0]["z"]
    assert ((means[..., None] - prediction.mu[:, 0]).abs().amin(-1) < 1e-4).all()
    assert not torch.allclose(paid, dream_step(dreamer(model), state, a, noise)[1], atol=0.1)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@torch.no_grad()
def test_the_mean_is_that_of_the_mixtures_that_z_is_drawn_from(temperature: float) -> None:
    model = toy_mdnrnn()
    state, a = random_input(50)
    prediction, _ = by_itself(model, state, a)
    wanted = ((prediction.logmix / temperature).softmax(-1) * prediction.mu).sum(-1)[:, 0]
    fast = dreamer(model, temperature)
    torch.testing.assert_close(fast.mean(fast.expect(fast.advance(state, a))), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_any_leading_shape_and_shared_noise() -> None:
    """[P,S] dreams under noise [S] are the P·S dreams one by one."""
    fast = dreamer(toy_mdnrnn())
    (state, a), noise = random_input(3, 5), random_noise(5, seed=1)
    found = parts(dream_step(fast, state, a, noise))
    assert [tuple(part.shape) for part in found] == [(3, 5, Z), (3, 5, HIDDEN), (3, 5, HIDDEN), (3, 5), (3, 5)]
    for p in range(3):
        for s in range(5):
            here = {name: part[p, s] for name, part in state.items()}
            alone = parts(dream_step(fast, here, a[p, s], {name: part[s] for name, part in noise.items()}))
            for one, all_of_them in zip(alone, found, strict=True):
                torch.testing.assert_close(one, all_of_them[p, s], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_it_is_given_stays_as_it_is() -> None:
    fast = dreamer(toy_mdnrnn())
    (state, a), noise = random_input(7), random_noise(7)
    given = [*state.values(), a, *noise.values()]
    before = [part.clone() for part in given]
    first, second = (parts(dream_step(fast, state, a, noise)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@torch.no_grad()
def test_bfloat16_is_the_same_up_to_its_rounding() -> None:
    model = toy_mdnrnn()
    given = (*random_input(4000), random_noise(4000))
    exact, rounded = (parts(dream_step(dreamer(model, dtype=dtype), *given)) for dtype in (None, torch.bfloat16))
    assert all(part.dtype == torch.float32 for part in rounded)
    z, h, _, paid, _ = (one - other for one, other in zip(rounded, exact, strict=True))
    assert h.abs().max() < 0.05
    assert paid.abs().max() < 0.1
    assert paid.mean().abs() < 0.002  # no bias
    # Where the rounding tips the choice of a component z jumps; that is rare, and goes both ways.
    assert (z.abs() > 0.1).float().mean() < 0.03
    assert z.mean(0).abs().max() < 0.03


def test_no_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="not above 0 and finite"):
        dreamer(toy_mdnrnn(), temperature=0.0)


def test_extreme_states_stay_finite() -> None:
    state = {"z": torch.full((1, Z), 1e4), "h": torch.ones(1, HIDDEN), "c": torch.full((1, HIDDEN), -1e3)}
    noise = {"uniform": torch.full((1, Z), 1 - 1e-7), "noise": torch.zeros(1, Z)}
    found = dream_step(dreamer(toy_mdnrnn(), temperature=0.01), state, torch.ones(1, 3), noise)
    assert all(part.isfinite().all() for part in parts(found))
