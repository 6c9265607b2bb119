"""The configs of method vmc: one frozen dataclass per stage, every number with unit and source.

The field docstrings are also the --help texts. "Paper" means Ha & Schmidhuber, World Models, 2018, and its published
code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wm.config.bounds import MOST_AVERAGED, bounded, total
from wm.config.earlier import REMOVED_OF_PROBE, REMOVED_OF_V

if TYPE_CHECKING:
    from wm.contracts import MemoryKind, VisionKind

Precision = Literal["float32", "int8"]
"""Number format of V's encoder when it acts."""


@dataclass(frozen=True)
class CollectConfig:
    """Rollouts of untrained policies, then of a controller (paper, sections 4.1 and 5)."""

    episodes: int = total(10_000, 1, 10**6)
    """Total number of episodes of untrained policies. A larger number later adds the missing ones. Paper: 10,000."""
    max_steps: int = bounded(1000, 1, 10**9)
    """Maximum length of an episode in environment steps; a longer one is truncated. Paper: 1000."""
    driven: int = total(0, 0, 10**6)
    """Number of additional episodes that a controller drives (paper, section 5: iterate), with random disturbances. The
    controller is that of --source, else of the scout. A larger number later adds the missing ones. Paper: none
    for its driving task."""
    bursts: float = bounded(0.01, 0, 1)
    """Probability per step that a burst of brownian actions begins in a driven episode. 0.01: one burst in two seconds
    of driving."""
    spread: float = bounded(0.0, 0, 10**6)
    """Standard deviation of Gaussian noise on the controller's weights (on centred [z; h]) in every second driven
    episode, like the candidates of an evolution with this sigma. 0: no noise."""
    scout: str = "scout"
    """Preset of the scout: a smaller run of all four stages in RUN/scout/. Its controller drives the driven
    episodes."""
    policy: str = "mixture"
    """random_network: the paper's V-M-C network with Cauchy weights, drawn anew for each episode. brownian: a random
    walk in action space. mixture: each episode uses one of these two, with equal probability. uniform: each action is
    sampled from the action space (it fits any environment). An environment may have its own: cruise drives fast; wide
    is one of random_network, brownian and cruise, with cruise in half of the episodes."""
    cut_after: int = bounded(0, 0, 10**6)
    """End an episode after this many steps without a positive reward, since none would follow. 0: never. Paper: 0."""
    episodes_per_shard: int = bounded(8, 1, 10**6)
    """Episodes in one HDF5 file. A killed command loses at most this many episodes per worker."""


@dataclass(frozen=True)
class VAEConfig:
    """V, the convolutional VAE (paper, appendix A.1)."""

    REMOVED: ClassVar[dict[str, Any]] = REMOVED_OF_V

    z: int = bounded(32, 1, 4096)
    """Size of the latent vector. Paper: 32."""
    updates: int = total(1_000_000, 0, 10**9)
    """Total number of gradient updates. Paper: 10 epochs over 10 million frames in batches of 100."""
    batch: int = bounded(100, 1, 10**8)
    """Frames per batch. Paper: 100."""
    lr: float = bounded(1e-4, 1e-12, 1)
    """Adam's learning rate. Paper: 1e-4."""
    free_nats: float = bounded(0.5, 0, 10**6)
    """Free nats per latent dimension: a KL below free_nats * z is not penalised. Paper's code: 0.5, so 16 for z 32."""
    kl_weight: float = bounded(1.0, 0, 10**6)
    """Weight of the KL term beside the summed squared error. Below 1, z holds more of the frame. Paper: 1."""
    validation: float = bounded(0.05, 1e-6, 1 - 1e-6)
    """Fraction of the episodes (never single frames) held out for validation."""
    earlier: tuple[int, ...] = bounded((), 1, 10**6)
    """Number of episodes in each earlier round. It keeps the validation split of those rounds, since a V that continues
    from them (--start) was trained on the rest. Empty: no earlier rounds."""
    validate_every: int = bounded(5000, 1, 10**9)
    """Updates between validations. The weights with the lowest validation loss are saved."""
    validation_frames: int = bounded(4000, 1, 10**6)
    """Maximum number of frames per validation, spread over all validation episodes."""
    shuffle_frames: int = bounded(20_000, 1, 10**8)
    """Frames in the shuffle buffer. It bounds the memory (12 kB a frame) for any size of the data."""
    warn_error: float = bounded(30.0, 0, 10**6)
    """Warn when the squared error per validation image is above this: V is then too inaccurate for driving."""


