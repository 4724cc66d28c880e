"""What the command lines of all verbs share: flags, `--help`, errors of one line, the way into Hydra."""

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from hydra import initialize, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.command import as_typed, pipe_may_close, versions
from verl_ext.run.completion import candidates
from verl_ext.run.help import help_text
from verl_ext.run.hydra import group_files
from verl_ext.run.overrides import check_overrides, in_one_line
from verl_ext.run.own_yaml import is_file_of_keys, words_of
from verl_ext.run.resume import resumed_step
from verl_ext.run.stop import catch, end_at_once, exit_by
from verl_ext.run.visible import print, visible

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's own variable: 1 for the traceback of an error."""
SEEN_NEW = 100_000
"""New objects after which Python looks for garbage (its own: 700). Imports and YAML make millions, and no garbage: a
refused run would spend a sixth of its time there."""


@dataclass(frozen=True)
class Verb:
    """One command: its configuration, its help, and the errors that are its user's to mend."""

    name: str
    """File in `config_dir`, or name under which the settings are registered."""
    doc: str
    """What it does, with examples: the first part of its help."""
    settings: Mapping[str, type]
    """Where in the configuration a dataclass of ours stands ("": all of it) -> the dataclass, which documents it."""
    config_dir: Path | None = None
    """Folder of its YAML files; None where `register_verb` registered its settings."""
    groups: tuple[Path, ...] = ()
    """Folders whose files are choices of a group, where there is no `config_dir`."""
    noun: str = ""
    """Word that comes before the overrides: what is planned or compared."""
    beside: Mapping[str, "Verb"] = field(default_factory=dict)
    """Other nouns of the same command -> what each does."""
    required: tuple[str, ...] = ()
    """Keys that must be given beside those that are `???`."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys that its help shows -> their text, "" where a dataclass has it. Empty: every field of `settings[""]`."""
    added: tuple[str, ...] = ()
    """Overrides that come before those of the command line."""
    prepare: Callable[[], object] | None = None
    """What must be done before its configuration can be composed."""
    more: str = ""
    """Where the rest is documented."""
    errors: tuple[type[Exception], ...] = (ValueError,)
    """Those that say all there is to say in one line."""
    interrupted: str = "interrupted"
    """The last words after Ctrl-C."""

    @contextlib.contextmanager
    def composing(self) -> Iterator[None]:
        """Hydra's `compose` finds the configuration of this verb."""
        if self.prepare is not None:
            self.prepare()
        folder = self.config_dir
        finding = partial(initialize_config_dir, str(folder)) if folder else partial(initialize, None)
        with group_files(self.groups), finding(version_base=None):
            yield


def show_help(verb: Verb) -> None:
    with verb.composing():
        text = help_text(verb)
    closing = f"{verb.more}\n`--cfg job` shows the whole configuration, resolved; `--debug` the traceback of an error."
    print(as_typed(f"{text}\n{closing.lstrip()}"))


def check_words(verb: Verb, words: list[str], sweep: bool = False) -> None:
    """Refuse overrides that the verb's configuration does not take. Raises ValueError with the nearest valid ones."""
    with verb.composing():
        check_overrides(verb.name, words, verb.added, verb.keys, sweep)


def words_of_files(verb: Verb, files: list[str], typed: list[str]) -> list[str]:
    """The overrides that YAML files on a command line stand for, beside those that are typed."""
    if not files:
        return []
    with verb.composing():
        return [word for file in files for word in words_of(Path(file), verb.name, verb.added, typed, verb.keys)]


def complete(verb: Verb, words: list[str]) -> list[str]:
    """What the last of `words`, which follow the verb, can become."""
    if verb.noun and len(words) == 1:
        return [noun for noun in (verb.noun, *verb.beside) if noun.startswith(words[0])]
    verb = verb.beside.get(words[0], verb)
    with verb.composing():
        return candidates(verb.name, words, verb.added)


