"""Stage publish: which controllers and what else of a run it takes, and what it refuses."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import stages.publish
from stages.publish import REPORT_FILES, main, rescored_by, weight
from tests.toy_dream import FEATURES, make_toy_run
from wm.config.vmc import DreamConfig
from wm.controller.file import load_controller, save_controller
from wm.controller.linear import Linear
from wm.dream.networks import load_networks
from wm.dream.starts import find_starts
from wm.driving.loading import load_acting
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import append_line, read_json, write_json
from wm.store.starts import save_starts

SCORES = {
    "controller": "score.json",
    "dream": "score-dream.json",
    "dream-mdnrnn-hidden": "score-dream-mdnrnn-hidden.json",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_toy_run(tmp_path / "run")


def add_controller(run: Run, name: str, value: float, scored: bool = True) -> None:
    made_from = {"vae.pt": file_hash(run.vae), "mdnrnn.pt": file_hash(run.mdnrnn)}
    theta = np.full(Linear(3).count(FEATURES), value, np.float32)
    save_controller(run.folder / f"{name}.npz", theta, {"made_from": made_from, "config": {"precision": "float32"}})
    if scored:
        hashes = {f"{name}.npz": file_hash(run.folder / f"{name}.npz")}
        score = {"mean": 100 * value, "std": 7.0, "ci95": None, "returns": [100 * value], "lengths": [9], "seeds": [5]}
        what = {"env_id": "CarRacing-v3", "max_steps": 1000, "made_from": hashes, "commit": "abc", "time": "today"}
        what["versions"] = {"gymnasium": "1"}
        write_json(run.folder / SCORES[name], score | what)


def publish(run: Run, target: Path) -> Run:
    main(["--run", str(run.folder), "--to", str(target)])
    return Run(target)


@pytest.mark.parametrize("names", [("controller",), ("dream",), ("dream-mdnrnn-hidden",), tuple(SCORES)])
def test_the_controllers_that_are_there_are_published(
    run: Run, tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """An iterated run has that of the dream only; what another run left in the folder does not stay."""
    target = tmp_path / "published"
    for name in SCORES:
        add_controller(run, name, 9.0)
    publish(run, target)
    (target / "drift.pt").touch()  # of what another run acted with
    (target / "starts-drift.npz").touch()
    for name in SCORES:
        (run.folder / f"{name}.npz").unlink()
    capsys.readouterr()
    for name in names:
        add_controller(run, name, 1.0)
    published = publish(run, target)
    for name, score in SCORES.items():
        assert (target / f"{name}.npz").exists() == (target / score).exists() == (name in names)
    assert not [*target.glob("*drift*")]
    for name in names:
        assert (load_acting(published, name)[1] == 1).all()
    told = ", ".join(f"{name} 100 ± 7" for name in names)
    option = "" if names[0] == "controller" else f"--controller {names[0]} "
    command = f"make evaluate ARGS='{option}--source {target}'"
    said = capsys.readouterr().out
    assert f" MB, {told}.\n" in said
    assert f"check the score with `{command}`." in said


def test_what_is_published_within_data_is_a_run_of_that_name() -> None:
    assert rescored_by("controller", Path("data/pretrained")) == "`make evaluate RUN=pretrained`"
    dream = "`make evaluate RUN=pretrained/dream ARGS='--controller dream'`"
    assert rescored_by("dream", Path("data/pretrained/dream")) == dream


def test_what_the_report_tells_of_goes_along(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    append_line(run.rounds, {"round": 0})
    write_json(run.ablations, {"rows": {}})
    run.plots.mkdir()
    (run.plots / "curves-dream.png").write_bytes(b"a picture")
    (run.plots / "else.png").write_bytes(b"another")
    published = publish(run, tmp_path / "published")
    there = {name for name in REPORT_FILES if (published.folder / name).exists()}
    assert there == {"rounds.jsonl", "ablations.json", "plots/curves-dream.png"}
    assert not (published.plots / "else.png").exists()
    run.rounds.unlink()
    assert not publish(run, tmp_path / "published").rounds.exists()


def test_a_run_without_a_controller_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has no controller: make one with `make controller` or `make dream`"):
        publish(run, tmp_path / "published")
    add_controller(run, "dream", 1.0, scored=False)
    with pytest.raises(UserError, match=r"score-dream\.json is missing: make it with `make evaluate ARGS='--contr"):
        publish(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()
    add_controller(run, "controller", 1.0)
    published = publish(run, tmp_path / "published")
    assert "dream.npz has no score and is left out: score it with `make evaluate ARGS='" in capsys.readouterr().out
    assert (published.controller.exists(), published.dream.exists()) == (True, False)


def test_who_asks_for_the_wrong_controller_is_told_which_one_is_there(run: Run) -> None:
    add_controller(run, "dream", 1.0)
    with pytest.raises(UserError, match=r"controller\.npz is missing: .* or choose the existing controller 'dream'"):
        load_acting(run)


def test_a_run_is_not_published_over_another_or_itself(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    other = Run(tmp_path / "other")
    other.rollouts.mkdir(parents=True)
    (other.rollouts / "00000.h5").touch()
    published = publish(run, tmp_path / "published")
    for source, target in ((run, run), (run, other), (published, published)):
        before = content(target.folder)
        with pytest.raises(UserError, match=f"--to {target.folder} is a run folder, not a published one"):
            publish(source, target.folder)
        assert content(target.folder) == before
    with run.lock(), pytest.raises(UserError, match="another command is running"):
        publish(run, published.folder)


def test_a_run_within_the_published_one_weighs_for_itself_and_stays(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    published = publish(run, tmp_path / "published")
    within = Run(published.folder / "dream")
    write_json(within.manifest, {"format": 1, "stages": {}})
    (within.folder / "large").write_bytes(bytes(10**6))
    before = weight(published.folder)
    (within.folder / "large").write_bytes(bytes(2 * 10**6))
    assert weight(published.folder) == before
    publish(run, published.folder)
    assert (within.folder / "large").exists()


def test_an_earlier_m_and_its_starts_do_not_stay(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    published = publish(run, tmp_path / "published")
    for name in ("drift.pt", "starts-drift.npz"):
        (published.folder / name).write_bytes(b"of an earlier run")
    publish(run, published.folder)
    assert {path.name for path in published.folder.glob("*.pt")} == {"vae.pt", "mdnrnn.pt"}
    assert {path.name for path in published.folder.glob("starts*.npz")} == {"starts.npz"}


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_publication_leaves_the_earlier_one_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_controller(run, "dream", 1.0)
    published = publish(run, tmp_path / "published")
    before = content(published.folder)
    add_controller(run, "dream", 2.0)
    run.plots.mkdir()
    (run.plots / "dream.png").write_bytes(bytes(10**6))
    monkeypatch.setattr(stages.publish, "MOST_BYTES", 10**6)
    with pytest.raises(UserError, match=r"published would have .* bytes, but git should hold at most 1,000,000"):
        publish(run, published.folder)
    assert content(published.folder) == before

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stages.publish, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        publish(run, published.folder)
    assert content(published.folder) == before


def test_hashes_are_those_of_what_is_published(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    theta, meta = load_controller(run.dream)
    before = meta["made_from"] | {"starts.npz": "of these starts", "start": "of another controller"}
    save_controller(run.dream, theta, meta | {"made_from": before})
    score = read_json(run.folder / SCORES["dream"])
    write_json(run.folder / SCORES["dream"], score | {"made_from": {"dream.npz": file_hash(run.dream)}})
    published = publish(run, tmp_path / "published")
    hashes = {path.name: file_hash(path) for path in (published.vae, published.mdnrnn, published.starts)}
    assert load_controller(published.dream)[1]["made_from"] == hashes | {"start": "of another controller"}


def test_starts_that_a_controller_did_not_dream_from_are_not_published_as_its_own(run: Run, tmp_path: Path) -> None:
    add_controller(run, "dream", 1.0)
    networks = load_networks(run)
    save_starts(run.starts, find_starts(run, networks, DreamConfig()))
    theta, meta = load_controller(run.dream)
    save_controller(run.dream, theta, meta | {"made_from": meta["made_from"] | {"starts.npz": "of other starts"}})
    score = read_json(run.folder / SCORES["dream"])
    write_json(run.folder / SCORES["dream"], score | {"made_from": {"dream.npz": file_hash(run.dream)}})
    with pytest.raises(UserError, match=r"dream\.npz was made from another starts\.npz than the current one"):
        publish(run, tmp_path / "published")