@dataclass(frozen=True)
class MDNRNNConfig:
    """M, the MDN-RNN (paper, appendix A.2)."""

    hidden: int = bounded(256, 1, 65_536)
    """Recurrent units. Paper: 256."""
    mixtures: int = bounded(5, 1, 1024)
    """Gaussians per latent dimension. Paper: 5."""
    reward: Literal["pulse", "value"] = "pulse"
    """pulse: the reward head predicts the probability of a positive reward in this step, and a dream pays the mean
    rewards of the record; for rewards that are pulses of changing size. value: it predicts the reward itself."""
    updates: int = total(4000, 0, 10**9)
    """Total number of gradient updates. Paper's code: 4000."""
    batch: int = bounded(100, 1, 10**8)
    """Clips per batch. Paper: 100."""
    length: int = bounded(1000, 1, 10**6)
    """Steps per clip; shorter clips are padded and masked. Paper: whole episodes, whose 1000 frames have 999 steps
    between them; ours include the last frame."""
    lr: float = bounded(1e-3, 1e-12, 1)
    """Initial learning rate of Adam. Paper: 1e-3."""
    lr_final: float = bounded(1e-5, 1e-12, 1)
    """Final learning rate, the limit of the decay. Paper: 1e-5."""
    lr_decay: float = bounded(0.9999, 1e-12, 1)
    """Factor on (lr - lr_final) per update. Paper's code: 0.9999."""
    clip: float = bounded(1.0, 1e-12, 10**6)
    """Maximum norm of the gradient. Paper's code clips each entry at 1.0."""
    logsigma_floor: float = bounded(-7.0, -50, 0)
    """Lower bound of log sigma. Without it, sigma goes to 0 and the loss explodes."""
    dropout: float = bounded(0.0, 0, 0.99)
    """Probability that a unit of h is hidden from the heads in training, the same units for a whole clip (Wellmer &
    Kwok, 2021). Meant for dreams with dropout (--dropout of stage dream). Paper: 0."""
    posterior: float = bounded(1.0, 1e-3, 1)
    """Factor on V's standard deviation when z is drawn for M's training. 1: z is drawn from V's posterior (paper).
    Less: z is closer to V's mean, which the agent acts on."""
    head_weight: float = bounded(1.0, 0, 10**6)
    """Weight of the reward and termination losses (nats per step) beside the NLL (nats per latent dimension)."""
    outlook: tuple[int, ...] = bounded((), 1, 10**6)
    """Horizons in steps over which an additional linear head predicts the mean rate of pulses (or the mean reward).
    It makes h hold what C needs, such as the speed, in a linear form. Paper: none."""
    outlook_weight: float = bounded(100.0, 0, 10**6)
    """Weight of the outlook's squared error (pulses per step; their variance is about 0.01) beside the NLL."""
    fresh: int = bounded(0, 0, 10**9)
    """Draw half of the clips of each batch from the newest N training episodes. 0: draw from all alike."""
    validation: float = bounded(0.05, 1e-6, 1 - 1e-6)
    """Fraction of the episodes held out for validation; the same episodes as V's for equal fractions and seeds."""
    earlier: tuple[int, ...] = bounded((), 1, 10**6)
    """Number of episodes in each earlier round, as for V."""
    validate_every: int = bounded(500, 1, 10**9)
    """Updates between validations. The weights with the lowest validation loss are saved."""
    validation_clips: int = bounded(200, 1, 10**6)
    """Maximum number of clips per validation."""


