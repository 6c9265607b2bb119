"""The command line of all stages: typed arguments by tyro, errors as one sentence, exit codes.

A stage's arguments are the common ones below and the fields of its config dataclass. The defaults are those of the
preset: `python -m stages.vae --help --preset paper` shows them.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import math
import os
import re
import select
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, fields, make_dataclass, replace
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from wm.config.bounds import bounds_of
from wm.config.names import default_run
from wm.config.presets import DEFAULT_ENV, PRESETS, RENAMED, canonical
from wm.config.seeds import RUN_SEEDS
from wm.config.vmc import Config
from wm.run.errors import UNWRITABLE, MachineError, UserError, writing
from wm.run.folder import LOCKS, Run
from wm.run.signals import EXIT_CODE, Interrupted, ignore, last_line, raise_on_signals

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")
"""Messages of RuntimeErrors (torch's and Python's) that mean the same as a MemoryError."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""CPU cores that this process may use; on macOS all cores."""

RAY = re.compile(r"ray|ray:(//)?[^\s:/]+:[0-9]{1,5}")
"""The values of --workers that are not numbers."""

StageConfig = TypeVar("StageConfig")
"""A stage's config dataclass."""


@dataclass(frozen=True)
class Common:
    """Arguments of every stage."""

    run: Path
    """Run folder. It is created if missing. Default: data/runs/ and the environment's name in lower case."""
    preset: str = "laptop"
    """Set of sizes: smoke (minutes), laptop (an evening), paper (the paper's), rounds (rounds in the dream)."""
    env: str = DEFAULT_ENV
    """Gymnasium id of the environment. Default: that of the run folder (of --source, if given), else the one that
    the presets begin with. Where we have a faster form of it, training sees that one; scores are of the stock one."""
    workers: int | str = CORES
    """Number of worker processes. 0: run in this process, with the same results. ray: on a Ray cluster of this machine.
    ray:HOST:PORT or ray://HOST:PORT: on another cluster (docs/scale.md)."""
    threads: int = CORES
    """Number of threads that train V and M, and that dream. In training another number changes the last digits."""
    seed: int = 0
    """Seed of the training, 0 to 99. It fixes all randomness."""
    restart: bool = False
    """Delete this stage's earlier results in the run folder and start again."""

    def config(self) -> Config:
        """The preset's config; UserError when the environment or the preset is unknown."""
        if self.env not in PRESETS:
            raise UserError(f"environment {self.env} has no presets: choose --env from {', '.join(PRESETS)}.")
        if self.preset in RENAMED:
            raise UserError(f"--preset {self.preset} has another name: give --preset {RENAMED[self.preset]}.")
        if self.preset not in PRESETS[self.env]:
            raise UserError(f"--preset {self.preset} is unknown: choose one of {', '.join(PRESETS[self.env])}.")
        return PRESETS[self.env][self.preset]

    def elsewhere(self, folder: Path) -> dict[str, object]:
        """The same common options for another run folder, as `call_stage` takes them."""
        passed_on = ("preset", "env", "workers", "threads", "seed")
        return {"run": folder, **{name: getattr(self, name) for name in passed_on}}


def parse(config_of: Callable[[Config], Any], description: str, argv: list[str]) -> tuple[Common, Any]:
    """Parses a stage's command line.

    Args:
        config_of: Gives the stage's config dataclass of a preset.
        description: The first line of --help.
        argv: Arguments without the program's name.

    Returns:
        The common arguments, and the stage's config with the values of the command line.
    """
    # The environment and the preset give the defaults of the fields, so they are parsed first.
    run, env = _where(argv)
    preset = _option(argv, "--preset")
    wanted = Common(run=run, preset=default_preset(env) if preset is None else preset, env=env)
    default = config_of(wanted.config())
    for old, new in getattr(default, "RENAMED", {}).items():
        if _option(argv, f"--{old}") is not None:
            raise UserError(f"--{old} has another name: give --{new}.")

    arguments = make_dataclass("Arguments", [("common", Common, wanted), ("config", type(default), default)])
    said, prog, flat = io.StringIO(), f"python -m stages.{Path(sys.argv[0]).stem}", (tyro.conf.OmitArgPrefixes,)
    try:
        with redirect_stderr(said):
            found: Any = tyro.cli(arguments, prog=prog, description=description, args=argv, config=flat)
    except SystemExit as left:
        if left.code == 0:  # --help
            raise
        raise UserError(f"{_first_paragraph(said.getvalue())} (--help lists all options).") from left
    _check(found.common)
    check_bounds(found.config)
    return replace(found.common, env=wanted.env), found.config


