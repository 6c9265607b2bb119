"""The evolution loop with a toy task: resumed at any place it is as if it had never been interrupted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import wm.learning.evolution
from wm.config.presets import SMOKE
from wm.config.vmc import ControllerConfig
from wm.controller.basis import plain_basis
from wm.controller.file import load_controller, save_controller
from wm.controller.hidden import Hidden
from wm.controller.linear import Linear
from wm.learning.evolution import (
    Evolution,
    about,
    check_sizes,
    coordinates_of,
    delete_results,
    evolve,
    is_finished,
    selections,
)
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_lines
from wm.run.metrics import Metrics, read_metrics

Array = NDArray[np.float64]

CONFIG = replace(SMOKE.controller, generations=6, popsize=6, select_every=2, select_tracks=3, sigma0=0.3)
MADE_FROM = {"vae.pt": "v", "mdnrnn.pt": "m"}
SAID = about(Hidden(outputs=3, units=7), "mdnrnn")
TARGET = np.array([1.0, -2.0, 0.5, 0.0, 3.0])


class Boom(Exception):
    pass


class Task:
    """A noisy sphere whose noise depends on the generation alone, as fresh tracks do."""

    def __init__(self, fail: str = "", at: int = 0) -> None:
        self.fail, self.at = fail, at
        self.evaluated: list[int] = []
        self.selected: list[Array] = []

    def evaluate(self, candidates: Array, generation: int) -> tuple[Array, int]:
        assert candidates.shape == (CONFIG.popsize, len(TARGET))
        if self.fail == "evaluate" and generation == self.at:
            raise Boom
        self.evaluated.append(generation)
        noise = np.random.default_rng(generation).normal(0, 1, len(candidates))
        return -((candidates - TARGET) ** 2).sum(axis=1) + noise, 100 + generation

    def select(self, theta: Array) -> tuple[Array, int]:
        if self.fail == "select" and self.evaluated[-1] == self.at:
            raise Boom
        self.selected.append(theta)
        score = -((theta - TARGET) ** 2).sum()
        return np.array([score - 1, score, score + 1]), 7


def go(run: Run, task: Task, config: ControllerConfig = CONFIG, restart: bool = False, **changes: Any) -> bool:
    """What a stage does; False when there was nothing to do."""
    what: dict[str, Any] = {"seed": 5, "made_from": MADE_FROM, "said": SAID, "start": np.zeros(len(TARGET)), **changes}
    if restart:
        delete_results(run, "controller", run.controller)
    if is_finished(run, "controller", run.controller, config, what["made_from"]):
        return False
    evolve(run, "controller", run.controller, config, evaluate=task.evaluate, select=task.select, **what)
    return True


TIMES = ("time", "seconds", "steps_per_second")


def lines(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_lines(run.metrics)]


def outcome(run: Run) -> tuple[bytes, dict[str, Any], list[dict[str, float]], bytes, float]:
    """All that an uninterrupted and a resumed run have to have in common."""
    theta, meta = load_controller(run.controller)
    state = Evolution.load(run.checkpoints / "controller.npz")
    return theta.tobytes(), meta, lines(run), state.es.mean.tobytes(), state.best_score


def test_a_whole_run(tmp_path: Path) -> None:
    run, task = Run(tmp_path), Task()
    assert go(run, task) is True
    assert task.evaluated == [1, 2, 3, 4, 5, 6]
    rows = read_metrics(run.metrics, "controller")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "select" in row] == [2, 4, 6]
    assert [row["env_steps"] for row in rows] == list(np.cumsum([101, 102, 103, 104, 105, 106]))
    assert [row["select_steps"] for row in rows if "select" in row] == [7, 14, 21]
    assert all(row["worst"] < row["mean"] < row["best"] and row["sigma"] > 0 for row in rows)
    assert rows[1]["select_std"] == pytest.approx(np.std([-1, 0, 1]))
    theta, meta = load_controller(run.controller)
    assert (meta["kind"], meta["sizes"], meta["memory"]) == ("hidden", {"outputs": 3, "units": 7}, "mdnrnn")
    best = max((row for row in rows if "select" in row), key=lambda row: row["select"])
    assert (meta["generation"], meta["selection_score"]) == (best["step"], best["select"])
    assert (meta["generations"], meta["env_steps"], meta["seed"], meta["made_from"]) == (6, 621, 5, MADE_FROM)
    np.testing.assert_array_equal(theta, task.selected[best["step"] // 2 - 1].astype(np.float32))


def test_what_evolves_is_expressed_before_it_is_used_or_kept(tmp_path: Path) -> None:
    plain, shifted = Task(), Task()
    shift = np.arange(len(TARGET))
    go(Run(tmp_path / "plain"), plain)

    # In shifted coordinates the same candidates stand for other thetas; shifting those back, nothing may differ.
    class Shifted(Task):
        def evaluate(self, candidates: Array, generation: int) -> tuple[Array, int]:
            return shifted.evaluate(candidates - shift, generation)

        def select(self, theta: Array) -> tuple[Array, int]:
            return shifted.select(theta - shift)

    go(Run(tmp_path / "shifted"), Shifted(), express=lambda candidate: candidate + shift)
    np.testing.assert_allclose(shifted.selected, plain.selected, atol=1e-9)
    kept = [load_controller(Run(tmp_path / name).controller)[0] for name in ("plain", "shifted")]
    np.testing.assert_allclose(kept[1] - shift, kept[0], atol=1e-5)


def test_it_gets_better(tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, Task(), replace(CONFIG, generations=60, select_every=20))
    theta, _ = load_controller(run.controller)
    assert np.abs(theta - TARGET).max() < 1


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, at: int) -> Task:
    """Makes the loop fail at one place of generation `at`; a Task that fails when the place is in the task."""

    def failing(original: Callable[..., Any], when: Callable[..., bool], after: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if not after and when(*arguments):
                raise Boom
            result = original(*arguments)
            if when(*arguments):
                raise Boom
            return result

        return wrapped

    if where in ("before log", "after log"):
        original = failing(Metrics.log, lambda _, step, values: step == at, where == "after log")
        monkeypatch.setattr(Metrics, "log", original)
    elif where in ("before save", "after save"):
        saving = failing(Evolution.save, lambda state, _: state.es.generation == at, where == "after save")
        monkeypatch.setattr(Evolution, "save", saving)
    elif where == "keep":
        keeping = failing(
            wm.learning.evolution.save_controller, lambda _, theta, meta: meta["generations"] == at, False
        )
        monkeypatch.setattr(wm.learning.evolution, "save_controller", keeping)
    else:
        return Task(where, at)
    return Task()


PLACES = ("evaluate", "select", "before log", "after log", "before save", "after save", "keep")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("uninterrupted"))
    go(run, Task())
    return run


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("where", PLACES)
def test_a_resumed_run_equals_an_uninterrupted_one(where: str, at: int, tmp_path: Path, uninterrupted: Run) -> None:
    run = Run(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        task = interrupt(patched, where, at)
        if where in ("select", "keep") and at % 2 == 1:
            assert go(run, task)  # no selection there
        else:
            with pytest.raises(Boom):
                go(run, task)
    finished = run.controller.exists() and load_controller(run.controller)[1]["generations"] == CONFIG.generations
    assert go(run, Task()) is not finished
    assert outcome(run) == outcome(uninterrupted)


def test_interrupted_again_and_again(tmp_path: Path, uninterrupted: Run) -> None:
    run = Run(tmp_path)
    for where, at in [
        ("evaluate", 1),
        ("after log", 2),
        ("select", 2),
        ("keep", 4),
        ("evaluate", 5),
        ("before save", 6),
    ]:
        with pytest.MonkeyPatch.context() as patched:
            task = interrupt(patched, where, at)
            with pytest.raises(Boom):
                go(run, task)
    assert go(run, Task())
    assert outcome(run) == outcome(uninterrupted)


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert go(run, task) is False
    assert go(run, task, replace(CONFIG, generations=3)) is False
    assert (task.evaluated, task.selected) == ([], [])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_more_generations_later_are_as_if_asked_for_at_once(tmp_path: Path, uninterrupted: Run) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task(), replace(CONFIG, generations=2))
    assert load_controller(run.controller)[1]["generations"] == 2
    assert go(run, task)
    assert task.evaluated == [3, 4, 5, 6]
    assert outcome(run) == outcome(uninterrupted)


def test_the_end_of_a_shorter_run_adds_a_selection_but_does_not_change_the_evolution(
    tmp_path: Path, uninterrupted: Run
) -> None:
    run = Run(tmp_path)
    go(run, Task(), replace(CONFIG, generations=3))
    go(run, Task())
    assert [row["step"] for row in lines(run) if "select" in row] == [2, 3, 4, 6]
    es, other = (Evolution.load(r.checkpoints / "controller.npz") for r in (run, uninterrupted))
    np.testing.assert_array_equal(es.es.mean, other.es.mean)
    assert es.best_score >= other.best_score
    assert es.env_steps == other.env_steps


def test_the_best_mean_is_kept_and_not_forgotten_on_resume(tmp_path: Path) -> None:
    """Selection scores rise to generation 3 and fall after: 3's mean stays, whether interrupted or not."""
    scores = {1: 1.0, 2: 2.0, 3: 30.0, 4: 4.0, 5: 29.0, 6: 6.0}
    config = replace(CONFIG, select_every=1)
    for folder, stops in (("once", []), ("twice", [4, 5, 6])):
        run = Run(tmp_path / folder)
        means: dict[int, Array] = {}
        for stop in [*stops, 7]:
            task = Task("evaluate", stop)

            def select(theta: Array, task: Task = task, means: dict[int, Array] = means) -> tuple[Array, int]:
                means[task.evaluated[-1]] = theta
                return np.full(3, scores[task.evaluated[-1]]), 1

            task.select = select  # type: ignore[method-assign]
            if stop < 7:
                with pytest.raises(Boom):
                    go(run, task, config)
            else:
                go(run, task, config)
            theta, meta = load_controller(run.controller)
            assert (meta["generation"], meta["selection_score"]) == (3, 30.0)
            np.testing.assert_array_equal(theta, means[3].astype(np.float32))


