"""Finding a run: by its folder, or the published one by its name, from any folder and however the library came here."""

from __future__ import annotations

from pathlib import Path

from wm.run.errors import UserError
from wm.run.folder import Run

PUBLISHED = "pretrained"
"""Name of the published run."""


def find_run(run: Path | str) -> Run:
    """The run of a folder, or a published run of a name.

    Args:
        run: A folder; or, as a str, "pretrained" or "pretrained/<name>": the published run, or the one of that name
            within it. The name wins over a folder called `pretrained` in the current folder: name that folder as
            "./pretrained" or as a Path.

    Raises:
        UserError: This installation does not hold the named run: a wheel has "pretrained", a checkout has all.
    """
    if not isinstance(run, str) or run.split("/")[0] != PUBLISHED:
        return Run(run)
    package = Path(__file__).parents[1]
    # In a wheel, or else in a checkout, which an editable installation is, too.
    for home in (package, package.parent / "data"):
        if (home / run / "manifest.json").exists():
            return Run(home / run)
    raise UserError(
        f"the published run {run!r} is not installed with this library: clone the repository and give its folder "
        f"data/{run}, or name a folder of your own as ./{run}."
    )