def default_preset(env: str) -> str:
    """The preset of an environment if none is given: laptop, or the first one that it has."""
    presets = PRESETS.get(env, {})
    return Common.preset if Common.preset in presets else next(iter(presets), Common.preset)


def kind_option(argv: list[str], name: str, default: str) -> str:
    """The value of an option that decides which further options there are, before the command line is parsed."""
    return _option(argv, name) or default


def with_options(config: Any, options: type[Any]) -> Any:
    """A config dataclass's values together with further options: the defaults of one flat dataclass of both."""
    kind = type(config)
    both = dataclasses.make_dataclass(options.__name__, [], bases=(options, kind), frozen=True)
    both.__doc__ = options.__doc__
    return both(**vars(config))


def stage_config(given: Any, kind: type[StageConfig]) -> StageConfig:
    """The config dataclass `kind` out of a stage's arguments; the manifest records this part and compares it."""
    return kind(**{f.name: getattr(given, f.name) for f in fields(kind)})  # type: ignore[arg-type]


def _first_paragraph(panel: str) -> str:
    """The text of one of tyro's error panels between its title and its first rule, in one line."""
    frame = "─│╭╮╰╯-|+ "  # the last three where the terminal knows ASCII only
    below_title = dropwhile(lambda line: not line.strip(frame), panel.splitlines()[1:])
    said = takewhile(lambda line: line.strip(frame), below_title)
    return " ".join(" ".join(line.strip("│| ") for line in said).split()).rstrip(".")


