"""Every number of the project, once, with its unit and source.

A `Config` is what a preset holds: one frozen dataclass per stage. `PRESETS` is keyed by environment, then by
name, so that other environments can join with sizes of their own. The field docstrings below are also the
command line's --help. "Paper" is Ha & Schmidhuber, World Models, 2018, with its published code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

FAST_ENV = "wm/CarRacing-v3"
STOCK_ENV = "CarRacing-v3"
DREAM_ENV = "wm/Dream-v0"

Precision = Literal["float32", "int8"]
"""What V's encoder computes in when it acts."""

RUN_FORMAT = 1
"""Version of the run folder's layout and of every artifact in it; a folder of another version is refused."""


@dataclass(frozen=True)
class SeedRange:
    """A half-open range of track seeds (the argument of env.reset); ranges of different uses never overlap."""

    start: int
    stop: int

    def __contains__(self, seed: int) -> bool:
        return self.start <= seed < self.stop

    def __getitem__(self, index: int) -> int:
        """The seed at `index`; IndexError past the end, so that no use can leave its range unnoticed."""
        if not 0 <= index < self.stop - self.start:
            raise IndexError(f"seed index {index} outside of a range of {self.stop - self.start}")
        return self.start + index


COLLECT_SEEDS = SeedRange(0, 1_000_000_000)
"""Tracks that data for V and M is collected on. A run's seed s uses [s, s + 1) million of each range."""
EVOLVE_SEEDS = SeedRange(1_000_000_000, 1_800_000_000)
"""Tracks that candidates are compared on."""
PROBE_SEEDS = SeedRange(1_800_000_000, 1_900_000_000)
"""Tracks that [z; h] are probed on."""
SELECT_SEEDS = SeedRange(1_900_000_000, 2_000_000_000)
"""Tracks that the distribution mean is evaluated on, to keep the best one. The same for all seeds of a run."""
EVALUATE_SEEDS = SeedRange(2_000_000_000, 2_100_000_000)
"""Tracks of the final score: nothing is ever trained or selected on them."""
SEEDS_PER_RUN = 1_000_000
"""Size of the part of a seed range that belongs to one run seed."""
RUN_SEEDS = 100
"""Seeds that a run can have: 0 to 99."""
DRIVEN_FROM = SEEDS_PER_RUN // 2
"""Index of the first episode that a controller drove, and so the most episodes of untrained policies."""


def track_seeds(part: SeedRange, run_seed: int) -> SeedRange:
    """The part of a seed range that belongs to one run seed (an int >= 0)."""
    start = part[run_seed * SEEDS_PER_RUN]
    return SeedRange(start, part[run_seed * SEEDS_PER_RUN + SEEDS_PER_RUN - 1] + 1)


@dataclass(frozen=True)
class CollectConfig:
    """Rollouts of a policy that has learnt nothing yet (paper, section 4.1)."""

    episodes: int = 10_000
    """Episodes in all; a larger number later adds the missing ones. Paper: 10,000."""
    max_steps: int = 1000
    """Longest episode, in environment steps; a longer one is truncated. Paper: 1000."""
    driven: int = 0
    """Episodes more, driven by a controller that is disturbed (paper, section 5: iterate): that of --source, else a
    scout's. A larger number later adds the missing ones. Paper's CarRacing: none."""
    bursts: float = 0.01
    """Chance a step that a burst of brownian actions begins in a driven episode: one in two seconds of driving."""
    spread: float = 0.0
    """Every second driven episode is driven by a neighbour of the controller, whose weights on centred [z; h] differ by
    so much (standard deviation), as candidates of an evolution with such a sigma do. 0: by none."""
    scout: str = "scout"
    """Preset of the scout: all four stages at smaller sizes, in RUN/scout/, for a controller that drives the driven
    episodes."""
    policy: Literal["random_network", "brownian", "cruise", "mixture", "wide", "uniform"] = "mixture"
    """random_network: the paper's V-M-C network with Cauchy weights, drawn anew for each episode. brownian: a
    random walk in action space. mixture: each episode is one of the two, drawn with equal chance. cruise: a random walk
    of wheel and one pedal, that goes fast. wide: one of the three, every second one cruise. uniform: each action
    sampled from the action space (the only one that fits any environment)."""
    cut_after: int = 0
    """Give an episode up after so many steps without a new tile, since what follows is grass; 0: never. Paper: 0."""
    episodes_per_shard: int = 8
    """Episodes in one HDF5 file; a kill costs at most this many episodes a worker."""