@dataclass(frozen=True)
class EvolutionConfig:
    """The evolution of C, in the environment or in the dream (paper, appendix A.4)."""

    generations: int = total(1800, 1, 10**9)
    """Total number of generations (one ask-tell cycle each). A larger number later continues. Paper: 1800."""
    env_steps: int = total(0, 0, 10**12)
    """Upper bound on the steps of the population, in the environment or in the dream. The evolution ends at this bound
    or at --generations. A larger number later continues. 0: no bound."""
    es: Literal["cmaes", "sep-cmaes", "openes"] = "cmaes"
    """Evolution strategy. cmaes, sep-cmaes: pycma's, with a full or a diagonal covariance. openes: OpenAI's (mirrored
    samples, ranks, Adam). Paper: CMA-ES."""
    lr: float = bounded(0.02, 1e-12, 1)
    """Learning rate of openes. The other strategies have none."""
    ranks: bool = True
    """Weight openes's candidates by rank, as the other strategies do. --no-ranks: by the fitness itself."""
    popsize: int = bounded(64, 4, 10**5)
    """Candidates per generation. Paper: 64."""
    sigma0: float = bounded(0.1, 1e-12, 10**6)
    """Initial sigma (step size). Paper: 0.1."""
    sigma_max: float = bounded(1000.0, 1e-12, 10**6)
    """Upper bound of sigma. Without it, sigma grows until the mean is no longer informative. 1000: in effect no bound
    (paper). With openes sigma stays at sigma0."""
    sigma_min: float = bounded(0.0, 0, 10**6)
    """Lower bound of sigma. Noise in the fitness shrinks sigma too early, and a mean whose neighbours drive well is
    robust. 0: no bound (paper)."""
    centre: bool = False
    """Evolve on [z; h] minus its mean over the collected data (in the dream: over the starts). The mean is folded into
    b, so no weights are added. Paper: no."""
    whiten: float = bounded(0.0, 0, 1)
    """Divide each principal direction of [z; h] by its standard deviation to this power, 0 to 1. The factors are folded
    into the weights. Paper: 0."""
    components: int = bounded(0, 0, 4096)
    """Evolve only on the first N principal directions of [z; h], those of largest variance. They are folded into the
    weights. 0: all. Paper: 0."""
    precision: Precision = "float32"
    """Number format of V's encoder when this controller acts on frames. int8: integer convolutions; they take less than
    half the time and change mu by a fraction of the posterior's sigma."""
    max_steps: int = bounded(1000, 1, 10**9)
    """Maximum length of a real rollout in environment steps. Paper: 1000."""
    select_every: int = bounded(10, 1, 10**6)
    """Generations between evaluations of the distribution mean on the selection tracks (also after the last one)."""
    select_tracks: int = bounded(16, 1, 10**6)
    """Number of fixed selection tracks, always real ones. The mean with the best score on them is saved."""
    average: int = bounded(1, 1, MOST_AVERAGED)
    """Evaluate and save the average of the last N distribution means, which varies less than the last mean. Paper:
    1."""


@dataclass(frozen=True)
class ControllerConfig(EvolutionConfig):
    """C, the linear controller, evolved on real rollouts (paper, appendix A.3 and A.4)."""

    tracks: int = bounded(16, 1, 10**6)
    """Rollouts per candidate, each on one track. Tracks are drawn anew for each generation and are the same for all its
    candidates. Paper: 16."""
    double_every: int = bounded(0, 0, 10**6)
    """Double the rollouts per candidate every N generations, from 1 up to `tracks`. One track shows which candidates
    drive at all; many tracks show which ones fail on some. 0: `tracks` in all generations. Paper: 0."""
    cut_after: int = bounded(100, 0, 10**6)
    """End a training rollout after this many steps without a positive reward and charge it --step-cost for each step
    not driven. 0:
    never. Rollouts for selection and evaluation are never cut."""
    disturb: float = bounded(0.0, 0, 1)
    """Probability per step that a burst of brownian actions begins in a training rollout, as in driven episodes, so
    that C learns to recover. Paper: 0. Rollouts for selection and evaluation are never disturbed."""
    inputs: Literal["zh", "z"] = "zh"
    """Input of C. zh: [z; h]. z: only V's latent, without M's memory (paper, section 3.4: "V model only")."""
    hidden_units: int = bounded(0, 0, 1024)
    """Units of C's hidden layer. 0: C is linear, as in the paper except for its "V model only with a hidden layer"."""
    step_cost: float = bounded(0.1, 0, 10**6)
    """Cost of each step in the environment, charged for each step that a cut rollout did not drive."""


