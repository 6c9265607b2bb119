"""Bad files: each is refused in a sentence that names it, or changes nothing; nothing in a file is ever run.

A few dozen mutations of each kind here, hundreds by `make test-faults`.
"""

import errno
import hashlib
import io
import json
import os
import random
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tests.damage import damaged, malicious
from tests.test_report import write_run
from tests.test_shards import drawn
from tests.toy_dream import make_toy_run, toy_mdnrnn
from wm.config.earlier import MEASURE
from wm.config.presets import SMOKE
from wm.controller.file import load_controller, save_controller
from wm.dream.networks import load_networks
from wm.driving.collection import set_aside_damaged
from wm.driving.loading import load_models
from wm.learning.checkpoint import is_finished
from wm.learning.evolution import Evolution
from wm.learning.gradient import train
from wm.learning.strategies import make_es
from wm.memory.mdnrnn import load_mdnrnn
from wm.run.artifact import load_artifact, save_artifact
from wm.run.errors import MachineError, UserError, check_read
from wm.run.folder import Run
from wm.run.json_files import append_line, read_json, read_lines, write_json
from wm.run.metrics import Metrics, read_metrics
from wm.store.latents import Latents
from wm.store.shards import Rollouts, write_shard
from wm.store.starts import Starts, load_starts, save_starts

FEW, MANY = 40, 600
"""Mutations of each kind."""


