"""The public door: `from wm.agent import load_agent`, whatever room does the work."""

from wm.driving.agent import Agent
from wm.driving.loading import CONTROLLERS, load_agent

__all__ = ["CONTROLLERS", "Agent", "load_agent"]
