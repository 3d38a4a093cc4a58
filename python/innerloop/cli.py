# SPDX-License-Identifier: Apache-2.0
"""The ``innerloop`` command: ``innerloop <recipe> fit|evaluate|...`` and ``innerloop doctor``."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

_USAGE = """\
usage: innerloop COMMAND ...

  innerloop nbfnet fit            train NBFNet on an embedded data set and report the test split
  innerloop nbfnet fit --help     its settings
  innerloop nbfnet evaluate CKPT  rank the test split with a trained model
  innerloop nbfnet explain HEAD RELATION TAIL
                                  the paths behind a prediction of a trained model
  innerloop nbfnet links DATA     train NBFNet on an undirected graph, e.g. cora.cites.xz
  innerloop nbfnet heuristics DATA
                                  Katz, PageRank and graph distance as link predictors
  innerloop ultra predict CKPT HEAD RELATION
                                  the tails an ULTRA checkpoint expects, on any data set
  innerloop ultra evaluate CKPT   rank the test split with an ULTRA checkpoint
  innerloop ultra fit CKPT        fine-tune it
  innerloop poolingformer fit     train a Poolingformer on ListOps, question answering or masked bytes
  innerloop poolingformer evaluate CKPT
                                  measure a trained model
  innerloop poolingformer compare train one and two levels, and kinds of pooling, with several seeds
  innerloop ckd fit               train a small image classifier with a teacher's logits
  innerloop ckd evaluate CKPT     measure a trained one
  innerloop ckd compare           train by several methods with several seeds
  innerloop ma-gcnn fit           train a classifier of graphs on the folds of an embedded set
  innerloop ma-gcnn evaluate DIR  measure the models it kept
  innerloop ma-gcnn compare       train several variants on the same folds
  innerloop motif count FILE      orbits of every node, or edge, of a network
  innerloop doctor                which implementation each operator takes on this machine, and why
"""


_COMMANDS = {
    "nbfnet": ("fit", "evaluate", "explain", "links", "heuristics"),
    "ultra": ("predict", "evaluate", "fit"),
    "poolingformer": ("fit", "evaluate", "compare"),
    "ckd": ("fit", "evaluate", "compare"),
    "ma-gcnn": ("fit", "evaluate", "compare"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        print(end="", flush=True)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest of the buffer goes at exit
        return 141  # as if ended by SIGPIPE
    except KeyboardInterrupt:
        print("innerloop: interrupted", file=sys.stderr)
        return 130
    return status


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if command == "doctor":
        from innerloop import doctor

        return doctor.main(arguments[1:]) or 0
    if command == "motif":
        from innerloop.recipes import motif

        return motif.main(arguments[1:])
    if command in _COMMANDS:
        return _recipe(command, arguments[1:])
    print(f"innerloop: unknown command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2


def _recipe(name: str, arguments: list[str]) -> int:
    from innerloop.recipes._memory import keep_freed_memory, shortage

    keep_freed_memory()  # before torch makes its first tensor
    try:
        import pytorch_lightning  # noqa: F401
        from jsonargparse import auto_cli
    except ModuleNotFoundError as error:
        print(
            f'innerloop: {error.name} is missing; install it with: pip install "innerloop[train]"',
            file=sys.stderr,
        )
        return 1

    from innerloop.recipes._settings import UsageError
    from innerloop.recipes._task import Interrupted

    recipe = importlib.import_module(f"innerloop.recipes.{name.replace('-', '_')}")
    commands = {command: _checked(getattr(recipe, command)) for command in _COMMANDS[name]}

    # --batch-size and --batch_size are the same option.
    for i, word in enumerate(arguments):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            arguments[i] = "--" + option[2:].replace("-", "_") + equals + value
    try:
        auto_cli(
            commands,
            args=arguments or ["--help"],
            prog=f"innerloop {name}",
        )
    except Interrupted as stop:
        print(f"innerloop: {stop} with --resume auto", file=sys.stderr)
        return 130
    except (FileNotFoundError, ImportError, MemoryError, RuntimeError, ValueError) as error:
        short = shortage(error)
        if short is None and (isinstance(error, RuntimeError) or not _is_ours(error)):
            raise
        print(f"innerloop: {short or error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _checked(command: Callable) -> Callable:
    """The command, after a look at options that several recipes have, before any work."""
    from innerloop.recipes._settings import UsageError, check_threads

    @functools.wraps(command)  # jsonargparse reads the signature and the docstring of what is wrapped
    def call(*args: object, **options: object) -> object:
        output = options.get("output")
        check_threads(options.get("threads"))
        if output is not None and output.exists() and not output.is_dir():
            raise UsageError(f"output is {str(output)!r}, a file, expected a folder")
        return command(*args, **options)

    return call


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error: its message is meant for the user."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(__file__).parent)
