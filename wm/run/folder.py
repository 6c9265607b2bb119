"""The run folder: its paths, its lock, and the manifest with a record of each stage.

    RUN/rollouts/*.h5 vae.pt latents.h5 mdnrnn.pt controller.npz starts.npz dream.npz score.json scores.jsonl
        probe.json videos/ play/ plots/ metrics.jsonl manifest.json checkpoints/ tensorboard/

A stage works inside `Run.stage(...)`. It locks the folder and records in the manifest the config, the versions, the
time and the memory of the stage.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

from wm.config.bounds import changed_fields
from wm.config.names import RUN_FORMAT
from wm.config.presets import DEFAULT_ENV, canonical
from wm.run.errors import MachineError, UserError, writing
from wm.run.files import locked, remove_leftovers
from wm.run.json_files import read_json, write_json
from wm.run.pair import Pair, stage_of, starts_name
from wm.run.provenance import commit, now, peak_memory_mb, versions
from wm.run.schema import NUMBER, Schema, fits
from wm.run.signals import note_new_work

RECORD: Schema = {
    "config": dict,
    "seed": int,
    "versions": {...: str},
    "commit": str,
    "cores": int,
    "started": str,
    "ended": (str, NoneType),
    "seconds": NUMBER,
    "peak_memory_mb": NUMBER,
}
"""What the manifest holds of each stage. `Run.stage` writes it."""

CONFIGS: dict[str, Schema] = {
    "vae": {"updates?": int, "z?": int},
    "mdnrnn": {"updates?": int, "reward?": str},
    "controller": {"generations?": int},
    "dream": {"generations?": int, "horizon?": int, "temperature?": NUMBER},
}
"""By stage: fields of its recorded config that others read."""

LOCKS: list[int] = []
"""File descriptors of the locks that this process holds. A called stage inherits them, so that the folder stays locked
while that stage works, even if only the caller is killed."""


class Run:
    """A run folder. The paths are fixed; nothing is created before something is written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.rollouts = self.folder / "rollouts"
        self.vae = self.folder / "vae.pt"
        self.latents = self.folder / "latents.h5"
        self.mdnrnn = self.folder / "mdnrnn.pt"
        self.controller = self.folder / "controller.npz"
        self.starts = self.folder / "starts.npz"
        self.dream = self.folder / "dream.npz"
        self.dream_latest = self.folder / "dream-latest.npz"
        self.score = self.folder / "score.json"
        self.scores = self.folder / "scores.jsonl"
        self.probe = self.folder / "probe.json"
        self.metrics = self.folder / "metrics.jsonl"
        self.curves = self.folder / "curves.jsonl"
        self.ablations = self.folder / "ablations.json"
        self.rounds = self.folder / "rounds.jsonl"
        self.manifest = self.folder / "manifest.json"
        self.plots = self.folder / "plots"
        self.videos = self.folder / "videos"
        self.play = self.folder / "play"
        self.checkpoints = self.folder / "checkpoints"

    def memory(self, kind: str) -> Path:
        """The file of M of a kind."""
        return self.folder / f"{kind}.pt"

    def starts_of(self, kind: str) -> Path:
        """The file of the starts with the state of M of a kind."""
        return self.folder / starts_name(kind)

    def controllers(self) -> list[str]:
        """Names of the controllers that are there: that of real rollouts, then those of dreams, with the last means."""
        return sorted(path.stem for path in self.folder.glob("*.npz") if stage_of(path.stem))

    def read_manifest(self) -> dict[str, Any]:
        """Reads the manifest, or returns an empty one; UserError when it is damaged or of another format version."""
        if not self.manifest.exists():
            return {"format": RUN_FORMAT, "stages": {}}
        manifest = read_json(self.manifest)
        if not isinstance(manifest, dict) or manifest.get("format") != RUN_FORMAT:
            raise UserError(
                f"{self.manifest} is not of format {RUN_FORMAT}, which this version writes: choose another RUN."
            )
        stages = manifest.get("stages", {})
        if not fits(manifest, {"stages": {...: RECORD}}) or not all(
            fits(record["config"], CONFIGS.get("dream" if Pair.of(stage) else stage, dict))
            for stage, record in stages.items()
        ):
            raise UserError(f"{self.manifest} is damaged (its records of stages are not readable): restore it.")
        if not fits(manifest, {"env?": str}):
            raise UserError(f"{self.manifest} is damaged (its env is not readable): restore it.")
        return manifest

    def read_env(self) -> str | None:
        """The environment of this run; None before a stage has worked here. Older manifests do not say it."""
        manifest = self.read_manifest()
        env = manifest.get("env")
        return canonical(env) if env else DEFAULT_ENV if manifest["stages"] else None

    def record(self, stage: str, entry: dict[str, Any], env: str | None = None) -> None:
        """Merges `entry` into the manifest's record of one stage; `env` is that of the run, if it has none yet."""
        manifest = self.read_manifest()
        if env and self.read_env() is None:
            manifest["env"] = env
        manifest["stages"].setdefault(stage, {}).update(entry)
        write_json(self.manifest, manifest)

    def sweep(self) -> None:
        """Removes partial files of killed commands. `lock` does the same; read-only commands take no lock."""
        with writing(self.folder):
            remove_leftovers(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder; UserError when another command has locked it. The kernel frees it when the process ends."""
        # TensorBoard writes to the UTF-8 form of the name.
        if os.fsencode(self.folder) != str(self.folder).encode(errors="surrogatepass"):
            raise UserError(
                f"the name of {self.folder} is not UTF-8 in this locale: choose another RUN or RUNS, or a UTF-8 "
                "locale such as LC_ALL=C.UTF-8."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("wb")
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}): choose another RUN or RUNS."
            ) from error
        with file:
            try:
                if not locked(file.fileno(), wait=False):
                    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            except BlockingIOError as error:
                raise UserError(
                    f"another command is running in {self.folder}: wait until it has ended, or choose another RUN."
                ) from error
            except OSError as error:
                raise UserError(
                    f"{self.folder} cannot be locked ({error.strerror}): choose RUNS on another file system."
                ) from error
            self.sweep()
            LOCKS.append(file.fileno())
            try:
                yield
            finally:
                LOCKS.remove(file.fileno())
                remove_leftovers(self.folder)  # of workers that were killed on the way

    @contextmanager
    def stage(
        self, stage: str, config: Any, seed: int, restart: bool = False, env: str | None = None
    ) -> Iterator[Callable[[], None]]:
        """Locks the folder for a stage and records the stage in the manifest once its work begins.

        Args:
            stage: Its name.
            config: The stage's config dataclass. A change since an earlier call (except of totals) is refused.
            seed: The run's seed; a change is refused, too.
            restart: Ignore the earlier record instead of refusing a change.
            env: The run's environment, which the first stage of a run records.

        Yields:
            begin(), to be called when there is work to do, and after a restart has deleted the earlier results. A
            stage without work to do does not call it, so that the record of the work stays.

        Raises:
            UserError: The config or the seed differs from that of the existing results.
        """
        with self.lock():
            entry = self.read_manifest()["stages"].get(stage, {})
            if restart:
                entry = {}
            if entry:
                changes = list(changed_fields(entry["config"], config))
                if entry["seed"] != seed:
                    changes.append(f"seed was {entry['seed']}, is {seed}")
                if changes:
                    raise UserError(
                        f"{self.folder} has a {stage} made with other options ({'; '.join(changes)}): "
                        "give the old options, choose another RUN, or redo the stage with --restart."
                    )
            before = entry.get("seconds", 0.0)
            start = time.monotonic()
            begun = refused = False

            def begin() -> None:
                nonlocal begun
                base = {
                    "config": asdict(config),
                    "seed": seed,
                    "versions": versions(),
                    "commit": commit(),
                    "cores": os.cpu_count(),
                    "started": entry.get("started", now()),
                    "ended": None,
                    "seconds": before,
                    "peak_memory_mb": entry.get("peak_memory_mb", 0.0),
                }
                self.record(stage, base, env)
                begun = True
                note_new_work()

            try:
                yield begin
            except UserError as error:
                refused = not isinstance(error, MachineError)
                raise
            finally:
                if begun and refused and not entry:  # no earlier work: the next call may have other options
                    manifest = self.read_manifest()
                    del manifest["stages"][stage]
                    if not manifest["stages"]:
                        manifest.pop("env", None)
                    write_json(self.manifest, manifest)
                elif begun:
                    seconds = round(before + time.monotonic() - start, 1)
                    peak = max(peak_memory_mb(), entry.get("peak_memory_mb", 0.0))
                    self.record(stage, {"seconds": seconds, "peak_memory_mb": peak, "ended": now()})