@dataclass(frozen=True)
class DreamConfig(EvolutionConfig):
    """C evolved in M's dream instead of the environment (paper, section 4, does so for Doom)."""

    REMOVED: ClassVar[dict[str, Any]] = {"discount": 0.0, "pace": 0.0}

    dreams: int = bounded(16, 1, 10**6)
    """Dreams per candidate. Starts and noise are drawn anew for each generation and are the same for all its
    candidates. Paper: 16."""
    horizon: int = bounded(1000, 1, 10**6)
    """Steps per dream. Paper: the environment's own limit."""
    value: int = bounded(0, 0, 10**9)
    """Add the return of the N steps after the dream, estimated from [z; h] at its end by a small network. The network
    is fitted to N-step returns of recorded episodes. 0: add nothing. Paper: none."""
    unpaid: int = bounded(50, 0, 10**6)
    """Number of first steps of a dream that are not scored. A fast start keeps earning by momentum for
    about a second, whatever the candidate does. Paper: none."""
    temperature: float = bounded(1.0, 1e-12, 10**6)
    """tau of M's samples: logits/tau and sigma * sqrt(tau). Paper: 1.15 was the best for Doom."""
    noise: Literal["drawn", "recorded"] = "drawn"
    """Source of a dream's noise. drawn: sampled, as in the paper. recorded: inferred from the recorded steps after the
    start, as far as they go (Buesing et al., 2019); the recorded actions then lead to the recorded frames, and other
    actions to what they would have led to there. What M samples is easier than the real thing."""
    dropout: float = bounded(0.0, 0, 0.99)
    """Probability that a unit of h is hidden from the heads in a dream. The units are drawn anew for each dream and
    stay the same in all its steps (Wellmer & Kwok, 2021), so that C cannot exploit a single model. Paper: 0."""
    disagreement: float = bounded(0.0, 0, 10**6)
    """Penalty on the disagreement of an ensemble (--ensemble), in points per scored step and unit of disagreement: the
    variance of the M's means of the next z, averaged over its dimensions. Paper: no ensemble."""
    starts: int = bounded(512, 1, 10**6)
    """Number of moments of recorded episodes at which dreams start, saved in starts.npz."""
    fresh: int = bounded(0, 0, 10**9)
    """Use only the newest N episodes for starts and value fitting, since slow cars visit other states than fast ones.
    0: all."""
    start_after: int = bounded(70, 0, 10**6)
    """Minimum number of recorded steps before a start; M has read all of them, and has forgotten how
    the episode began."""
    start_near: int = bounded(20, 0, 10**6)
    """A start has a positive reward within N recorded steps before or after it. Elsewhere all candidates earn the same.
    0, or a record without such moments: any moment."""


