"""V and M of a run, as every dream needs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm.config.vmc import MDNRNNConfig
from wm.memory.mdnrnn import MDNRNN, load_mdnrnn
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.provenance import check_made_from
from wm.store.latents import Latents
from wm.vision.vae import VAE, load_vae


@dataclass(frozen=True)
class Networks:
    """V and M of a run.

    Attributes:
        vae: V.
        mdnrnn: M.
        validation: Fraction of the episodes that M was not trained on, 0 to 1.
        made_from: Hashes of vae.pt and mdnrnn.pt.
        earlier: Number of episodes in each earlier round, for the same split as in M's training.
    """

    vae: VAE
    mdnrnn: MDNRNN
    validation: float
    made_from: dict[str, str]
    earlier: tuple[int, ...] = ()


def load_networks(run: Run) -> Networks:
    """Reads vae.pt and mdnrnn.pt of a run; UserError when one is missing, damaged or does not fit the other."""
    vae, _ = load_vae(run.vae)
    mdnrnn, meta = load_mdnrnn(run.mdnrnn)
    made_from = {"vae.pt": file_hash(run.vae)}
    check_made_from(run.mdnrnn, meta["made_from"], made_from)
    made_from["mdnrnn.pt"] = file_hash(run.mdnrnn)
    validation, earlier = meta["config"].get("validation", MDNRNNConfig.validation), meta["config"].get("earlier", ())
    if (
        not isinstance(validation, int | float)
        or not isinstance(earlier, list | tuple)
        or not all(isinstance(count, int) for count in earlier)
    ):
        raise UserError(f"{run.mdnrnn} does not record M's validation split: redo it with `make mdnrnn`.")
    return Networks(vae, mdnrnn, float(validation), made_from, tuple(earlier))


def split_latents(run: Run, networks: Networks) -> tuple[Latents, NDArray[np.int64], NDArray[np.int64]]:
    """Opens latents.h5 and splits it.

    Returns:
        The latents, and the places i64[N] of M's training and validation episodes.

    Raises:
        UserError: latents.h5 is missing, damaged or made from another V.
    """
    latents = Latents(run.latents)
    check_made_from(run.latents, latents.made_from, {"vae.pt": networks.made_from["vae.pt"]}, stage="mdnrnn")
    seed = run.read_manifest()["stages"].get("mdnrnn", {}).get("seed", 0)
    return latents, *latents.split(networks.validation, seed, networks.earlier)