@dataclass(frozen=True)
class VAEConfig:
    """V, the convolutional VAE (paper, appendix A.1)."""

    z: int = 32
    """Size of the latent vector. Paper: 32."""
    updates: int = 1_000_000
    """Gradient updates in all. Paper: 10 epochs over 10 million frames in batches of 100."""
    batch: int = 100
    """Frames a batch. Paper: 100."""
    lr: float = 1e-4
    """Adam's learning rate. Paper: 1e-4."""
    free_nats: float = 0.5
    """Nats per latent dimension below which the KL term does not push. Paper's code: 0.5, so 16 for z 32."""
    kl_weight: float = 1.0
    """Weight of the KL term beside the summed squared error: below 1, z says more of the frame. Paper: 1."""
    road_weight: float = 1.0
    """Weight of squared errors off the grass (road, curbs, car), where CarRacing's rewards come from. Paper: 1."""
    validation: float = 0.05
    """Share of the episodes (never single frames) that are held out for validation."""
    earlier: tuple[int, ...] = ()
    """Numbers of episodes there were in earlier rounds: what was held out of them stays so, and nothing else of them
    becomes so, which a V that goes on (--start) may have been trained on. None: there was no earlier round."""
    validate_every: int = 5000
    """Updates between validations; the best weights on validation loss are kept."""
    validation_frames: int = 4000
    """Most frames that one validation looks at, spread over all validation episodes."""
    shuffle_frames: int = 20_000
    """Frames in the shuffle buffer: bounds the memory (12 kB a frame) at any size of the data."""
    warn_error: float = 30.0
    """Warn when the squared error of a validation image is above this: V is then not good enough to drive by."""


@dataclass(frozen=True)
class MDNRNNConfig:
    """M, the MDN-RNN (paper, appendix A.2)."""

    hidden: int = 256
    """LSTM units. Paper: 256."""
    mixtures: int = 5
    """Gaussians per latent dimension. Paper: 5."""
    reward: Literal["tile", "value"] = "tile"
    """tile: the reward head is the probability of touching a new tile in this step (CarRacing's rewards are
    pulses of 1000/N, N differing by track, minus 0.1 a step). value: the head predicts the reward itself."""
    updates: int = 4000
    """Gradient updates in all. Paper's code: 4000."""
    batch: int = 100
    """Clips a batch. Paper: 100."""
    length: int = 1000
    """Steps of a clip; shorter pieces are padded and masked. Paper: whole episodes, whose 1000 frames have 999
    steps between them; ours keep the last frame, too."""
    lr: float = 1e-3
    """Adam's learning rate at the start. Paper: 1e-3."""
    lr_final: float = 1e-5
    """Learning rate that the decay goes to. Paper: 1e-5."""
    lr_decay: float = 0.9999
    """Factor on (lr - lr_final) an update. Paper's code: 0.9999."""
    clip: float = 1.0
    """Largest norm of the gradient. Paper's code clips each entry at 1.0."""
    logsigma_floor: float = -7.0
    """Lower bound on log sigma: without one, sigma goes to 0 and the loss explodes."""
    dropout: float = 0.0
    """Chance that the heads do not see a unit of h in training, the same units for a whole clip (Wellmer & Kwok, 2021),
    so that a dream may leave some out, too (the dream's own --dropout). Paper: 0."""
    posterior: float = 1.0
    """Of V's standard deviation, how much of it there is in the z that M is trained on. 1: z is drawn from V's
    posterior, as the paper does. Less: closer to V's mean, which is what the agent acts on."""
    head_weight: float = 1.0
    """Weight of the reward and termination losses (nats a step) beside the NLL (nats a latent dimension)."""
    outlook: tuple[int, ...] = ()
    """Horizons in steps over which a linear head predicts the mean rate of tiles (or the mean reward), so that h holds
    what C needs, such as the speed, where a linear map finds it. Paper: none."""
    outlook_weight: float = 100.0
    """Weight of the outlook's squared error (tiles a step; their variance is about 0.01) beside the NLL."""
    fresh: int = 0
    """Half of the clips of each batch are of the last so many of the training episodes; 0: all are alike."""
    validation: float = 0.05
    """Share of the episodes that are held out; the same ones as V's for equal shares and seeds."""
    earlier: tuple[int, ...] = ()
    """Numbers of episodes there were in earlier rounds, as for V."""
    validate_every: int = 500
    """Updates between validations; the best weights on validation loss are kept."""
    validation_clips: int = 200
    """Most clips that one validation looks at."""


