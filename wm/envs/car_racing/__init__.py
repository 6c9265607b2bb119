"""CarRacing: the fast drawing, its preprocessing, its own policies and its true state."""