def test_an_interrupted_run_leaves_a_controller(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(Boom):
        go(run, Task("evaluate", 4))
    assert load_controller(run.controller)[1]["generations"] == 2


def test_a_budget_of_steps_ends_it_and_a_larger_one_goes_on(tmp_path: Path, uninterrupted: Run) -> None:
    run, task = Run(tmp_path / "run"), Task()
    steps = [row["env_steps"] for row in read_metrics(uninterrupted.metrics, "controller")]
    budget = replace(CONFIG, env_steps=int(steps[2]) - 1)  # reached within generation 3
    assert go(run, task, budget) is True
    rows = read_metrics(run.metrics, "controller")
    assert [row["env_steps"] for row in rows] == steps[:3]
    assert "select" in rows[-1]
    asked = len(task.evaluated)
    assert go(run, task, budget) is False
    assert len(task.evaluated) == asked
    go(run, task, replace(CONFIG, env_steps=int(steps[4])))
    assert [row["env_steps"] for row in read_metrics(run.metrics, "controller")] == steps[:5]


@pytest.mark.parametrize("es", ["sep-cmaes", "openes"])
def test_other_strategies_are_resumed_exactly(tmp_path: Path, es: Any) -> None:
    config = replace(CONFIG, es=es)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    go(whole, Task(), config)
    for generations in (2, 4, 6):
        go(parts, Task(), replace(config, generations=generations))
    found, expected = (np.load(run.checkpoints / "controller.npz") for run in (parts, whole))
    assert str(found["es_es"]) == es
    np.testing.assert_array_equal(found["es_mean"], expected["es_mean"])
    np.testing.assert_array_equal(load_controller(parts.controller)[0], load_controller(whole.controller)[0])


@pytest.mark.parametrize("generations", [3, 6])
def test_changed_models_are_refused(tmp_path: Path, generations: int) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task(), replace(CONFIG, generations=3))
    changed = {**MADE_FROM, "vae.pt": "another"}
    for _ in range(2):
        with pytest.raises(UserError, match=r"controller.npz was made from another vae.pt .*ARGS=--restart"):
            go(run, task, replace(CONFIG, generations=generations), made_from=changed)
        run.controller.unlink(missing_ok=True)  # the second time only the checkpoint tells
    assert task.evaluated == []