@dataclass(frozen=True)
class IterateConfig:
    """Rounds of collecting, V, M and the dream (paper, section 5, which names no sizes)."""

    REMOVED: ClassVar[dict[str, Any]] = {"go_on": False, "later_options": "", "later_from": 1}

    rounds: int = total(3, 1, 50)
    """Total number of rounds. A larger number later adds the missing ones. Paper: one for its driving task."""
    added: int = bounded(10_000, 1, 10_000)
    """Episodes that each round after the first adds, driven by the controller of the previous round."""
    driver: Literal["dream", "dream-latest"] = "dream"
    """Controller that drives these episodes. dream: the mean with the best score on real selection tracks.
    dream-latest: the last mean, which exploits the errors of its dream most."""
    vae_updates: int = bounded(100_000, 0, 10**9)
    """Gradient updates of V in each round after the first, from the weights of the previous round."""
    vae_rounds: int = bounded(1_000_000, 0, 10**9)
    """Number of rounds after the first that train V. Later rounds reuse V and encode only the new frames."""
    mdnrnn_updates: int = bounded(2000, 0, 10**9)
    """Gradient updates of M in each round after the first, from the weights of the previous round."""
    mdnrnn_options: str = ""
    """Options of stage mdnrnn in each round after the first, such as "--lr 5e-4"."""
    fresh_rounds: int = bounded(0, 0, 50)
    """In each round after the first, take half of M's clips, all starts and the value's data from the episodes of the
    last N rounds. While there are fewer rounds, the newest episodes of the first round make up the number. 0: use all
    episodes alike."""
    dream_options: str = ""
    """Options of stage dream in all rounds, such as "--popsize 128 --horizon 150"."""
    refine_from: int = bounded(0, 0, 10**9)
    """First refinement round. A refinement round is small: C continues from the latest mean of the previous round. In
    earlier rounds C starts from zeros, so that it forgets what it learnt from a less trained M. 0: no refinement
    rounds; the three options below then have no effect."""
    refine_added: int = bounded(40, 1, 10_000)
    """Episodes that each refinement round adds, instead of `added`."""
    refine_updates: int = bounded(200, 0, 10**9)
    """Gradient updates of M in each refinement round, instead of `mdnrnn_updates`."""
    refine_options: str = ""
    """Options of stage dream in refinement rounds, after `dream_options`, such as few --generations and a small
    --sigma0. Dreams are accurate near the recorded states, and a large change of C in one round leaves them."""


@dataclass(frozen=True)
class EvaluateConfig:
    """The score: mean ± std over 100 fresh tracks of the stock environment (paper, section 4.1)."""

    episodes: int = total(100, 1, 10**6)
    """Number of tracks, one episode each. Paper and the Gym leaderboard: 100 consecutive trials."""
    max_steps: int = bounded(1000, 1, 10**9)
    """Maximum length of an episode in environment steps, as the environment's own limit."""


@dataclass(frozen=True)
class ProbeConfig:
    """Ridge regression of the true state on C's features. Not in the paper."""

    REMOVED: ClassVar[dict[str, Any]] = REMOVED_OF_PROBE

    episodes: int = total(60, 1, 10**6)
    """Number of fresh tracks, each driven once by the controller with bursts of brownian actions."""
    max_steps: int = bounded(1000, 1, 10**9)
    """Maximum length of an episode in environment steps."""
    validation: float = bounded(0.25, 1e-6, 1 - 1e-6)
    """Fraction of the episodes, the last ones, that test the regression; it is fitted to the others."""
    penalty: float = bounded(10.0, 1e-12, 10**6)
    """Ridge penalty on the squared weights of features of variance 1, beside the squared errors summed over all steps.
    A penalty of N acts like N additional steps in which each feature carries no information."""
    start_after: int = bounded(50, 0, 10**6)
    """Number of first steps of each episode to leave out, in which M does not know the state yet."""


@dataclass(frozen=True)
class Config:
    """All settings of one preset of one environment."""

    collect: CollectConfig = field(default_factory=CollectConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    mdnrnn: MDNRNNConfig = field(default_factory=MDNRNNConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    iterate: IterateConfig = field(default_factory=IterateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def vision(self, kind: VisionKind) -> Any:
        """The sizes of a kind of V: the preset's, else the kind's own."""
        return self.vae if kind.config is VAEConfig else kind.config()

    def memory(self, kind: MemoryKind) -> Any:
        """The sizes of a kind of M: the preset's, else the kind's own."""
        return getattr(self, kind.name, None) or kind.config()
