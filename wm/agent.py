"""Public import path of Agent and load_agent, which wm.driving defines."""

from wm.driving.agent import Agent
from wm.driving.loading import CONTROLLERS, load_agent

__all__ = ["CONTROLLERS", "Agent", "load_agent"]