def test_restart_begins_anew(tmp_path: Path, uninterrupted: Run) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task(), seed=6)
    assert outcome(run) != outcome(uninterrupted)
    assert go(run, task, restart=True)
    assert task.evaluated == [1, 2, 3, 4, 5, 6]
    assert outcome(run) == outcome(uninterrupted)


def test_restart_needs_nothing_that_can_be_read(tmp_path: Path, uninterrupted: Run) -> None:
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    run.controller.write_bytes(b"damaged")
    (run.checkpoints / "controller.npz").write_bytes(b"damaged")
    assert go(run, Task(), restart=True)
    assert outcome(run) == outcome(uninterrupted)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "pickle", "less"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task(), replace(CONFIG, generations=3))
    checkpoint = run.checkpoints / "controller.npz"
    content = checkpoint.read_bytes()
    if damage == "pickle":
        np.savez(checkpoint, plain=np.array({}, dtype=object))
    elif damage == "less":
        with np.load(checkpoint) as file:
            np.savez(checkpoint, **{name: file[name] for name in file.files if name != "es_fitness"})
    else:
        checkpoint.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "foreign": b"PK" + content[:9]}[damage]
        )
    with pytest.raises(UserError, match=r"checkpoints/controller.npz is damaged .*--restart\."):
        go(run, task)
    assert task.evaluated == []


