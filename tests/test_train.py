"""The gradient loop: it learns, keeps the best, resumes exactly from anywhere, and refuses what it must."""

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wm.learning.gradient
from wm.config.bounds import total
from wm.learning.checkpoint import Best, TrainState, delete_results, is_finished
from wm.learning.gradient import _Diverged, _divergence_error, train
from wm.run.artifact import save_artifact
from wm.run.device import derived_seed, seeded
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import read_metrics
from wm.run.signals import Interrupted

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TinyConfig:
    updates: int = total(30, 0, 10**9)
    validate_every: int = 7
    width: int = 8
    lr: float = 0.02


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def target(x: Tensor) -> Tensor:
    return (x[:, :1] - x[:, 1:2]).tanh()


def batches(start: int) -> Iterator[np.ndarray]:
    n = start
    while True:
        yield np.random.default_rng(n).normal(size=(16, 3)).astype(np.float32)
        n += 1


def loss(model: nn.Module, batch: np.ndarray, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    x = torch.from_numpy(batch)
    noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
    value = (model(noisy) - target(x)).square().mean()
    return value, {"root": value.detach().sqrt(), "one": 1.0}


def validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    x = torch.from_numpy(next(batches(10_000)))
    return {"loss": (model(x) - target(x)).square().mean().item(), "seven": 7.0}


def go(run: Run, config: TinyConfig = TinyConfig(), **changes: Any) -> tuple[Best, nn.Module]:
    model = seeded(make, 5)
    options: dict[str, Any] = {
        "config": config,
        "seed": 5,
        "made_from": {"data": "abc"},
        "batches": batches,
        "loss": loss,
        "validate": validate,
        "lr": lambda update: config.lr * 0.99**update,
        "device": CPU,
        "clip": 1.0,
    }
    return train(run, "tiny", model, **{**options, **changes}), model


def lines(run: Run) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("time", "updates_per_second")}
        for line in read_metrics(run.metrics, "tiny")
    ]


def assert_same(one: Run, other: Run) -> None:
    """Checkpoints (model, optimiser, best, sums) equal bit for bit, and metrics but for the times."""
    a, b = (torch.load(run.checkpoints / "tiny.pt", weights_only=True) for run in (one, other))
    assert json.dumps(a, default=lambda t: t.tolist()) == json.dumps(b, default=lambda t: t.tolist())
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("plain"))
    go(run)
    return run


def test_learns_and_logs(plain: Run) -> None:
    found = lines(plain)
    assert [line["step"] for line in found] == [7, 14, 21, 28, 30]
    assert found[-1]["val_loss"] < 0.5 * found[0]["val_loss"]
    assert found[0].keys() == {"stage", "step", "loss", "root", "one", "lr", "val_loss", "val_seven"}
    assert all(line["one"] == 1.0 and line["val_seven"] == 7.0 for line in found)
    assert found[0]["lr"] == pytest.approx(0.02 * 0.99**6)


def test_logged_loss_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    losses = []

    def spy(*args: Any) -> tuple[Tensor, dict[str, Any]]:
        value, numbers = loss(*args)
        losses.append(value.item())
        return value, numbers

    run = Run(tmp_path)
    go(run, loss=spy)
    assert [line["loss"] for line in lines(run)] == pytest.approx(
        [np.mean(losses[a:b]) for a, b in ((0, 7), (7, 14), (14, 21), (21, 28), (28, 30))]
    )