@dataclass(frozen=True)
class EvolutionConfig:
    """How C evolves, in the environment or in the dream (paper, appendix A.4)."""

    generations: int = 1800
    """Generations (one ask-tell cycle each) in all; a larger number later goes on. Paper: 1800."""
    env_steps: int = 0
    """Steps of the population, in the environment or in the dream, after which the evolution ends, if the generations
    have not ended it before; a larger number later goes on. 0: no bound."""
    es: Literal["cmaes", "sep-cmaes", "openes"] = "cmaes"
    """Evolution strategy. cmaes, sep-cmaes: pycma's, with a full or a diagonal covariance. openes: OpenAI's (mirrored
    samples, ranks, Adam). Paper: CMA-ES."""
    lr: float = 0.02
    """Learning rate of openes; the others have none."""
    ranks: bool = True
    """What openes weighs its candidates by: their ranks, as the others do, or the fitness itself (--no-ranks)."""
    popsize: int = 64
    """Candidates a generation. Paper: 64."""
    sigma0: float = 0.1
    """First step size of CMA-ES. Paper: 0.1."""
    sigma_max: float = 1000.0
    """Largest step size: unbounded it outgrows what a mean can be told from. Paper: no bound, as this default. openes
    keeps sigma0."""
    sigma_min: float = 0.0
    """Smallest step size: noise in the fitness lets it shrink too early, and a mean whose neighbours drive well
    is a robust one. Paper: no bound, as this default."""
    centre: bool = False
    """Evolve on [z; h] minus its mean over the collected data (in the dream over its starts), folded into b: it costs
    no weights. Paper: no."""
    whiten: float = 0.0
    """Evolve on [z; h] whose principal directions are divided by their standard deviation to this power, 0 to 1, folded
    into the weights as well. Paper: 0."""
    components: int = 0
    """Evolve on so many principal directions of [z; h] only, those of most variance, folded into the weights as well.
    0: on all. Paper: 0."""
    precision: Precision = "float32"
    """What V's encoder computes in whenever this controller acts on frames. int8: its convolutions in integers, which
    takes less than half the time and moves mu by a fraction of the posterior's sigma."""
    max_steps: int = 1000
    """Longest real rollout in environment steps. Paper: 1000."""
    select_every: int = 10
    """Generations between evaluations of the distribution mean on the selection tracks (also after the last)."""
    select_tracks: int = 16
    """Fixed selection tracks, always real ones; what is kept is the mean that was best on them."""
    average: int = 1
    """What is selected and kept is the average of the last so many distribution means, which wanders less than the
    last one. Paper: 1."""


