"""Pictures and videos of what a run made; used by stages only."""
