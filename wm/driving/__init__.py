"""Driving: agents and policies in environments, and the workers that run them."""