@dataclass(frozen=True)
class ControllerConfig(EvolutionConfig):
    """C, the linear controller, evolved on real rollouts (paper, appendix A.3 and A.4)."""

    tracks: int = 16
    """Rollouts a candidate: tracks drawn anew each generation, the same for all its candidates. Paper: 16."""
    double_every: int = 0
    """Generations after which the rollouts a candidate double, from 1 up to `tracks`: one track tells who stays on the
    road at all, many tell who is lost on one of them. 0: `tracks` in all generations. Paper: 0."""
    cut_after: int = 100
    """Cut a training rollout short after so many steps without a new tile, and charge it 0.1 for each step not
    driven; 0: never. Selection and evaluation are never cut."""
    disturb: float = 0.0
    """Chance a step that a burst of brownian actions disturbs a training rollout, as in driven episodes: what follows
    is then practised. Paper: 0. Selection and evaluation are never disturbed."""
    inputs: Literal["zh", "z"] = "zh"
    """What C sees. z: what V says of the frame and nothing of M's memory (paper, section 3.4: "V model only")."""
    hidden_units: int = 0
    """Units of a hidden layer of C; 0: C is linear, as the paper's but for its "V model only with a hidden layer"."""
    step_cost: float = 0.1
    """What CarRacing charges for each step, and a cut rollout for each step not driven."""


@dataclass(frozen=True)
class DreamConfig(EvolutionConfig):
    """C evolved in M's dream instead of the environment (paper, section 4, does so for Doom)."""

    dreams: int = 16
    """Dreams a candidate: starts and noise drawn anew each generation, the same for all its candidates. Paper: 16."""
    horizon: int = 1000
    """Steps of a dream. Paper: the environment's own limit."""
    value: int = 0
    """Steps after a dream whose return counts as well, as a small network tells it from [z; h] at the end of the dream.
    It is fitted to what the record earned in so many steps after states like it. 0: none. Paper: none."""
    unpaid: int = 50
    """Steps at the beginning of a dream that earn nothing: what the recorded driver's speed still brings in is not
    the candidate's doing. Ours: the car rolls on for about a second."""
    temperature: float = 1.0
    """tau of what M draws: logits/tau and sigma * sqrt(tau). Paper: 1.15 was the best for Doom."""
    noise: Literal["drawn", "recorded"] = "drawn"
    """Where a dream's chance comes from. drawn: out of M, as the paper's. recorded: from the record after the start, as
    far as that goes (Buesing et al., 2019): the recorded actions would then lead to the recorded frames, and others to
    what they would have led to on that road. Roads that M draws by itself are easier than real ones."""
    dropout: float = 0.0
    """Chance that the heads do not see a unit of h in a dream, the same units from its first step to its last, drawn
    anew for each dream (Wellmer & Kwok, 2021): what pays in one such world only does not last. Paper: 0."""
    disagreement: float = 0.0
    """With an ensemble (--ensemble): points that a paid step costs for each unit by which its M's disagree about the
    next z: the variance of their means of it, a mean over its dimensions. Paper: no ensemble."""
    starts: int = 512
    """Moments of recorded episodes that dreams begin at, kept in starts.npz."""
    fresh: int = 0
    """Starts, and what the value is fitted to, are of the last so many of these episodes only: what slow cars met, and
    what their states were worth, says little of fast ones. 0: of all."""
    start_after: int = 70
    """Steps of the recorded episode before the first moment that can be a start: M has seen all of them. CarRacing
    zooms in for 50; twenty more let M forget that."""
    start_near: int = 20
    """A start has a new tile within so many recorded steps before or after it: elsewhere there is no road to drive on,
    and all candidates earn the same. 0, or a record without such moments: any moment."""


