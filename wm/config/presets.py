"""Presets: all sizes of one environment under one name."""

from __future__ import annotations

from dataclasses import replace

from wm.config.vmc import Config

STOCK_ENV = "CarRacing-v3"
FAST_ENV = "wm/CarRacing-v3"
"""Our faster form of it, which training sees."""
DEFAULT_ENV = STOCK_ENV
"""The environment of a run that does not name one."""

PAPER = Config()
"""The paper's sizes."""
LAPTOP = Config(
    collect=replace(PAPER.collect, episodes=500, driven=400, max_steps=500),
    vae=replace(PAPER.vae, updates=4000, lr=3e-4, kl_weight=0.1, validate_every=500, validation_frames=2000),
    mdnrnn=replace(
        PAPER.mdnrnn,
        updates=4000,
        batch=20,
        length=160,
        lr_decay=0.999,
        outlook=(10, 20, 40),
        validate_every=400,
        validation_clips=128,
    ),
    controller=replace(
        PAPER.controller,
        generations=60,
        popsize=32,
        tracks=8,
        double_every=15,
        sigma_max=0.1,
        centre=True,
        whiten=1.0,
        components=32,
        precision="int8",
        cut_after=50,
        select_every=3,
        select_tracks=64,
        average=4,
    ),
    dream=replace(
        PAPER.dream,
        generations=60,
        popsize=128,
        horizon=100,
        value=150,
        unpaid=0,
        noise="recorded",
        start_near=10,
        sigma_max=0.1,
        centre=True,
        precision="int8",
        select_every=10,
        select_tracks=32,
        average=4,
    ),
    iterate=replace(PAPER.iterate, added=200, vae_updates=1000),
)
"""The main run: an evening on two cores."""
SCOUT = replace(
    LAPTOP,
    collect=replace(LAPTOP.collect, episodes=300, driven=0),
    vae=replace(LAPTOP.vae, updates=2000),
    mdnrnn=replace(LAPTOP.mdnrnn, updates=2000, validate_every=250),
    controller=replace(
        LAPTOP.controller, generations=40, popsize=64, tracks=1, double_every=0, select_every=10, select_tracks=32
    ),
)
"""A smaller run, whose controller drives part of the data of preset laptop."""
ROUNDS = replace(
    LAPTOP,
    collect=replace(LAPTOP.collect, episodes=900, driven=0, policy="wide", cut_after=100, bursts=0, spread=0.06),
    vae=SCOUT.vae,
    mdnrnn=SCOUT.mdnrnn,
    dream=replace(LAPTOP.dream, generations=20, popsize=64, dreams=64),
    iterate=replace(
        LAPTOP.iterate,
        rounds=12,
        added=100,
        driver="dream-latest",
        vae_updates=500,
        vae_rounds=3,
        mdnrnn_updates=600,
        mdnrnn_options="--lr 5e-4 --posterior 0.3",
        fresh_rounds=4,
        refine_from=4,
        refine_options="--generations 6 --sigma0 0.05 --dreams 96",
    ),
)
"""Rounds in the dream (stage iterate)."""
SMOKE = Config(
    collect=replace(PAPER.collect, episodes=8, max_steps=120, episodes_per_shard=2),
    vae=replace(
        PAPER.vae,
        updates=60,
        batch=32,
        lr=1e-3,
        validation=0.25,
        validate_every=20,
        validation_frames=64,
        shuffle_frames=500,
    ),
    mdnrnn=replace(
        PAPER.mdnrnn,
        updates=40,
        batch=8,
        length=32,
        outlook=(5, 10),
        validation=0.25,
        validate_every=20,
        validation_clips=16,
    ),
    controller=replace(
        PAPER.controller,
        generations=2,
        popsize=4,
        tracks=1,
        precision="int8",
        max_steps=100,
        select_every=1,
        select_tracks=2,
    ),
    dream=replace(
        PAPER.dream,
        generations=2,
        popsize=4,
        dreams=2,
        horizon=20,
        unpaid=5,
        starts=8,
        precision="int8",
        max_steps=100,
        select_every=1,
        select_tracks=2,
    ),
    iterate=replace(PAPER.iterate, rounds=2, added=2, driver="dream-latest", vae_updates=20, mdnrnn_updates=20),
    evaluate=replace(PAPER.evaluate, episodes=2, max_steps=100),
    probe=replace(PAPER.probe, episodes=3, max_steps=100),
)
"""Minutes for all stages; learns nothing."""

PRESETS: dict[str, dict[str, Config]] = {
    STOCK_ENV: {"smoke": SMOKE, "scout": SCOUT, "rounds": ROUNDS, "laptop": LAPTOP, "paper": PAPER}
}
"""By the environment's canonical id, then by name, so that another environment can have its own sizes."""

FASTER = {FAST_ENV: STOCK_ENV}
"""Environments by the ids of our faster forms of them, a task's `train_id`."""

RENAMED = {"dreamer": "rounds"}
"""New names of presets by their earlier ones."""


def canonical(env: str) -> str:
    """The id that presets and manifests know an environment by: our faster form of one is another name of it."""
    return FASTER.get(env, env)
