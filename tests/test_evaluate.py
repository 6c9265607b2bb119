"""Stage evaluate beside what the pipeline's tests see of it."""

from pathlib import Path
from typing import Any

import pytest

import stages.evaluate
from wm.run.errors import UserError
from wm.run.folder import Run

ROOT = Path(__file__).parent.parent


def evaluate(run: Run, *arguments: str) -> None:
    source = ROOT / "data" / "pretrained"
    where = ["--run", str(run.folder), "--source", str(source), "--preset", "smoke", "--workers", "0"]
    stages.evaluate.main([*where, "--episodes", "2", "--max-steps", "20", "--fast", *arguments])


def test_an_interrupted_restart_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    evaluate(run)
    score = run.folder / "score-fast.json"
    before = score.read_text()
    leftover = run.folder / ".manifest-abcdefgh.tmp.json"  # of a command that was killed after the score was written
    leftover.touch()

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages.evaluate, "make_workers", interrupted)
        evaluate(run)
        assert "is finished" in capsys.readouterr().out
        assert not leftover.exists()
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, "--restart")
        assert not score.exists()
        with pytest.raises(KeyboardInterrupt):
            evaluate(run)
    evaluate(run)
    assert [line for line in score.read_text().splitlines() if "return" in line] == [
        line for line in before.splitlines() if "return" in line
    ]


@pytest.mark.parametrize(
    ("out", "reason"), [("vae.pt", "give a name that ends in .json"), ("manifest.json", "cannot be read as JSON")]
)
@pytest.mark.parametrize("restart", [False, True])
def test_a_score_takes_no_other_files_place(tmp_path: Path, out: str, reason: str, restart: bool) -> None:
    run = Run(tmp_path / "run")
    evaluate(run)
    run.vae.write_text("weights")
    before = (run.folder / out).read_bytes()
    with pytest.raises(UserError, match=reason):
        evaluate(run, "--out", str(run.folder / out), *["--restart"] * restart)
    assert (run.folder / out).read_bytes() == before