def test_best_weights_are_kept_apart_from_the_last(tmp_path: Path) -> None:
    seen: list[tuple[float, Tensor]] = []
    scores = iter([5.0, 2.0, 3.0, 4.0, 2.0])

    def scripted(model: Any) -> dict[str, float]:
        seen.append((next(scores), model[0].weight.detach().clone()))
        return {"loss": seen[-1][0]}

    best, model = go(Run(tmp_path), validate=scripted)
    assert best.update == 14  # the first of two equals
    assert best.done == 30
    assert best.metrics == {"loss": 2.0}
    assert torch.equal(best.weights["0.weight"], seen[1][1])
    assert not torch.equal(best.weights["0.weight"], model.state_dict()["0.weight"])


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written on the way out."""


def stop_in(what: Any, at: int, kind: type[BaseException]) -> Any:
    """A function that does what `what` does, and raises at its call number `at`."""
    calls = iter(range(1_000_000))

    def wrapped(*args: Any) -> Any:
        if next(calls) == at:
            raise kind
        return what(*args)

    return wrapped


@given(
    stops=st.lists(
        st.tuples(st.sampled_from([Interrupted, KeyboardInterrupt, Killed]), st.integers(0, 29)), min_size=1, max_size=3
    ),
    save_every=st.integers(1, 12),
)
@settings(deadline=None, max_examples=15)
def test_resume_is_exact(
    plain: Run, tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[type[BaseException], int]], save_every: int
) -> None:
    """Stopped anywhere, gently or not, and called again: bit for bit what one go gives."""
    run = Run(tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as patch:
        clock = iter(range(100_000_000))  # a clock that ticks at each look, to save often and at odd updates
        patch.setattr(wm.learning.gradient, "SAVE_SECONDS", save_every)
        patch.setattr(wm.learning.gradient.time, "monotonic", lambda: next(clock))
        for kind, at in stops:
            with suppress(kind):
                go(run, loss=stop_in(loss, at, kind))
        go(run)
    assert_same(run, plain)


@pytest.mark.parametrize("kind", [Interrupted, Killed])
def test_stopped_within_an_update(plain: Run, tmp_path: Path, kind: type[BaseException]) -> None:
    """In the middle of validation, after the optimiser's step: a half-done update must not be saved as whole."""
    run = Run(tmp_path)
    for at in (1, 2, 0):
        with pytest.raises(kind):
            go(run, validate=stop_in(validate, at, kind))
    go(run)
    assert_same(run, plain)


@pytest.mark.usefixtures("unwinding")
def test_a_signal_within_an_update_waits_for_its_end(tmp_path: Path, plain: Run) -> None:
    """Between the step of the optimiser and its count nothing could be saved."""

    class Signalling(float):
        def __float__(self) -> float:
            os.kill(os.getpid(), signal.SIGTERM)
            return 1.0

    def signalled(*args: Any) -> tuple[Tensor, dict[str, Any]]:
        value, numbers = loss(*args)
        seen.append(value)
        return value, numbers | ({"one": Signalling()} if len(seen) == 12 else {})

    seen: list[Tensor] = []
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        go(run, loss=signalled)
    assert torch.load(run.checkpoints / "tiny.pt", weights_only=True)["state"]["update"] == 12
    go(run)
    assert_same(run, plain)


def test_interrupt_saves_what_was_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        go(run, loss=stop_in(loss, 11, Interrupted))
    starts = []

    def spy(start: int) -> Iterator[np.ndarray]:
        starts.append(start)
        return batches(start)

    go(run, batches=spy)
    assert starts == [11]


def test_larger_total_goes_on_from_the_last_weights(plain: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, TinyConfig(updates=14))
    best, model = go(run)
    assert best.done == 30
    expected = torch.load(plain.checkpoints / "tiny.pt", weights_only=True)["model"]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert lines(run) == lines(plain)


def test_finished_checkpoint_gives_the_best_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    best, _ = go(run)
    again, _ = go(run, loss=stop_in(loss, 0, Killed))  # not one more update
    assert (again.update, again.metrics, again.done) == (best.update, best.metrics, 30)
    assert all(torch.equal(value, again.weights[name]) for name, value in best.weights.items())


def test_seed_makes_the_result() -> None:
    assert derived_seed("vae", 0, 1) == derived_seed("vae", 0, 1)
    assert len({derived_seed(stage, seed, n) for stage in "ab" for seed in range(3) for n in range(50)}) == 300
    state = torch.random.get_rng_state()
    one, two, other = seeded(make, 1), seeded(make, 1), seeded(make, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.state_dict()["0.weight"], two.state_dict()["0.weight"])
    assert not torch.equal(one.state_dict()["0.weight"], other.state_dict()["0.weight"])