def test_a_checkpoint_that_cannot_be_replayed_here_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, Task(), replace(CONFIG, generations=3))
    checkpoint = run.checkpoints / "controller.npz"
    with np.load(checkpoint) as file:
        arrays = dict(file)
    np.savez(checkpoint, **{**arrays, "es_mean": arrays["es_mean"] * (1 + 1e-12)})
    with pytest.raises(UserError, match=r"cannot be resumed on this machine \(.*another mean.*--restart\."):
        go(run, Task())


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, Task(), replace(CONFIG, generations=3))
    (run.checkpoints / "controller.npz").unlink()
    with pytest.raises(UserError, match=r"checkpoints/controller.npz is missing.*--restart"):
        go(run, Task())


def test_a_removed_controller_is_made_again_from_the_checkpoint(tmp_path: Path, uninterrupted: Run) -> None:
    run, task = Run(tmp_path), Task()
    go(run, Task())
    run.controller.unlink()
    assert go(run, task)
    assert task.evaluated == []
    assert outcome(run) == outcome(uninterrupted)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"sigma0": 0.3, "sigma_max": 0.2},
            r"--sigma0 is out of range: give a value from --sigma-min to --sigma-max\.",
        ),
        (
            {"sigma0": 0.3, "sigma_min": 0.4},
            r"--sigma0 is out of range: give a value from --sigma-min to --sigma-max\.",
        ),
        ({"es": "openes", "popsize": 5}, r"--popsize 5 is odd"),
    ],
)
def test_sizes_that_do_not_fit_one_another_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_sizes(replace(CONFIG, **change))


def test_a_controller_of_another_kind_or_size_is_no_first_mean(tmp_path: Path) -> None:
    path, basis, theta = tmp_path / "best.npz", plain_basis(4, Linear(3)), np.arange(15, dtype=np.float32)
    for said in ({}, {"kind": "linear", "sizes": {"outputs": 3}}):
        save_controller(path, theta, {"made_from": {}, **said})
        np.testing.assert_allclose(coordinates_of(path, basis), theta)
    save_controller(path, theta, {"made_from": {}, "kind": "hidden", "sizes": {"outputs": 3, "units": 1}})
    with pytest.raises(UserError, match=r"best\.npz holds another C .*hidden.* than this one .*linear.*: give ano"):
        coordinates_of(path, basis)
    save_controller(path, theta[1:], {"made_from": {}})
    with pytest.raises(UserError, match=r"best\.npz has 14 weights, but this C has 15: give another controller"):
        coordinates_of(path, basis)


def test_metrics_that_are_gone_are_one_sentence(tmp_path: Path) -> None:
    run = Run(tmp_path)
    go(run, Task())
    assert [row["step"] for row in selections(run, "controller")] == [2, 4, 6]
    run.metrics.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl lacks the lines of stage controller: restore it"):
        selections(run, "controller")
