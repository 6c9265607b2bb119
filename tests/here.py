"""Stages in this process, with the exit code and the words of their commands: a process imports torch for seconds."""

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from wm.run.errors import UserError, writing

ROOT = Path(__file__).parent.parent
CALLING = ("ablate", "collect", "curves", "iterate")
"""Stages that call others."""

VARIABLES = {"RUN", "RUNS", "PRESET", "WORKERS", "THREADS", "EPISODES", "GENERATIONS", "ROUNDS", "ARGS", "PYTHON"} | {
    *("ENV", "EXTRAS", "VIEW", "SEED", "EPISODE", "CAR", "GRID", "COMPARE", "WORLD")
}
"""What the Makefile is told by; a make around the tests, as in `make test ARGS=...`, hands on its own."""

COMMON = {"preset": "smoke", "env": "CarRacing-v3", "workers": 0, "threads": 1, "seed": 3}
"""What a stage that calls others is given in tests, and has to pass on."""

Done = subprocess.CompletedProcess[str]


def outside_of_make() -> dict[str, str]:
    """The environment without the variables of a make around the tests."""
    return {n: v for n, v in os.environ.items() if n not in VARIABLES and not n.startswith(("MAKE", "MFLAGS"))}


def run_here(stage: str, arguments: Sequence[str], pictures: bool = True) -> Done:
    """What `python -m stages.<stage> ...` does, and the stages that it calls; plots are slow, and may be left empty."""
    main = importlib.import_module(f"stages.{stage}").main
    code, out, err = 0, io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for calling in CALLING:
            patch.setattr(f"stages.{calling}.call_stage", partial(call_here, pictures=pictures))
        if not pictures:
            patch.setattr(Figure, "savefig", lambda _, path, **options: Path(path).touch())
        try:
            with writing(None):
                main(list(arguments))
        except UserError as error:
            print(f"error: {error}", file=err)
            code = 2
        finally:
            torch.set_num_threads(threads)
    return Done([stage, *arguments], code, out.getvalue(), err.getvalue())


def given(options: Mapping[str, object]) -> list[str]:
    """Options as arguments of a command line."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def call_here(
    stage: str, options: Mapping[str, object], arguments: Sequence[str] = (), *, pictures: bool = True
) -> None:
    """Stands in for `wm.run.command_line.call_stage`."""
    done = run_here(stage, [*given(options), *arguments], pictures)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        raise UserError(f"stage {stage} of {options['run']} ended with exit code {done.returncode}.")


def make_here(words: Sequence[str], environment: Mapping[str, str], pictures: bool = True) -> Done:
    """Runs the stages that `make` says it would run, goal by goal, until one of them refuses."""
    goals = [word for word in words if "=" not in word]
    variables = [word for word in words if "=" in word]
    out = err = ""
    for goal in goals:
        said = subprocess.run(
            ["make", "-n", goal, *variables], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        commands = re.findall(r"-m stages\.(.*)", said.stdout.replace("\\\n", " "))
        assert commands, said.stdout
        for stage, *arguments in map(shlex.split, commands):
            done = run_here(stage, arguments, pictures)
            out, err = out + done.stdout, err + done.stderr
            if done.returncode:
                return Done(list(words), done.returncode, out, err)
    return Done(list(words), 0, out, err)