@dataclass(frozen=True)
class IterateConfig:
    """Rounds of collecting, V, M and the dream (paper, section 5, which names no sizes)."""

    rounds: int = 3
    """Rounds in all; a larger number later adds the missing ones. Paper: one for CarRacing."""
    added: int = 10_000
    """Episodes that each round after the first adds, driven by the controller of the round before."""
    driver: Literal["dream", "dream-latest"] = "dream"
    """Who drives them: of the evolution's means the one that real tracks selected, or the latest, which has gone
    furthest into what its dream gets wrong."""
    vae_updates: int = 100_000
    """Gradient updates of V in each round after the first, from the weights of the round before."""
    vae_rounds: int = 1_000_000
    """Rounds after the first in which V learns; after them it stays, and only new frames need be encoded."""
    mdnrnn_updates: int = 2000
    """Gradient updates of M in each of these rounds, from the weights of the round before."""
    mdnrnn_options: str = ""
    """Options of stage mdnrnn in these rounds, such as "--lr 5e-4"."""
    fresh_rounds: int = 0
    """Half of M's clips, all starts, and what the value is fitted to are from the episodes of the last so many rounds,
    in the rounds after the first; while there were fewer, as many of the first round's last episodes fill up. 0: all
    episodes are alike."""
    dream_options: str = ""
    """Options of stage dream in all rounds, such as "--popsize 128 --horizon 150"."""
    refine_from: int = 0
    """From this round on each is a small step, in which C goes on from the latest mean of the round before; in those
    before it begins with zeros, so that it forgets what it made of an M that knew less. 0: no round is, and the three
    fields below count for nothing."""
    refine_added: int = 40
    """Episodes that each of these adds, in place of `added`."""
    refine_updates: int = 200
    """Gradient updates of M in these, in place of `mdnrnn_updates`."""
    refine_options: str = ""
    """Options of stage dream in these, beside `dream_options`, such as few --generations and a small --sigma0. Dreams
    are true near to what has been driven, and who goes far in one round leaves that."""


@dataclass(frozen=True)
class EvaluateConfig:
    """The score: 100 fresh tracks of the stock environment (paper, section 4.1)."""

    episodes: int = 100
    """Tracks. Paper and the Gym leaderboard: 100 consecutive trials."""
    max_steps: int = 1000
    """Longest episode in environment steps, as the environment's own limit."""


@dataclass(frozen=True)
class ProbeConfig:
    """What ridge regression reads from [z; h]: ours, the paper has no such thing."""

    episodes: int = 60
    """Fresh tracks, each driven once by the controller with bursts of brownian actions."""
    max_steps: int = 1000
    """Longest episode in environment steps."""
    validation: float = 0.25
    """Share of the episodes, the last ones, that the regression is tested on; it is fitted to the others."""
    penalty: float = 10.0
    """On the squared weights of features of variance 1, beside the squared errors summed over all steps: as if each
    feature had said nothing for so many steps more."""
    start_after: int = 50
    """Steps at the start of an episode that do not count: CarRacing zooms in for so many."""
    off_road: float = 12.0
    """World units from the centre line from which on a step does not count. The road ends at 6.7, so this car is in
    the grass; far out the nearest piece of road may be another one, or none of it in the picture."""