def diverging(at: dict[int, float]) -> Any:
    """A loss that is multiplied by a number at some batches."""

    def found(model: Any, batch: Any, generator: Any) -> tuple[Tensor, dict[str, Any]]:
        value, numbers = loss(model, batch, generator)
        for number, factor in at.items():
            if np.array_equal(batch, next(batches(number))):
                value = value * factor
        return value, numbers

    return found


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e5])
def test_divergence_goes_back_to_the_best_once(tmp_path: Path, bad: float, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    best, model = go(run, loss=diverging({17: bad}))
    found = lines(run)
    back = 21 if bad == 1e5 else 18  # a loss that only grows is noticed at the next line
    assert [line["step"] for line in found] == [step for step in (7, 14, 21, 28, 30) if step != back]
    assert best.done == 30
    for line in found:  # a third of the learning rate after it
        assert line["lr"] == pytest.approx(0.02 * 0.99 ** (line["step"] - 1) / (3 if line["step"] > back else 1))
    said = capsys.readouterr().err
    assert said.count("warning: stage tiny has diverged (the ") == 1
    assert f"at update {back}): it continues from the weights of update 14 with the learning rate times 0.33." in said
    state = torch.load(run.checkpoints / "tiny.pt", weights_only=True)["state"]
    assert (state["retreat"], state["update"]) == (back, 30)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_divergence_names_the_command_of_another_kind_of_m() -> None:
    said = str(_divergence_error("drift", _Diverged("loss", math.inf), 7, 0.03, TrainState()))
    assert said.endswith('redo it with a lower rate, `make memory M=drift ARGS="--restart --lr 0.01"`.')


def test_divergence_before_the_first_validation_goes_back_to_the_start(tmp_path: Path) -> None:
    seen = []

    def spy(model: Any, batch: Any, generator: Any) -> tuple[Tensor, dict[str, Any]]:
        seen.append(model[0].weight.detach().clone())
        return diverging({3: float("nan")})(model, batch, generator)

    go(Run(tmp_path), loss=spy)
    assert torch.equal(seen[4], seen[0])
    assert not torch.equal(seen[3], seen[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e5])
def test_divergence_again_is_one_sentence_and_saves_nothing_bad(tmp_path: Path, bad: float) -> None:
    run = Run(tmp_path)
    where = "update 28" if bad == 1e5 else "update 24"
    with pytest.raises(UserError, match=rf"{where}, learning rate 0\.005.*and before at update.*--restart --lr 0\.002"):
        go(run, loss=diverging({17: bad, 23: bad}))
    assert not (run.checkpoints / "tiny.pt").exists()
    assert all(np.isfinite(line["loss"]) and line["loss"] < 10 for line in lines(run))


def test_divergence_before_the_first_validation_does_not_go_back_to_another_start(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        go(run, made_from={"data": "abc", "start": "def"}, loss=stop_in(loss, 3, Interrupted))
    with pytest.raises(UserError, match=r"has diverged \(the loss is nan at update 5"):
        go(run, loss=diverging({4: float("nan")}))  # called without that start


@given(at=st.integers(0, 28), stop=st.integers(0, 29), kind=st.sampled_from([Interrupted, Killed]))
@settings(deadline=None, max_examples=10)
def test_a_resume_around_a_divergence_is_exact(
    tmp_path_factory: pytest.TempPathFactory, at: int, stop: int, kind: type[BaseException]
) -> None:
    runs = [Run(tmp_path_factory.mktemp(name)) for name in ("plain", "stopped")]
    bad = diverging({at: float("nan")})
    go(runs[0], loss=bad)
    with pytest.MonkeyPatch.context() as patch:
        clock = iter(range(100_000_000))
        patch.setattr(wm.learning.gradient, "SAVE_SECONDS", 9)
        patch.setattr(wm.learning.gradient.time, "monotonic", lambda: next(clock))
        with suppress(kind):
            go(runs[1], loss=stop_in(bad, stop, kind))
        go(runs[1], loss=bad)
    assert_same(*runs)


def test_a_checkpoint_of_before_that_rule_is_gone_on_with(plain: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, TinyConfig(updates=14))
    checkpoint = torch.load(run.checkpoints / "tiny.pt", weights_only=True)
    del checkpoint["state"]["first"], checkpoint["state"]["retreat"]
    torch.save(checkpoint, run.checkpoints / "tiny.pt")
    go(run)
    assert lines(run) == lines(plain)


@pytest.mark.parametrize("clip", [1.0, None])
def test_infinite_gradient_and_validation_are_diagnosed(tmp_path: Path, clip: float | None) -> None:
    def steep(model: Any, batch: Any, generator: Any) -> tuple[Tensor, dict[str, Any]]:
        return model(torch.zeros(1, 3)).square().sum().mul(0).sqrt().sum(), {}  # 0, with an infinite slope

    with pytest.raises(UserError, match=r"norm of the gradient is nan at update 2, .* and before at update 1\)"):
        go(Run(tmp_path), loss=steep, clip=clip)
    with pytest.raises(UserError, match=r"validation loss is nan at update 14, .* and before at update 7\)"):
        go(Run(tmp_path), validate=lambda model: {"loss": float("nan")})


def test_refuses_other_options_and_other_data(tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, TinyConfig(updates=5))
    with pytest.raises(UserError, match=r"lr was 0\.02, is 0\.01"):
        go(run, TinyConfig(lr=0.01))
    with pytest.raises(UserError, match="made from another data"):
        go(run, made_from={"data": "xyz"})
    with pytest.raises(UserError, match="5 updates already"):
        go(run, TinyConfig(updates=4))


def test_refuses_a_damaged_or_foreign_checkpoint(plain: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.checkpoints / "tiny.pt"
    path.parent.mkdir()
    whole = (plain.checkpoints / "tiny.pt").read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(UserError, match="damaged"):
        go(run)
    checkpoint = torch.load(plain.checkpoints / "tiny.pt", weights_only=True)
    changes: list[dict[str, Any]] = [
        {"kind": "vae checkpoint"},
        {"format": 0},
        {"model": {}},
        {"optimizer": {}},
        {"state": {"update": 1}},
        {"config": 3},
    ]
    for change in changes:
        torch.save({**checkpoint, **change}, path)
        with pytest.raises(UserError, match="make memory M=tiny ARGS=--restart"):
            go(run)


def test_finished_or_not(tmp_path: Path) -> None:
    run, path, made_from = Run(tmp_path), tmp_path / "tiny.pt", {"data": "abc"}
    config = TinyConfig()
    assert not is_finished(run, "tiny", path, config, made_from)
    best, _ = go(run)
    save_artifact(path, "tiny", best.weights, {"updates": 30}, made_from)
    assert is_finished(run, "tiny", path, config, made_from)
    assert is_finished(run, "tiny", path, replace(config, updates=20), made_from)
    assert not is_finished(run, "tiny", path, replace(config, updates=40), made_from)
    with pytest.raises(UserError, match="made from another data"):
        is_finished(run, "tiny", path, config, {"data": "xyz"})
    (run.checkpoints / "tiny.pt").unlink()
    assert is_finished(run, "tiny", path, config, made_from)
    with pytest.raises(UserError, match="cannot be resumed from update 30"):
        is_finished(run, "tiny", path, replace(config, updates=40), made_from)
    delete_results(run, "tiny", path)
    assert not path.exists()
    assert not is_finished(run, "tiny", path, replace(config, updates=40), made_from)


def test_the_noise_of_an_update_is_seeded_by_stage_seed_and_its_number(tmp_path: Path) -> None:
    seeds = []

    def watched(model: Any, batch: Any, generator: torch.Generator) -> Any:
        seeds.append(generator.initial_seed())
        return loss(model, batch, generator)

    go(Run(tmp_path), TinyConfig(updates=5), loss=watched)
    go(Run(tmp_path), TinyConfig(updates=9), loss=watched)
    assert seeds == [derived_seed("tiny", 5, n) for n in range(9)]