def call_stage(stage: str, options: Mapping[str, object], arguments: Sequence[str] = ()) -> None:
    """Runs another stage in its own process and waits for its end.

    Args:
        stage: Its name.
        options: Values by option name, without dashes.
        arguments: Further arguments of its command line.

    Raises:
        UserError: It ended with an error code; it has printed the reason.
        MachineError: It was killed or interrupted.
    """
    command = [sys.executable, "-m", f"stages.{stage}"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with subprocess.Popen([*command, *arguments], pass_fds=LOCKS) as process:
        try:
            code = process.wait()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                # The terminal has sent Ctrl-C to the stage, too; a second signal could interrupt its saving.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)
            process.terminate()  # the stage saves its state on SIGTERM
            with suppress(subprocess.TimeoutExpired):  # the folder stays locked until it has saved
                process.wait(timeout=30)
            raise
    if code == EXIT_CODE:
        raise MachineError(f"stage {stage} of {options['run']} was interrupted: run the same command again to resume.")
    if code < 0:
        raise MachineError(
            f"stage {stage} of {options['run']} was killed by signal {-code}: run the same command again to resume."
        )
    if code:
        raise UserError(f"stage {stage} of {options['run']} ended with exit code {code}: see its message above.")


def split_options(option: str, text: str) -> list[str]:
    """Splits the text of `option` into the options of another stage.

    Raises:
        UserError: The quotes do not match, or the text has options that are common to all stages.
    """
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{option} {text!r} cannot be parsed ({error}): check the quotes.") from error
    common = {f"--{f.name}" for f in fields(Common)} | {"--no-restart"}
    for name in found:
        if name.split("=")[0] in common:
            raise UserError(f"{option} has {name}, an option of all stages: give it to the command itself.")
    return found


def check_bounds(config: Any) -> None:
    """UserError when a number of a config dataclass is outside its bounds, or nan."""
    for f in fields(config):
        least, most = bounds_of(f) or (-math.inf, math.inf)
        value = getattr(config, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not least <= number <= most:
                option = f"--{f.name.replace('_', '-')}"
                raise UserError(f"{option} {number} is out of range: give {least:,} to {most:,}.")


def _where(argv: list[str]) -> tuple[Path, str]:
    """The run folder, and the environment of --env and of the folders of --source and --run.

    Raises:
        UserError: Two of them have another environment.
    """
    given, source, run = (_option(argv, name) for name in ("--env", "--source", "--run"))
    known = ("--env", None if given is None else canonical(given))
    if source is not None:
        known = _agreed("--source", Path(source), *known)
    folder = default_run(known[1] or DEFAULT_ENV) if run is None else Path(run)
    return folder, _agreed("--run", folder, *known)[1] or DEFAULT_ENV


def _agreed(option: str, folder: Path, earlier: str, env: str | None) -> tuple[str, str | None]:
    """The environment of an option's run folder, else that of an earlier option, and the option that it is from.

    Raises:
        UserError: Both have one, and they differ.
    """
    recorded = Run(folder).read_env()
    if recorded is None:
        return earlier, env
    if env not in (None, recorded):
        raise UserError(
            f"{folder} is a run of {recorded}, not of {env} (from {earlier}): choose another RUN or {earlier}."
        )
    return option, recorded


def _option(argv: list[str], name: str) -> str | None:
    """The value of an option of the command line, None without; the last one wins, as with tyro."""
    found = None
    for argument, following in zip(argv, [*argv[1:], None], strict=False):
        if argument == name:
            found = following
        elif argument.startswith(name + "="):
            found = argument.split("=", 1)[1]
    return found


def _check(common: Common) -> None:
    if isinstance(common.workers, str) and not RAY.fullmatch(common.workers):
        raise UserError(f"--workers {common.workers} is neither a number nor ray, ray:HOST:PORT or ray://HOST:PORT.")
    if isinstance(common.workers, int) and not 0 <= common.workers <= 1024:
        raise UserError(f"--workers {common.workers} is out of range: give 0 to 1024.")
    if not 1 <= common.threads <= 1024:
        raise UserError(f"--threads {common.threads} is out of range: give 1 to 1024.")
    if not 0 <= common.seed < RUN_SEEDS:
        raise UserError(f"--seed {common.seed} is out of range: give 0 to {RUN_SEEDS - 1}.")


def run_stage(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a stage's main(argv) and exits with its exit code.

    0: done. 2: an error that the user can correct, in one sentence. 130: interrupted, or the reader of its output has
    left; the same command resumes. Any other error is a defect of this project and shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack ± or characters of a path
            stream.reconfigure(errors="backslashreplace")
    raise_on_signals()
    threading.excepthook = _thread_error
    code = 0
    try:
        with writing(None):  # for writes that do not go through `wm.run.files.atomic`
            main(sys.argv[1:])
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        if not _output_closed():
            raise
        code = EXIT_CODE
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_resources(error):
            raise
        sentence = "the machine has no memory or processes left: give smaller sizes or fewer --workers."
        print(f"error: {sentence}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, Interrupted):
        ignore()
        print(last_line("--restart" in sys.argv), file=sys.stderr)
        code = EXIT_CODE
    ignore()
    sys.exit(code)


def _is_out_of_resources(error: MemoryError | RuntimeError | OSError) -> bool:
    """Whether an error means that the machine had no memory, process or thread left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _output_closed() -> bool:
    """Whether the reader of the output has closed it, as `| head` does; further output is then dropped."""
    watched = select.poll()
    for stream in (sys.stdout, sys.stderr):
        watched.register(stream.fileno(), 0)
    closed = [number for number, event in watched.poll(0) if event & select.POLLERR]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


def _thread_error(failed: threading.ExceptHookArgs) -> None:
    """Ignores a refusal to write in TensorBoard's thread; the main thread meets it at its next line of metrics."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in UNWRITABLE):
        threading.__excepthook__(failed)