@dataclass(frozen=True)
class Config:
    """All sizes of one preset of one environment."""

    collect: CollectConfig = field(default_factory=CollectConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    mdnrnn: MDNRNNConfig = field(default_factory=MDNRNNConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    iterate: IterateConfig = field(default_factory=IterateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


PAPER = Config()
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
SCOUT = replace(
    LAPTOP,
    collect=replace(LAPTOP.collect, episodes=300, driven=0),
    vae=replace(LAPTOP.vae, updates=2000),
    mdnrnn=replace(LAPTOP.mdnrnn, updates=2000, validate_every=250),
    controller=replace(
        LAPTOP.controller,
        generations=40,
        popsize=64,
        tracks=1,
        double_every=0,
        select_every=10,
        select_tracks=32,
    ),
)
DREAMER = replace(
    LAPTOP,
    collect=replace(LAPTOP.collect, episodes=900, driven=0, policy="wide", cut_after=100, bursts=0, spread=0.06),
    vae=SCOUT.vae,
    mdnrnn=SCOUT.mdnrnn,
    dream=replace(
        LAPTOP.dream,
        generations=20,
        popsize=64,
        dreams=64,
    ),
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

PRESETS: dict[str, dict[str, Config]] = {
    FAST_ENV: {"smoke": SMOKE, "scout": SCOUT, "dreamer": DREAMER, "laptop": LAPTOP, "paper": PAPER}
}

MOST_AVERAGED = 1000
"""Means of an evolution that are remembered."""

BOUNDS: dict[str, tuple[float, float]] = {
    "average": (1, MOST_AVERAGED),
    "episodes": (1, 10**6),
    **dict.fromkeys(("max_steps", "generations", "validate_every"), (1, 10**9)),
    **dict.fromkeys(("episodes_per_shard", "length", "dreams", "horizon", "tracks"), (1, 10**6)),
    **dict.fromkeys(("select_every", "select_tracks", "starts", "validation_frames", "validation_clips"), (1, 10**6)),
    **dict.fromkeys(("shuffle_frames", "batch"), (1, 10**8)),
    **dict.fromkeys(("driven", "cut_after", "unpaid", "start_after", "start_near", "double_every"), (0, 10**6)),
    **dict.fromkeys(("free_nats", "kl_weight", "head_weight", "step_cost", "warn_error"), (0, 10**6)),
    **dict.fromkeys(("road_weight", "outlook_weight", "disagreement"), (0, 10**6)),
    **dict.fromkeys(("lr", "lr_final", "lr_decay"), (1e-12, 1)),
    **dict.fromkeys(("sigma0", "sigma_max", "temperature", "clip", "penalty", "off_road"), (1e-12, 10**6)),
    **dict.fromkeys(("first_seed", "track"), (0, 2**31 - 1)),
    "sigma_min": (0, 10**6),
    "whiten": (0, 1),
    "posterior": (1e-3, 1),
    **dict.fromkeys(("disturb", "bursts"), (0, 1)),
    "spread": (0, 10**6),
    "dropout": (0, 0.99),
    "components": (0, 4096),
    "hidden_units": (0, 1024),
    "validation": (1e-6, 1 - 1e-6),
    "logsigma_floor": (-50, 0),
    "z": (1, 4096),
    "hidden": (1, 65_536),
    "mixtures": (1, 1024),
    "popsize": (4, 10**5),
    "rounds": (1, 50),
    "fresh_rounds": (0, 50),
    **dict.fromkeys(("added", "refine_added"), (1, 10**4)),
    **dict.fromkeys(("updates", "vae_updates", "mdnrnn_updates", "refine_updates"), (0, 10**9)),
    **dict.fromkeys(("value", "fresh", "vae_rounds", "refine_from"), (0, 10**9)),
    "env_steps": (0, 10**12),
    "steps": (1, 10**12),
    "seeds": (0, RUN_SEEDS - 1),
    "draw": (0, 10**6),
    **dict.fromkeys(("outlook", "earlier"), (1, 10**6)),
    "grid": (1, 36),
    "port": (0, 65_535),
}
"""Least and most of each number that a stage can be given, by its name: what is outside is a slip of the finger."""

TOTALS = frozenset({"episodes", "driven", "updates", "generations", "env_steps", "rounds"})
"""Fields that may grow between two calls of a stage: they add work; every other change needs --restart."""


GONE: dict[str, Any] = {"go_on": False, "later_options": "", "later_from": 1, "discount": 0.0, "pace": 0.0}
"""Fields of earlier versions, and their defaults: work that was done with another value cannot go on."""


def changed_fields(old: dict[str, Any], new: Any) -> Iterator[str]:
    """Says 'name was OLD, is NEW' for each field of config dataclass `new` that differs from the stored dict.

    Totals (`TOTALS`) are left out: a change of those adds work and needs no restart. A field that the stored dict
    lacks had its default, since a new field's default is what was done before there was one.
    """
    for f in fields(new):
        before = old.get(f.name, f.default)
        before = tuple(before) if isinstance(before, list) else before  # JSON has no tuples
        if f.name not in TOTALS and before != getattr(new, f.name):
            yield f"{f.name} was {before}, is {getattr(new, f.name)}"
    for name, default in GONE.items():
        if old.get(name, default) != default:
            yield f"{name} was {old[name]}, is no more"