@contextlib.contextmanager
def one_line_errors(verb: Verb, debug: bool) -> Iterator[None]:
    """An error leaves one line on stderr and status 1; one that is not its user's, a file with the traceback too."""
    try:
        with pipe_may_close():
            yield
    except (*verb.errors, HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        sys.exit(as_typed(visible(f"error: {in_one_line(error)}")))
    except Exception as error:  # the one place that may: nobody is to read a traceback who did not ask for one
        if debug:
            raise
        said = visible(f"{type(error).__name__}: {in_one_line(error)}")
        sys.exit(f"error: {said}; traceback: {keep_traceback(error)}, or --debug")
    except KeyboardInterrupt as error:
        exit_by(error, as_typed(verb.interrupted))
    except SystemExit as end:
        end.code = visible(end.code) if isinstance(end.code, str) else end.code
        raise


def keep_traceback(error: BaseException) -> str:
    """Write an error's traceback to a file of its own; the file."""
    with tempfile.NamedTemporaryFile("w", prefix="verl-opd-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(visible("".join(traceback.format_exception(error))))
    return file.name


def how_to_go_on(trainer: DictConfig) -> str:
    """What the same command would do now, by the settings `trainer` of a run."""
    if (step := resumed_step(trainer)) is None:
        return "no checkpoint to resume from: the same command starts over"
    return f"the same command resumes after step {step}"


def parse(words: list[str]) -> argparse.Namespace:
    """Hydra's flags and ours, in any order with the overrides."""
    parser = get_args_parser()
    parser.add_argument("--debug", action="store_true")
    parser.error = lambda message: sys.exit(visible(f"error: {message}; --help shows the settings"))
    return parser.parse_intermixed_args(words)


def after_noun(verb: Verb, words: list[str]) -> list[str]:
    """The words without the verb's noun, which may be left out before flags alone. Exits where it is missing."""
    if words[:1] == [verb.noun]:
        return words[1:]
    if verb.noun and not (words and words[0].startswith("-")):
        nouns = " or ".join((verb.noun, *verb.beside))
        sys.exit(f"error: expected the word {nouns} before key=value and flags; --help has examples")
    return words


def run_verb(verb: Verb, job: Callable[[Any], None], words: list[str] | None = None) -> None:
    """Run `job` with the configuration that the command line makes, or do what its flags ask for.

    `words` stands for the command line's, `sys.argv[1:]`. Leaves by SystemExit where there was an error.
    """
    words = after_noun(verb, sys.argv[1:] if words is None else words)
    if "--version" in words:  # Hydra would show its own
        print(versions())
        return
    flags = parse(words)
    if flags.help:
        show_help(verb)
        return
    debug = flags.debug or os.environ.get(FULL_ERROR) == "1"
    gc.set_threshold(SEEN_NEW)
    catch(end_at_once)
    elsewhere = (flags.config_dir, flags.config_path, flags.config_name, flags.hydra_help, flags.shell_completion)
    with one_line_errors(verb, debug):
        files = [word for word in flags.overrides if is_file_of_keys(word)]
        words, flags.overrides = ([w for w in each if w not in files] for each in (words, flags.overrides))
        flags.overrides = [*words_of_files(verb, files, flags.overrides), *flags.overrides]
        if not any(elsewhere) and not any("hydra.searchpath=" in word for word in flags.overrides):
            check_words(verb, flags.overrides, sweep=flags.multirun)
        elif verb.prepare is not None:
            verb.prepare()
        _run_hydra(verb, partial(_run_job, verb, job, debug), words, flags.overrides)


def _run_job(verb: Verb, job: Callable[[Any], None], debug: bool, config: DictConfig) -> None:
    if not debug:
        os.environ.pop(FULL_ERROR, None)
    with one_line_errors(verb, debug):
        job(config)


@contextlib.contextmanager
def one_composition(overrides: list[str]) -> Iterator[None]:
    """Where no override sets `hydra.mode`, Hydra does not compose all once more, half a second, to look it up."""
    with contextlib.ExitStack() as stack:
        if not any("hydra.mode=" in word for word in overrides):
            stack.enter_context(mock.patch.object(Hydra, "get_mode", return_value=None))
        yield


def _run_hydra(verb: Verb, task: Callable[[DictConfig], None], words: list[str], overrides: list[str]) -> None:
    """`hydra.main` on the words in the order that it takes; what it cannot compose is raised, not printed."""
    flags = [word for word in words if word not in overrides and word != "--debug"]
    sys.argv[1:] = [*verb.added, *overrides, *flags]
    os.environ[FULL_ERROR] = "1"

    def run(config: DictConfig) -> None:  # Hydra asks for the name of a function
        task(config)

    directory = str(verb.config_dir) if verb.config_dir else None
    try:
        with group_files(verb.groups), one_composition(overrides):
            hydra.main(version_base=None, config_path=directory, config_name=verb.name)(run)()
    finally:
        os.environ.pop(FULL_ERROR, None)
