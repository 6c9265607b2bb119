"""make_env, and the registration of wm/CarRacing-v3 and of wm/Dream-v0, which lies in wm/dream/."""

from typing import Any

import gymnasium

from wm.config.names import DREAM_ENV, FAST_ENV
from wm.envs.car_racing.preprocess import FRAME_SHAPE, PreprocessFrames

gymnasium.register(
    id=FAST_ENV, entry_point="wm.envs.car_racing.fast:FastCarRacing", max_episode_steps=1000, reward_threshold=900
)
# The dream needs torch, which these entry points import only when a dream is made.
gymnasium.register(
    id=DREAM_ENV, entry_point="wm.dream.env:make_dream_env", vector_entry_point="wm.dream.env:make_dream_vector_env"
)


def make_env(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """Make an environment with the observations of the agent.

    Args:
        env_id: Gymnasium's name, such as "CarRacing-v3" or "wm/CarRacing-v3".
        **kwargs: for `gymnasium.make`: `render_mode`, `max_episode_steps`, the environment's own.

    Returns:
        The environment, without Gymnasium's passive checker. CarRacing, stock or fast, observes u8[64, 64, 3]
        (`preprocess`), and the fast one then does not draw the dashboard. Any other environment is not changed.
    """
    if env_id == FAST_ENV:
        kwargs = {"dashboard": False, **kwargs}
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    if "CarRacing" in env_id and env.observation_space.shape == FRAME_SHAPE:
        return PreprocessFrames(env)
    return env