def plain(value: Any) -> Any:
    """Something that can be compared of whatever a loader gives."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


@dataclass(frozen=True)
class Kind:
    """A kind of file: its place in the run folder, its loader as the code uses it, and names of arrays in it."""

    path: str
    load: Callable[[Run], Any]
    names: tuple[str, ...] = ()


def train_tiny(run: Run) -> Any:
    """Goes on from a checkpoint that is finished, which only reads it."""

    @dataclass(frozen=True)
    class Config:
        updates: int = 3
        validate_every: int = 3

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.ones(4, 3)
    best = train(
        run,
        "tiny",
        model,
        config=Config(),
        seed=0,
        made_from={"data": "d"},
        batches=lambda start: iter([x] * 3),
        loss=lambda model, batch, generator: (model(batch).square().mean(), {}),
        validate=lambda model: {"loss": model(x).square().mean().item()},
        lr=lambda update: 0.1,
        device=torch.device("cpu"),
    )
    return [best.weights, best.metrics, best.update, best.done, model.state_dict()]


def read_latents(run: Run) -> Any:
    latents = Latents(run.latents)
    return [latents.made_from, latents.table, *(list(vars(latents.episode(i)).values()) for i in range(len(latents)))]


def read_model(run: Run) -> Any:
    model, meta = load_mdnrnn(run.mdnrnn)
    return [model.state_dict(), meta]


def read_evolution(run: Run) -> Any:
    state = Evolution.load(run.checkpoints / "controller.npz")
    return [{name: getattr(state, name) for name in (*Evolution._PLAIN, "best_theta")}, state.es.state()]


KINDS = {
    "shard": Kind("rollouts/a.h5", lambda run: [e.digest() for e in Rollouts(run.rollouts)] + [run_table(run)]),
    "latents": Kind("latents.h5", read_latents),
    "vae": Kind("vae.pt", lambda run: load_artifact(run.vae, "vae")),
    "mdnrnn": Kind("mdnrnn.pt", read_model),
    "training": Kind("checkpoints/tiny.pt", train_tiny),
    "controller": Kind("controller.npz", lambda run: load_controller(run.controller), ("theta", "meta")),
    "evolution": Kind("checkpoints/controller.npz", read_evolution, ("plain", "es_start", "es_fitness", "es_es")),
    "starts": Kind("starts.npz", lambda run: vars(load_starts(run.starts)), ("z", "h", "c", "episode", "step", "meta")),
    "manifest": Kind("manifest.json", lambda run: run.read_manifest()),
    "summary": Kind("rollouts/summary.json", lambda run: read_json(run.rollouts / "summary.json", episodes=int)),
    "score": Kind("score.json", lambda run: read_json(run.score, returns=list, made_from=dict)),
    "metrics": Kind("metrics.jsonl", lambda run: read_metrics(run.metrics, "vae")),
    "scores": Kind("scores.jsonl", lambda run: read_lines(run.scores, mean=float)),
    "curves": Kind("curves.jsonl", lambda run: read_lines(run.curves, name=str, curve=list)),
}


def run_table(run: Run) -> Any:
    """What the digests do not cover."""
    table = Rollouts(run.rollouts).table
    return [table["ret"].tolist(), table[MEASURE].tolist()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder with a small file of each kind."""
    run = make_toy_run(tmp_path_factory.mktemp("whole"))
    torch.manual_seed(0)
    save_artifact(run.vae, "vae", nn.Linear(7, 5).state_dict(), {"z": 4, "ranges": [1.0] * 4}, {"rollouts": "r"})
    write_shard(run.rollouts / "a.h5", [drawn(0, steps=30), drawn(1, steps=3)])
    save_controller(run.controller, np.arange(39.0), {"made_from": {"vae.pt": "v"}, "generations": 3})
    es = make_es("cmaes", np.zeros(5), sigma0=0.3, sigma_min=0.0, sigma_max=1.0, popsize=6, seed=1, lr=0.1, ranks=True)
    for generation in range(3):
        es.tell(-np.square(es.ask()).sum(1) + generation)
    Evolution(es, env_steps=300, best_theta=np.arange(5.0), best_score=3.5, made_from={"vae.pt": "v"}).save(
        run.checkpoints / "controller.npz"
    )
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=(6, size)).astype(np.float32) for name, size in (("z", 4), ("h", 8), ("c", 8))}
    numbers = np.arange(6)
    save_starts(run.starts, Starts(state, numbers, numbers, np.array([-0.1, 3, -100], np.float32), {"vae.pt": "v"}))
    with run.stage("vae", SMOKE.vae, 0) as begin:
        begin()
    write_json(run.rollouts / "summary.json", {"episodes": 2, "return_mean": -3.25, "policies": {"brownian": 2}})
    score = {"mean": 834.25, "returns": [834.25, 1.5e-7], "made_from": {"vae.pt": "v"}, "ci95": None}
    write_json(run.score, score)
    with Metrics(run, "vae") as metrics:
        for step in range(1, 6):
            of_v = {"val_error": 2.0, "val_kl": 3.0, "val_dead": 0.0}
            metrics.log(step, {"loss": 1 / step, "val_loss": 2.0 / step, **of_v})
    for n in range(4):
        append_line(run.scores, {**score, "n": n})
        append_line(run.curves, {"name": "one", "seed": n, "curve": [{"select": 1.0 * n}]})
    train_tiny(run)
    return run


