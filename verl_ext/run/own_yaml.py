"""A run in a YAML file: its keys become overrides, checked like those on a command line.

`defaults` is a list of choices of groups (`- platform: cpu`), as in Hydra's own files; everything else are keys.
`config.yaml` of a run is such a file. What a file says of a key that follows others (`${run_dir}/checkpoints`) is left
out where it follows, so that another `run_dir` on the command line moves what belongs to it.
"""

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.overrides import Known, check_overrides, is_group, options, parsed_word

SUFFIXES = (".yaml", ".yml")


def is_file_of_keys(word: str) -> bool:
    """A word of a command line that names a file, not a key."""
    return "=" not in word and word.endswith(SUFFIXES)


def words_of(
    file: Path, name: str, added: Sequence[str] = (), typed: Sequence[str] = (), usual: Collection[str] = ()
) -> list[str]:
    """The overrides that a file stands for; Hydra must be initialised.

    Args:
        file: YAML.
        name: of the configuration.
        added: overrides that the verb puts before all.
        typed: overrides of the command line, whose groups win.
        usual: keys that people set, suggested before others.

    Raises:
        ValueError: naming the file, if it is no YAML of keys, or says something that the configuration does not take.
    """
    content = read_keys(file)
    try:
        groups = [f"{group}={choice}" for group, choice in _choices(content, name).items()]
        check_overrides(name, groups, added, usual)
        chosen = [*groups, *(word for word in typed if is_group(name, parsed_word(word, usual)))]
        known = Known(compose(name, [*added, *chosen], return_hydra_config=True), usual)
        words = [*groups, *_differing(known, content)]
        check_overrides(name, words, added, usual)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return words


def read_keys(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); give key=value, or a YAML file of them") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{file} is no YAML ({' '.join(str(error).split())}); mend it") from None
    except (RecursionError, AssertionError):  # brackets without end; OmegaConf's own where all is one number
        raise ValueError(f"{file}: expected keys, as in `trainer: {{total_training_steps: 100}}`") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected keys, as in `trainer: {{total_training_steps: 100}}`")
    return {str(key): value for key, value in content.items()}


def _choices(content: dict[str, Any], name: str) -> dict[str, str]:
    """Takes the choices of groups out of a file's content: those under `defaults`, and `group: choice` beside them."""
    found: dict[str, str] = {}
    for entry in content.pop("defaults", None) or []:
        if not isinstance(entry, dict):
            raise ValueError(f"defaults: {entry}: expected a group and its choice, as in `- platform: cpu`")
        found |= {group: choice for group, choice in entry.items() if choice is not None}
    for key in [key for key, value in content.items() if isinstance(value, str) and options(name, key)]:
        found[key] = content.pop(key)
    return found


def _differing(known: Known, content: dict[str, Any]) -> Iterator[str]:
    """An override for each value that the configuration does not have anyway."""
    config: DictConfig = known.config.copy()
    OmegaConf.set_struct(config, False)
    following = []
    for key, value in _leaves(known, content):
        if _follows(known, key):
            following.append((key, value))
        elif value != "???" and not (known.has(key) and _plain(config, key) == value):
            with contextlib.suppress(OmegaConfBaseException):  # what it does not take is refused as a word
                OmegaConf.update(config, key, value)
            yield f"{'' if known.has(key) or not _is_open(known, key) else '+'}{key}={typed_value(value)}"
    for key, value in sorted(following, key=lambda pair: pair[0].count(".")):  # `run_dir` before what is in it
        if _plain(config, key) != value:
            OmegaConf.update(config, key, value)
            yield f"{key}={typed_value(value)}"


def _leaves(known: Known, content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and not _follows(known, key):
            yield from _leaves(known, value, f"{key}.")
        else:
            yield key, value


def _follows(known: Known, key: str) -> bool:
    """The key's default is that of other keys."""
    node, name = known.place(key)
    return known.has(key) and isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name)


def _plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _is_open(known: Known, key: str) -> bool:
    """The key is below a mapping that is empty, and meant to be filled."""
    while "." in key:
        key = key.rpartition(".")[0]
        if known.has(key):
            node = OmegaConf.select(known.config, key)
            return isinstance(node, DictConfig) and not node
    return False


def typed_value(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(typed_value(each) for each in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{'-' * (value < 0)}inf"
    if isinstance(value, int):
        return str(value)
    # A backslash is plain, but before a quote and at the end.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), str(value))
    return f'"{escaped}"'
