"""The page to drive the dream: a static folder with a run's graphs, the page's own files, and ONNX Runtime Web.

RUN/play/ index.html style.css *.js    copied from wm/show/page/
          starts.onnx dream.onnx controller.onnx decoder.onnx world.json    the run
          runtime/ort.js ort.wasm    onnxruntime-web, fetched from npm once
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, cast

from wm.config.vmc import DreamConfig
from wm.contracts import Decodes, Drawn, Network, Vision
from wm.dream.networks import load_networks
from wm.dream.starts import find_starts
from wm.driving.loading import load_acting
from wm.driving.scores import read_score
from wm.envs.task import Task
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.files import atomic
from wm.run.folder import Run
from wm.run.json_files import write_json
from wm.show.graphs.controller import controller_graph
from wm.show.graphs.starts import spread, starts_graph

PAGE = Path(__file__).parent / "page"
"""The page's own files."""

MOST_BYTES = 12_000_000
"""Maximum size in bytes of a run's graphs, without the runtime."""

RUNTIME = "onnxruntime-web@1.30.0"
"""npm's name of the package that runs the graphs in a browser. It is fetched instead of stored in git (14 MB)."""
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""npm's checksum of that package."""
NPM_SECONDS = 300
"""Time limit in seconds for npm to fetch 14 MB; npm itself retries for a quarter of an hour."""
RUNTIME_FILES = {
    "ort.js": ("ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort.wasm": ("ort-wasm-simd-threaded.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}
"""Files of the package that the page needs: our name, the name in the package's dist/, the SHA-256. Our names end in
.js, since some static hosts cannot serve .mjs."""


def build_site(run: Run, target: Path, controller: str = "controller") -> int:
    """Writes the page of a run without the runtime.

    Args:
        run: The run folder.
        target: The folder of the page; its files are replaced.
        controller: "controller" or "dream", as for `wm.driving.loading.load_acting`.

    Returns:
        Size of the run's graphs in bytes.

    Raises:
        UserError: A file of the run is missing, the files do not fit together, or a browser cannot run V or M.
    """
    models, theta = load_acting(run, controller)
    networks = load_networks(run, models.memory)
    parts: dict[str, Vision | Network] = {"V": networks.vision, "M": networks.memory}
    for what, network in parts.items():
        if not hasattr(network, "graph"):
            raise UserError(f"{what} of the kind {network.kind!r} cannot run in a browser: choose another {what}.")
    starts, task = find_starts(run, networks, DreamConfig()), models.task
    memory = cast(Drawn, networks.memory)
    graphs = {
        "starts": starts_graph(starts),
        "dream": memory.graph(starts.pays),
        "controller": controller_graph(theta, models.layout, task.action, memory.reads),
        "decoder": cast(Decodes, networks.vision).graph(),
    }
    size = sum(map(len, graphs.values()))
    if size > MOST_BYTES:
        raise UserError(
            f"the page of {run.folder} would have {size:,} bytes of graphs, more than {MOST_BYTES:,}: use a smaller M."
        )
    chances = networks.memory.dreaming(starts.pays).chances
    world = {
        "run": run.folder.resolve().name,
        "controller": controller,
        "score": _score(run, controller),
        **_about_task(task),
        "z": models.z,
        "state": {name: part.shape[1] for name, part in starts.state.items()},
        "reads": [name for name, _ in memory.reads],
        "noises": {name: {"distribution": kind, "size": count} for name, (kind, count) in chances.items()},
        "starts": len(starts),
        "spread": [round(float(value), 4) for value in spread(starts)],
        "rewards": {**starts.pays._asdict(), "pulse": networks.memory.reward == "pulse"},
        "horizon": DreamConfig.horizon,
        "bytes": size,
        "runtime": RUNTIME,
    }
    for file in sorted(PAGE.iterdir()):
        _write(target / file.name, file.read_bytes())
    for name, graph in graphs.items():
        _write(target / f"{name}.onnx", graph)
    write_json(target / "world.json", world)
    return size


def _about_task(task: Task) -> dict[str, Any]:
    """What the page has to know of the environment."""
    action = task.action
    return {
        "title": task.title,
        "actions": {"names": action.names, "low": action.low, "high": action.high, "discrete": not action.heads},
        "keys": dict(task.keys),
        "frame": {"height": task.frame[0], "width": task.frame[1], "aspect": task.proportion},
        "steps_per_second": task.fps,
    }


def _score(run: Run, controller: str) -> dict[str, float] | None:
    """The controller's score on real tracks, if it has one."""
    path = run.score if controller == "controller" else run.folder / f"score-{controller}.json"
    if not path.exists():
        return None
    score = read_score(path)
    return {"mean": score["mean"], "std": score["std"], "episodes": len(score["returns"])}


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def add_runtime(folder: Path) -> None:
    """Puts the runtime into a folder, unless it is there; npm caches it for the next run.

    Raises:
        UserError: npm is missing, cannot fetch the package, or fetches one with another checksum.
    """
    if all((folder / name).exists() and file_hash(folder / name) == sha for name, (_, sha) in RUNTIME_FILES.items()):
        return
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(_fetch(Path(temporary))) as package:
        for name, (member, _) in RUNTIME_FILES.items():
            file = package.extractfile(f"package/dist/{member}")
            assert file is not None
            _write(folder / name, file.read())


def _fetch(folder: Path) -> Path:
    """The package as npm has it, checked."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is missing, but the page needs it to fetch {RUNTIME}: install Node.js with npm "
            "(https://nodejs.org; on Debian: apt-get install npm) and run the same command again."
        )
    command = [npm, "pack", RUNTIME, "--silent", "--prefer-offline", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=NPM_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"npm could not fetch {RUNTIME} in {NPM_SECONDS} seconds: check the network and npm, and run the same "
            "command again."
        ) from error
    packed = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(packed) != 1:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"npm could not fetch {RUNTIME} ({said}): check the network and npm, and run the same command again."
        )
    if base64.b64encode(hashlib.sha512(packed[0].read_bytes()).digest()).decode() != RUNTIME_SHA512:
        raise UserError(f"npm fetched a {RUNTIME} with another checksum than the published one: check npm's registry.")
    return packed[0]