@pytest.fixture
def copy(source: Run, tmp_path: Path) -> Run:
    """A folder of the same files, linked: who changes one replaces it."""
    run = Run(tmp_path / "run")
    for path in source.folder.rglob("*"):
        if path.is_file():
            link = run.folder / path.relative_to(source.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return run


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refusal(kind: Kind, run: Run) -> str | None:
    """The sentence that a loader refuses its file with; None when it reads it."""
    try:
        kind.load(run)
    except UserError as error:
        sentence = str(error)
        assert str(run.folder / kind.path) in sentence
        assert "\n" not in sentence
        assert len(sentence) < 600
        return sentence
    return None


def is_what_was_written(kind: Kind, found: Any, wanted: Any) -> bool:
    """Whether a damaged file gave its content; of lines, a torn end leaves some out."""
    return all(line in wanted for line in found) if kind.path.endswith("jsonl") else bool(found == wanted)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mutations", [FEW, pytest.param(MANY, marks=[pytest.mark.faults, pytest.mark.slow])])
def test_damage_is_refused_or_harmless(
    source: Run, copy: Run, name: str, mutations: int, record_property: Callable[[str, object], None]
) -> None:
    kind = KINDS[name]
    wanted = plain(kind.load(source))
    path = copy.folder / kind.path
    whole = path.read_bytes()
    refused = 0
    for seed in range(mutations):
        content = damaged(whole, seed)
        put(path, content)
        if refusal(kind, copy) is not None:
            refused += 1
        else:
            assert is_what_was_written(kind, plain(kind.load(copy)), wanted), f"mutation {seed} passes unnoticed"
    put(path, whole)
    assert plain(kind.load(copy)) == wanted
    assert refused > mutations / 3
    if mutations == MANY:
        record_property("figure", f"{name}: {refused} of {mutations} mutations refused, the others changed nothing")


@pytest.mark.parametrize("name", KINDS)
def test_a_foreign_file_is_refused(source: Run, copy: Run, name: str) -> None:
    kind = KINDS[name]
    path = copy.folder / kind.path
    others = [(source.folder / other.path).read_bytes() for other in KINDS.values() if other.path != kind.path]
    lines = kind.path.endswith("jsonl")
    for content in [*others, b"[]", b'"text"', b"null", b"1", b'{"crc32": 3}', b"\0" * 3000, b"[" * 100_000]:
        put(path, content + b"\n" * lines)
        assert refusal(kind, copy) is not None, content[:50]
    put(path, b"")
    assert lines or refusal(kind, copy) is not None  # no lines are the lines of a stage that has just begun
    path.unlink()
    path.mkdir()
    assert refusal(kind, copy) is not None


@pytest.mark.parametrize("name", [name for name in KINDS if name != "shard"])  # whose folder could not even be listed
def test_a_file_that_the_system_does_not_open_is_not_taken_for_damaged(source: Run, name: str) -> None:
    kind = KINDS[name]
    kind.load(source)  # what is opened on the way for the first time is open now
    free = os.dup(0)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(MachineError) as refused:
            kind.load(source)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert str(refused.value) == (
        f"{source.folder / kind.path} cannot be read (Too many open files): "
        "allow more open files (ulimit -n) and run the same command again."
    )


@pytest.mark.parametrize("name", KINDS)
def test_what_the_system_does_not_read_is_not_taken_for_damaged(
    source: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = "rollouts/a.h5" if name == "shard" else KINDS[name].path
    for number in (errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ENOENT, errno.ENOLCK, errno.ETIMEDOUT):
        refused = Mock(side_effect=OSError(number, os.strerror(number)))
        with monkeypatch.context() as patched:
            for opener in ("h5py.File", "zipfile.ZipFile", "pathlib.Path.read_bytes"):
                patched.setattr(opener, refused)
            with pytest.raises(MachineError) as said:
                KINDS[name].load(source)
        assert str(said.value).startswith(f"{source.folder / path} cannot be read ({os.strerror(number)}): ")
        assert str(said.value).endswith(" and run the same command again.")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("Unable to synchronously open object (file read failed: time = Fri, errno = 5, error message = 'x')"),
        RuntimeError("open file failed because of errno 24 on fopen: Too many open files, file path: x"),
        OSError("Unable to synchronously open file (file locking flag values don't match)"),
        OSError("Unable to synchronously open file (file is already open for write)"),
    ],
)
def test_what_libraries_say_of_the_system_is_no_damage(error: Exception) -> None:
    with pytest.raises(MachineError, match=r"^x cannot be read"):
        check_read(Path("x"), error)
    for damage in (OSError("Unable to read (local heap block, errno = 0)"), OSError(errno.EINVAL, "Invalid argument")):
        check_read(Path("x"), damage)


