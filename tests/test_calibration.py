"""Calibration: reliability against a hand count, and a dream's clips against the record they start from."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.dream import calibrate
from tests.toy_dream import HIDDEN, Z, make_toy_run, mdnrnn_of, toy_mdnrnn
from wm.config.presets import SMOKE
from wm.dream.calibration import SAMPLES, ClipRewards, dream_clips, head_reliability, reliability
from wm.dream.networks import Networks, load_networks, split_latents
from wm.dream.starts import find_starts
from wm.memory.mdnrnn import MDNRNN
from wm.run.folder import Run
from wm.show.plots.dream import plot_calibration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_toy_run(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def networks(run: Run) -> Networks:
    return load_networks(run)


def test_reliability_by_hand() -> None:
    probability = np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.3])
    came = np.array([True, False, True, True, False, False])
    found = reliability(probability, came, bins=3)
    np.testing.assert_allclose(found.predicted, [0.15, 0.3, 0.85])
    np.testing.assert_allclose(found.observed, [0.5, 0.0, 1.0])
    assert found.count.tolist() == [2, 2, 2]
    assert found.error == pytest.approx((0.35 + 0.3 + 0.15) / 3)
    assert found.rates == pytest.approx((np.mean(probability), 0.5))


def test_what_comes_as_often_as_said_has_no_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 0.2, 200_000)
    came = rng.random(200_000) < probability
    assert reliability(probability, came).error < 0.003
    assert reliability(probability / 2, came).error == pytest.approx(0.05, abs=0.003)


def test_fewer_steps_than_bins() -> None:
    assert reliability(np.array([0.5, 0.1]), np.array([True, False])).count.tolist() == [1, 1]


@torch.no_grad()
def test_heads_are_compared_with_what_came_in_the_same_step(run: Run) -> None:
    """In the toy record a pulse comes where the gas is above 0.8; this M knows that, and nothing of other steps."""
    model = toy_mdnrnn()
    for parameter in model.parameters():
        parameter.zero_()
    weights = model.state_dict()
    weights["lstm.bias_ih_l0"][:HIDDEN] = 30  # the input gate is open,
    weights["lstm.bias_ih_l0"][HIDDEN : 2 * HIDDEN] = -30  # the past forgotten,
    weights["lstm.bias_ih_l0"][3 * HIDDEN :] = 30  # the output gate open: h = tanh(tanh(...))
    weights["lstm.weight_ih_l0"][2 * HIDDEN, Z + 1] = 1000
    weights["lstm.bias_ih_l0"][2 * HIDDEN] = -800
    weights["reward_head.weight"][0, 0] = 30
    latents, _, held_out = split_latents(run, load_networks(run))
    found = head_reliability(latents, held_out, replace(load_networks(run), memory=model))["pulse"]
    # A step that ends the episode pays -100, whatever else came.
    came = np.concatenate([latents.episode(place).rewards > 0 for place in held_out])
    assert found.rates[1] == pytest.approx(came.mean())
    assert found.error < 0.02


def test_a_value_head_has_no_pulse_diagram(run: Run, networks: Networks) -> None:
    latents, _, held_out = split_latents(run, networks)
    assert set(head_reliability(latents, held_out, networks)) == {"pulse", "terminated"}
    value = replace(networks, memory=toy_mdnrnn(reward="value"))
    assert set(head_reliability(latents, held_out, value)) == {"terminated"}


def test_an_m_without_heads_has_the_clips_in_its_sentence(
    tmp_path: Path, networks: Networks, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = find_starts(run, networks, SMOKE.dream)
    calibrate(Run(tmp_path), run, networks, starts, SMOKE.dream)
    assert re.search(r"episodes: pulse .*; terminated .*; a clip's return .*\.\n$", capsys.readouterr().out)
    monkeypatch.delattr(MDNRNN, "foresee")
    calibrate(Run(tmp_path), run, networks, starts, SMOKE.dream)
    assert "validation episodes: a clip's return" in capsys.readouterr().out


def test_clips_are_dreamt_from_the_record(run: Run, networks: Networks) -> None:
    latents, _, held_out = split_latents(run, networks)
    starts = find_starts(run, networks, SMOKE.dream)
    clips = dream_clips(latents, held_out, networks, starts, after=20)
    longest = int(latents.table["length"][held_out].max())
    steps = longest - 20
    assert clips.real.shape == (1, steps)  # only the longest episode has a clip of that length
    place = int(held_out[latents.table["length"][held_out].argmax()])
    np.testing.assert_allclose(clips.real[0], latents.episode(place).rewards[20:], rtol=1e-6)
    assert clips.dreamt.shape == (1, SAMPLES, steps)
    assert np.std(clips.dreamt.sum(2)) > 0  # its dreams differ
    again = dream_clips(latents, held_out, networks, starts, after=20)
    np.testing.assert_array_equal(again.dreamt, clips.dreamt)
    short = dream_clips(latents, held_out, networks, starts, after=1000)  # longer than any episode
    assert short.real.shape[1] == longest - longest // 2


def test_numbers_of_clips() -> None:
    real = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    dreamt = np.stack([real + 0.5, real - 0.5], axis=1) * 2
    numbers = ClipRewards(real, dreamt).numbers()
    assert numbers["real"] == pytest.approx(11 / 3)
    assert numbers["dreamt"] == pytest.approx(22 / 3)
    assert numbers["correlation"] == pytest.approx(1.0)
    assert numbers["error"] == pytest.approx(math.sqrt((9 + 49 + 1) / 3))
    assert ClipRewards(real[:1], dreamt[:1]).numbers()["correlation"] == 0.0


def test_the_picture(tmp_path: Path, run: Run, networks: Networks) -> None:
    latents, _, held_out = split_latents(run, networks)
    starts = find_starts(run, networks, SMOKE.dream)
    heads = head_reliability(latents, held_out, networks)
    plot_calibration(tmp_path / "c.png", heads, dream_clips(latents, held_out, networks, starts, after=20))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_an_m_without_heads_is_told_of_by_its_clips(
    run: Run, networks: Networks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wm.dream.calibration.head_reliability", lambda *_: {})
    monkeypatch.setattr("wm.show.plots.dream.plot_calibration", lambda *_: None)
    calibrate(run, run, networks, find_starts(run, networks, SMOKE.dream), replace(SMOKE.dream, start_after=20))
    assert "validation episodes: a clip's return " in capsys.readouterr().out


@torch.no_grad()
def test_a_dream_that_has_ended_earns_nothing_more(tmp_path: Path) -> None:
    networks = load_networks(run := make_toy_run(tmp_path))
    mdnrnn_of(networks).terminated_head.weight.zero_()
    mdnrnn_of(networks).terminated_head.bias.fill_(0.0)  # each step ends it with the probability 1/2
    latents, _, held_out = split_latents(run, networks)
    starts = find_starts(run, networks, SMOKE.dream)
    starts = replace(starts, rewards=np.array([1, 1, 0], np.float32))
    clips = dream_clips(latents, held_out, networks, starts, after=20)
    np.testing.assert_allclose(clips.dreamt[0, 0, :5], 0.5 ** np.arange(1, 6), rtol=1e-5)
