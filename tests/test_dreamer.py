"""M dreaming: one step is M's forward and its sampling, at any temperature, for any shape of a batch."""

import pytest
import torch
from torch import Tensor

from tests.toy_dream import HIDDEN, HIT, MISS, Z, toy_mdnrnn
from wm.memory.fused import Dreamt, FusedMDNRNN
from wm.memory.mdnrnn import MDNRNN, sample


def dreamer(model: MDNRNN, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> FusedMDNRNN:
    return FusedMDNRNN(model, miss=MISS, hit=HIT, temperature=temperature, dtype=dtype)


def random_input(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, h, c and a."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(*shape, size, generator=generator)

    return normal(Z), normal(HIDDEN).tanh(), 3 * normal(HIDDEN), normal(3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("reward", ["tile", "value"])
@torch.no_grad()
def test_it_is_the_plain_forward_and_sample(temperature: float, reward: str) -> None:
    model = toy_mdnrnn(reward=reward)
    fast = dreamer(model, temperature)
    z, h, c, _ = random_input(500)
    state = (h[None], c[None])
    for t in range(12):
        a = torch.rand(500, 3, generator=torch.Generator().manual_seed(t))
        prediction, state = model(z[:, None], a[:, None], state)
        plain = sample(prediction, temperature, torch.Generator().manual_seed(t))[:, 0]
        # The draws of `sample`, in its order.
        generator = torch.Generator().manual_seed(t)
        uniform = torch.rand(500, 1, Z, generator=generator)[:, 0]
        noise = torch.randn(500, 1, Z, generator=generator)[:, 0]
        found = fast.step(z, h, c, a, uniform, noise)
        torch.testing.assert_close(found.h, state[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.c, state[1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.z, plain, atol=1e-4, rtol=1e-4)
        wanted = prediction.reward[:, 0]
        if reward == "tile":
            hit = wanted.sigmoid()
            wanted = hit * HIT + (1 - hit) * MISS
        torch.testing.assert_close(found.reward, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.terminated, prediction.terminated[:, 0].sigmoid(), atol=1e-6, rtol=1e-5)
        assert found.z.std() > 0.1  # of what stands still nothing would be seen
        z, h, c = found.z, found.h, found.c
        state = (h[None], c[None])


@torch.no_grad()
def test_dropout_is_that_of_training_and_leaves_h_whole() -> None:
    model = toy_mdnrnn()
    z, h, c, a = random_input(50)
    uniform, noise = torch.rand(50, Z), torch.randn(50, Z)
    head_mask = torch.where(torch.rand(50, HIDDEN, generator=torch.Generator().manual_seed(0)) < 0.4, 0.0, 1 / 0.6)
    found = dreamer(model).step(z, h, c, a, uniform, noise, head_mask)
    prediction, (whole, _) = model(z[:, None], a[:, None], (h[None], c[None]), head_mask[:, None])
    torch.testing.assert_close(found.h, whole[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.terminated, prediction.terminated[:, 0].sigmoid(), atol=1e-6, rtol=1e-5)
    hit = prediction.reward[:, 0].sigmoid()
    torch.testing.assert_close(found.reward, hit * HIT + (1 - hit) * MISS, atol=1e-5, rtol=1e-5)
    # Of a noise of 0 what is drawn are means of components, those of M's prediction.
    means = dreamer(model).step(z, h, c, a, uniform, torch.zeros(50, Z), head_mask).z
    assert ((means[..., None] - prediction.mu[:, 0]).abs().amin(-1) < 1e-4).all()
    assert not torch.allclose(found.reward, dreamer(model).step(z, h, c, a, uniform, noise).reward, atol=0.1)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@torch.no_grad()
def test_the_mean_is_that_of_the_mixtures_that_z_is_drawn_from(temperature: float) -> None:
    model = toy_mdnrnn()
    z, h, c, a = random_input(50)
    prediction, (after, _) = model(z[:, None], a[:, None], (h[None], c[None]))
    wanted = ((prediction.logmix / temperature).softmax(-1) * prediction.mu).sum(-1)[:, 0]
    fast = dreamer(model, temperature)
    torch.testing.assert_close(fast.mean(fast.expect(after[0])), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_any_leading_shape_and_shared_noise() -> None:
    """[P,S] dreams under noise [S] are the P·S dreams one by one."""
    fast = dreamer(toy_mdnrnn())
    given = random_input(3, 5)
    uniform = torch.rand(5, Z, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(5, Z, generator=torch.Generator().manual_seed(2))
    found = fast.step(*given, uniform, noise)
    assert [tuple(part.shape) for part in found] == [(3, 5, Z), (3, 5, HIDDEN), (3, 5, HIDDEN), (3, 5), (3, 5)]
    for p in range(3):
        for s in range(5):
            z, h, c, a = (part[p, s] for part in given)
            alone = fast.step(z, h, c, a, uniform[s], noise[s])
            for one, all_of_them in zip(alone, found, strict=True):
                torch.testing.assert_close(one, all_of_them[p, s], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_it_is_given_stays_as_it_is() -> None:
    fast = dreamer(toy_mdnrnn())
    given = (*random_input(7), torch.rand(7, Z), torch.randn(7, Z))
    before = [part.clone() for part in given]
    first, second = fast.step(*given), fast.step(*given)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@torch.no_grad()
def test_bfloat16_is_the_same_up_to_its_rounding() -> None:
    model = toy_mdnrnn()
    given = (*random_input(4000), torch.rand(4000, Z), torch.randn(4000, Z))
    exact, rounded = dreamer(model).step(*given), dreamer(model, dtype=torch.bfloat16).step(*given)
    assert all(part.dtype == torch.float32 for part in rounded)
    torch.testing.assert_close(rounded.h, exact.h, atol=0.05, rtol=0)
    assert (rounded.reward - exact.reward).abs().max() < 0.1
    assert (rounded.reward - exact.reward).mean().abs() < 0.002  # no bias
    # Where the rounding tips the choice of a component z jumps; that is rare, and goes both ways.
    assert ((rounded.z - exact.z).abs() > 0.1).float().mean() < 0.03
    assert (rounded.z.mean(0) - exact.z.mean(0)).abs().max() < 0.03


def test_no_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="not above 0 and finite"):
        dreamer(toy_mdnrnn(), temperature=0.0)


def test_extreme_states_stay_finite() -> None:
    found: Dreamt = dreamer(toy_mdnrnn(), temperature=0.01).step(
        torch.full((1, Z), 1e4),
        torch.ones(1, HIDDEN),
        torch.full((1, HIDDEN), -1e3),
        torch.ones(1, 3),
        torch.full((1, Z), 1 - 1e-7),
        torch.zeros(1, Z),
    )
    assert all(part.isfinite().all() for part in found)