@pytest.mark.parametrize("name", KINDS)
def test_a_malicious_pickle_is_not_run(copy: Run, name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    for content in malicious(tmp_path / "flag", kind.names):
        put(copy.folder / kind.path, content)
        assert refusal(kind, copy) is not None or kind.path.endswith("jsonl")
        assert not (tmp_path / "flag").exists()


# --- well-formed files with the wrong content --------------------------------------------------------------


def odd_arrays(array: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Other dtypes and shapes, and what is no number."""
    yield array[None]
    yield array.reshape(-1)[:0]
    yield array.reshape(-1)[:-1]
    yield np.zeros((), array.dtype)
    yield np.array("text")
    if array.dtype.kind in "fi":
        yield array.astype(np.int8)
        yield array.astype(np.complex64)
        for bad in (np.nan, np.inf):
            changed = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
            changed.reshape(-1)[rng.integers(changed.size)] = bad
            yield changed


@pytest.mark.parametrize("name", ["controller", "evolution", "starts"])
def test_arrays_of_other_shapes_and_dtypes_are_refused(source: Run, copy: Run, name: str) -> None:
    kind, rng = KINDS[name], np.random.default_rng(0)
    with np.load(source.folder / kind.path) as file:
        arrays = {member: file[member] for member in file.files}
    refused = count = 0
    for member, array in arrays.items():
        for odd in (None, *odd_arrays(array, rng)):
            changed = {n: a for n, a in arrays.items() if n != member} | ({member: odd} if odd is not None else {})
            content = io.BytesIO()
            np.savez(content, **changed)
            put(copy.folder / kind.path, content.getvalue())
            refused += refusal(kind, copy) is not None
            count += 1
    assert refused > count / 2  # the number of weights of C is compared where V and M are known


def test_a_shard_that_claims_more_than_it_holds_is_set_aside(tmp_path: Path) -> None:
    """Columns that nobody wrote take no room and read as zeros, or as more than any memory."""
    steps = 10**12
    write_shard(tmp_path / "a.h5", [drawn(0, steps=3)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        table = file["episodes"][:]
        table["length"] = steps
        file["episodes"][:] = table
        for group, rows in (("frame", steps + 1), ("step", steps)):
            for column in file[group].values():
                column.resize(rows, axis=0)
    with pytest.raises(UserError, match=r"a\.h5 is damaged \((frame|step)/\w+ is not complete\)"):
        Rollouts(tmp_path)
    assert set_aside_damaged(tmp_path) == []
    assert (tmp_path / "damaged" / "a.h5").exists()


@pytest.mark.parametrize("name", ["controller", "evolution", "starts"])
def test_an_array_that_claims_more_than_it_holds_is_refused(source: Run, copy: Run, name: str) -> None:
    kind = KINDS[name]
    with zipfile.ZipFile(source.folder / kind.path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    for member, content in members.items():
        claim = io.BytesIO()
        np.lib.format.write_array_header_1_0(claim, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as archive:
            for other, bytes_ in (members | {member: claim.getvalue() + content[-8:]}).items():
                archive.writestr(other, bytes_)
        put(copy.folder / kind.path, changed.getvalue())
        assert refusal(kind, copy) is not None


@pytest.mark.parametrize(
    ("name", "odd"),
    [("made_from", []), ("env_steps", "x"), ("best_score", None), ("seconds", []), ("best_theta", np.full(5, np.nan))],
)
def test_an_evolution_of_other_fields_is_refused(source: Run, copy: Run, name: str, odd: Any) -> None:
    kind = KINDS["evolution"]
    with np.load(source.folder / kind.path) as file:
        arrays = {member: file[member] for member in file.files}
    if name == "best_theta":
        arrays[name] = odd
    else:
        arrays["plain"] = np.array(json.dumps({**json.loads(str(arrays["plain"])), name: odd}))
    content = io.BytesIO()
    np.savez(content, **arrays)
    put(copy.folder / kind.path, content.getvalue())
    assert "is damaged" in (refusal(kind, copy) or "")


@pytest.mark.parametrize(
    ("name", "odd"),
    [("generations", "3"), ("env_steps", [1]), ("config", []), ("kind", 3), ("sizes", []), ("memory", {})],
)
def test_a_controller_of_other_fields_is_refused(copy: Run, name: str, odd: Any) -> None:
    copy.controller.unlink()
    save_controller(copy.controller, np.arange(39.0), {"made_from": {}, name: odd})
    assert "does not record how it was made" in (refusal(KINDS["controller"], copy) or "")


def test_an_m_that_does_not_say_how_it_was_trained_is_refused(tmp_path: Path) -> None:
    run = make_toy_run(tmp_path / "run")
    made = load_artifact(run.mdnrnn, "mdnrnn")

    def remake(**config: Any) -> None:
        save_artifact(run.mdnrnn, "mdnrnn", made["model"], {**made["config"], **config}, made["made_from"])

    for earlier in (3, ["x"], None):
        remake(earlier=earlier)
        with pytest.raises(UserError, match=r"mdnrnn\.pt does not record M's validation split"):
            load_networks(run)
    remake(updates=[])
    with pytest.raises(UserError, match=r"mdnrnn\.pt does not record its updates"):
        is_finished(run, "mdnrnn", run.mdnrnn, SMOKE.mdnrnn, made["made_from"])


def odd_values(value: Any) -> Iterator[Any]:
    yield from ([], {}, None, "x", -1, 1e308, True, [[[]]], {"a": {}})
    if isinstance(value, torch.Tensor):
        yield value[None]
        yield value.flatten()[:-1]
        yield value.to(torch.int32)
        yield torch.full_like(value, float("nan"))
        yield torch.full_like(value, float("inf"))


def changed_trees(tree: Any) -> Iterator[Any]:
    """`tree` with one part replaced by something odd, or left out."""
    if isinstance(tree, dict):
        for name, part in tree.items():
            others = {n: p for n, p in tree.items() if n != name}
            yield others
            for odd in [*odd_values(part), *changed_trees(part)]:
                yield {**others, name: odd}
    elif isinstance(tree, list):
        for i, part in enumerate(tree[:2]):
            for odd in [*odd_values(part), *changed_trees(part)]:
                yield [*tree[:i], odd, *tree[i + 1 :]]


@pytest.mark.parametrize("name", ["vae", "mdnrnn", "training"])
def test_tensors_of_other_shapes_and_dtypes_are_refused(source: Run, copy: Run, name: str) -> None:
    kind = KINDS[name]
    tree = torch.load(source.folder / kind.path, weights_only=True)
    refused = 0
    trees = [[], 3, *changed_trees(tree)][:: 1 if name != "training" else 7]
    for changed in trees:
        content = io.BytesIO()
        torch.save(changed, content)
        put(copy.folder / kind.path, content.getvalue())
        refused += refusal(kind, copy) is not None
    assert refused > len(trees) / 3  # what is not used, or fits by chance, is nobody's harm


@pytest.mark.parametrize("name", ["manifest", "summary", "score", "metrics", "scores", "curves"])
def test_objects_of_other_fields_are_refused_or_read(source: Run, copy: Run, name: str) -> None:
    kind = KINDS[name]
    text = (source.folder / kind.path).read_text()
    lines = kind.path.endswith("jsonl")
    tree = json.loads(text.splitlines()[0] if lines else text)
    del tree["crc32"]
    for changed in changed_trees(tree):
        put(copy.folder / kind.path, (json.dumps(changed) + "\n").encode())
        refusal(kind, copy)


FOREIGN = ("[]", "{}", '{"returns": 3, "made_from": [], "episodes": "8"}')
"""JSON that is whole, and of something else."""


@pytest.fixture
def reported(tmp_path: Path) -> Run:
    """A run folder with all that a report is made of."""
    return write_run(tmp_path / "reported")


def refused_in_a_sentence_of(path: Path, call: Callable[[], Any]) -> None:
    for content in FOREIGN:
        put(path, content.encode() + b"\n")
        with pytest.raises(UserError, match=re.escape(str(path))):
            call()


@pytest.mark.parametrize(
    "name", ["score.json", "score-dream.json", "probe.json", "rounds.jsonl", "rollouts/summary.json", "metrics.jsonl"]
)
def test_a_report_of_foreign_json_is_refused(reported: Run, name: str) -> None:
    from stages.report import main

    refused_in_a_sentence_of(
        reported.folder / name, lambda: main(["--run", str(reported.folder), "--preset", "smoke", "--no-videos"])
    )
    assert not (reported.folder / "report.html").exists()


TOLD = ("manifest.json", "score.json", "score-dream.json", "probe.json", "rollouts/summary.json", "metrics.jsonl")


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize(
    "count", [12, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(3600)])]
)
def test_a_report_of_json_with_an_odd_part_is_refused_or_written(reported: Run, name: str, count: int) -> None:
    """Whole JSON that was written by somebody else, or by hand: no checksum speaks against it."""
    from stages.report import main

    path = reported.folder / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if name.endswith("l") else []
    trees: list[Any] = [
        [*lines[:i], odd, *lines[i + 1 :]] for i, line in enumerate(lines) for odd in changed_trees(plain_json(line))
    ] or list(changed_trees(plain_json(json.loads(path.read_text()))))
    drawn_trees = random.Random(name).sample(trees, min(count, len(trees)))
    refusals = []
    for tree in drawn_trees:
        text = "".join(json.dumps(plain_json(line)) + "\n" for line in tree) if lines else json.dumps(tree)
        put(path, text.encode())
        try:
            main(["--run", str(reported.folder), "--preset", "smoke", "--no-videos"])
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > len(drawn_trees) / 3
    assert all(str(path) in sentence for sentence in refusals)


def plain_json(value: Any) -> Any:
    """An object without its checksum."""
    return {n: v for n, v in value.items() if n != "crc32"} if isinstance(value, dict) else value


def test_other_stages_refuse_foreign_json(tmp_path: Path) -> None:
    import stages.curves
    import stages.evaluate
    import stages.publish
    import wm.show.site

    def evaluate() -> None:
        stages.evaluate.main([*where, "--episodes", "1"])

    run = make_toy_run(tmp_path / "toy")
    run.checkpoints.mkdir()
    save_controller(run.controller, np.zeros(39), {"made_from": load_models(run, "float32").made_from})
    where = ["--run", str(run.folder), "--preset", "smoke", "--workers", "0"]
    refused_in_a_sentence_of(run.score, evaluate)
    refused_in_a_sentence_of(run.score, lambda: stages.publish.check_score(run, "controller"))
    refused_in_a_sentence_of(run.score, lambda: wm.show.site._score(run, "controller"))
    refused_in_a_sentence_of(run.curves, lambda: stages.curves.main(where))
    run.score.unlink()
    refused_in_a_sentence_of(run.checkpoints / "score.json", evaluate)
    assert not run.score.exists()


def test_a_stage_refuses_a_manifest_that_holds_no_records(copy: Run) -> None:
    odd: list[Any] = [[], None, {"vae": 3}, {"vae": {}}, {"vae": {"config": []}}]
    for stages in odd:
        put(copy.manifest, json.dumps({"format": 1, "stages": stages}).encode())
        with pytest.raises(UserError, match=r"manifest\.json is damaged"), copy.stage("vae", SMOKE.vae, 0):
            pytest.fail("the stage ran")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_no_numbers_do_not_get_into_the_data(bad: float) -> None:
    episode = drawn(0, steps=5)
    for name in ("rewards", "actions"):
        values = getattr(episode, name).copy()
        values[2] = bad
        with pytest.raises(ValueError, match="not finite"):
            replace(episode, **{name: values})


def test_shards_whose_digests_do_not_fit_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HDF5's checksums cover chunks; the digest covers that they are the chunks of this episode."""
    write_shard(tmp_path / "a.h5", [drawn(0, steps=5), drawn(1, steps=5)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["step/rewards"][3] += 1
    assert set_aside_damaged(tmp_path) == []
    assert "a.h5 is damaged (episode 0 does not fit its digest)" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "a.h5").exists()


def test_an_m_that_is_not_finite_is_refused(source: Run, copy: Run) -> None:
    weights = toy_mdnrnn().state_dict()
    tree = torch.load(source.mdnrnn, weights_only=True)
    for bad in (float("nan"), float("inf")):
        name = next(iter(weights))
        changed = {**weights, name: torch.full_like(weights[name], bad)}
        copy.mdnrnn.unlink(missing_ok=True)
        save_artifact(copy.mdnrnn, "mdnrnn", changed, tree["config"], tree["made_from"])
        with pytest.raises(UserError, match=r"mdnrnn\.pt is damaged"):
            load_mdnrnn(copy.mdnrnn)
