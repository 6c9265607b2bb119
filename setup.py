"""The packages of the wheel; all else is in pyproject.toml, which cannot say that one of them lies elsewhere."""

from setuptools import find_packages, setup

# The root of the published run, without plots, metrics and further runs: see package-data in pyproject.toml.
PUBLISHED = {"wm.pretrained": "data/pretrained"}

setup(packages=[*find_packages(include=["wm", "wm.*"]), *PUBLISHED], package_dir=PUBLISHED)
