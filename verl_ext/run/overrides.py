"""Overrides that a configuration does not take, refused in one line that names the nearest ones that it does."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

CLOSE = 0.62
"""Likeness in [0, 1] from which a key is worth showing."""
SHOWN = 3
"""Suggestions at most."""


def check_overrides(
    name: str, words: Sequence[str], added: Sequence[str] = (), usual: Collection[str] = (), sweep: bool = False
) -> None:
    """Refuse what the configuration `name` does not take; Hydra must be initialised.

    Args:
        name: of the configuration.
        words: overrides as typed.
        added: overrides that the verb puts before them.
        usual: keys that people set, suggested before others.
        sweep: several values of a key are a sweep.

    Raises:
        ValueError: naming the word and the nearest valid ones.
    """
    parsed = [each for each in (parsed_word(word, usual, sweep) for word in words) if not each.is_sweep_override()]
    chosen = [each for each in parsed if is_group(name, each)]
    for each in chosen:
        _check_choice(name, added, each, usual)
    try:
        config = compose(name, [*added, *(str(each.input_line) for each in chosen)], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        for each in chosen:
            _check_group(name, added, each)
        raise ValueError(in_one_line(error)) from error
    known = Known(config, usual)
    for each in parsed:
        if each not in chosen:
            check_key(known, each)


class Known:
    """What a composed configuration takes."""

    def __init__(self, config: DictConfig, usual: Collection[str]) -> None:
        self.config = config
        self.usual = usual
        """Keys that people set."""
        self.keys = set(keys_of(OmegaConf.to_container(config, resolve=False)))
        """All of them, dotted, mappings included."""
        self.groups = [group for group in config.hydra.runtime.choices if "/" not in group and "@" not in group]

    def place(self, key: str) -> tuple[Any, str | int]:
        """The node that holds the key, and the key's name in it."""
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(self.config, parent) if parent else self.config
        return node, int(name) if isinstance(node, ListConfig) and name.isdigit() else name

    def has(self, key: str) -> bool:
        if key in self.keys:
            return True
        node, name = self.place(key)
        return isinstance(node, ListConfig) and isinstance(name, int) and name < len(node)

    def is_closed(self, key: str) -> bool:
        """The key would be added to one of our dataclasses."""
        return is_dataclass(OmegaConf.get_type(self.place(key)[0]))

    def unknown(self, key: str) -> str:
        """That there is no such key, and the nearest ones; in a mapping that is meant to be filled, how to add it."""
        node, name = self.place(key)
        if isinstance(node, DictConfig) and not node and not self.is_closed(key):
            return f"{key.rpartition('.')[0]} is empty; +{key}=... adds {name}"
        ours = {each for each in self.keys if key.startswith("hydra") or not each.startswith("hydra")}
        close = nearest(key, {*ours, *self.groups}, self.usual)
        return f"unknown key {key}; {did_you_mean(close, '--help lists the usual keys, --cfg job all')}"


def choices(name: str, added: Sequence[str] = ()) -> dict[str, str | None]:
    """Every group of the configuration -> its default choice; a package that is not the group's own is part of it."""
    return dict(compose(name, list(added), return_hydra_config=True).hydra.runtime.choices)


def options(name: str, group: str) -> list[str]:
    """The choices of a group; the configuration `name` may add folders to Hydra's search path."""
    return GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG, name)


def is_group(name: str, override: Override) -> bool:
    """Hydra's own rule: a folder of this name makes every override but a mapping's a choice."""
    named = override.package is not None or "/" in override.key_or_group or bool(options(name, override.key_or_group))
    return named and not isinstance(override.value(), dict)


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a plain nested dictionary, those of dictionaries included."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from keys_of(value, f"{prefix}{name}.")


def nearest(typed: str, keys: Iterable[str], usual: Collection[str] = ()) -> list[str]:
    """The keys most like what was typed, the likeliest first: by their last name, then by the whole path."""
    last = typed.rpartition(".")[2]
    likeness = {}
    for name in {key.rpartition(".")[2] for key in keys}:
        matcher = difflib.SequenceMatcher(None, last, name)
        likeness[name] = matcher.ratio() if matcher.real_quick_ratio() > CLOSE - 0.2 else 0.0
    found = []
    for key in keys:
        same = likeness[key.rpartition(".")[2]]
        if same < CLOSE:
            continue
        score = 0.6 * same + 0.4 * difflib.SequenceMatcher(None, typed, key).ratio()
        score += 0.3 * (f".{key}".endswith(f".{typed}")) + 0.3 * (key in usual)
        found.append((score, key))
    found.sort(key=lambda pair: (-pair[0], len(pair[1])))
    return [key for score, key in found[:SHOWN] if score > found[0][0] - 0.1]


def did_you_mean(suggestions: Sequence[str], otherwise: str) -> str:
    if not suggestions:
        return otherwise
    *first, last = suggestions
    return f"did you mean {', '.join(first)} or {last}?" if first else f"did you mean {last}?"


def in_one_line(error: Exception) -> str:
    """An error's message without Hydra's advice to add the key, its search path and OmegaConf's type notes."""
    causes = [error, *([error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [])]
    if not isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines if len(lines) <= SHOWN else [lines[0], lines[-1]])  # of a log, its last words
    noise = ("To append", "Set the env", "Config search path", "full_key:", "object_type", "reference_type", "See http")
    kept = []
    for cause in causes:
        for line in str(cause).splitlines():
            if line.startswith("Config search path"):
                break
            if line.strip() and not line.strip().startswith(noise):
                kept.append(line.strip())
    message, key = "; ".join(kept), getattr(causes[-1], "full_key", None)
    return f"{key}: {message}" if key and key not in message else message


def parsed_word(word: str, usual: Collection[str], sweep: bool = False) -> Override:
    """An override as typed. Raises ValueError where it is none, or gives several values outside a sweep."""
    key, equals, value = word.partition("=")
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException as error:
        if not equals:
            close = nearest(key, usual)
            fix = f"did you mean {close[0]}={key if '.' not in key else '...'}?" if close else "--help lists the keys"
            raise ValueError(f"{word}: expected key=value; {fix}") from error
        raise ValueError(
            f"{word}: the value cannot be read; in quotes it is taken as it stands: '{key}=\"{value}\"'"
        ) from error
    if parsed.is_sweep_override() and not sweep:
        raise ValueError(f"{word}: several values; write '{key}=[{value}]', or '{key}=\"{value}\"'")
    return parsed


def _check_choice(name: str, added: Sequence[str], override: Override, usual: Collection[str]) -> None:
    """The choice is one of the group's files."""
    known, picked = options(name, override.key_or_group), override.value()
    for choice in picked if isinstance(picked, list) else [picked]:
        if choice in known or override.is_delete():
            continue
        _check_group(name, added, override)
        group, word = override.key_or_group, override.input_line
        below = [key for key in usual if key.startswith(f"{group}.")]
        if below:  # verl has folders of the names of its sections
            raise ValueError(f"{word}: {group} is not one value but several keys; {did_you_mean(below[:SHOWN], '')}")
        close = [f"{group}={each}" for each in difflib.get_close_matches(str(choice), known, SHOWN, 0.5)]
        raise ValueError(f"{word}: no such choice; {did_you_mean(close, 'choices: ' + ', '.join(known))}")


def _check_group(name: str, added: Sequence[str], override: Override) -> None:
    """The group is one that the configuration has, and written as it stands there."""
    groups = choices(name, added)
    group, word = override.key_or_group, str(override.input_line)
    placed = f"{group}@{override.package}" if override.package else group
    if placed not in groups and group in groups:
        raise ValueError(f"{word}: the files of this group have their own place; write {group}=NAME")
    if not options(name, group):
        ours = [each for each in groups if "/" not in each and "@" not in each]
        close = difflib.get_close_matches(group, ours, 1)
        raise ValueError(f"{word}: unknown group {group}; {did_you_mean(close, 'groups: ' + ', '.join(ours))}")
    if override.is_add() and placed in groups:
        raise ValueError(f"{word}: the group is there already; write {word.lstrip('+')}")
    if override.is_delete() and override.value() not in (None, "", groups.get(placed)):
        raise ValueError(f"{word}: {placed} is {groups.get(placed) or 'not chosen'}; write ~{placed}")


def check_key(known: Known, override: Override) -> None:
    """Refuse an override of a key that there is not, or by a value of another type. Raises ValueError."""
    key, word = override.key_or_group, str(override.input_line)
    adds = override.is_add() or override.is_force_add()
    if not known.has(key):
        if adds and not known.is_closed(key):
            return
        raise ValueError(f"{word}: {known.unknown(key)}")
    if override.is_add() and not isinstance(override.value(), dict | list):  # Hydra merges a mapping, extends a list
        raise ValueError(f"{word}: the key exists; write {word.lstrip('+')}")
    if not override.is_delete():
        _check_value(known, key, override.value(), adds)


def _check_value(known: Known, key: str, value: Any, adds: bool) -> None:
    """Refuse a value that the key's type, or where verl's YAML has none that of its default, does not take."""
    node, name = known.place(key)
    if isinstance(value, str) and "${" in value:
        return
    default = None if OmegaConf.is_missing(node, name) else _resolved(node, name)
    if isinstance(default, DictConfig) and value is not None:
        if not isinstance(value, dict):
            usual = [each for each in known.usual if each.startswith(f"{key}.")]
            below = (usual or [f"{key}.{each}" for each in default])[:SHOWN]
            raise ValueError(f"{key}={_shown(value)}: {key} holds several keys; {did_you_mean(below, '--help')}")
        for inner, each in value.items():
            if known.has(f"{key}.{inner}"):
                _check_value(known, f"{key}.{inner}", each, adds)
            elif not adds or known.is_closed(f"{key}.{inner}"):
                raise ValueError(f"{key}={_shown(value)}: {known.unknown(f'{key}.{inner}')}")
    elif is_dataclass(kind := OmegaConf.get_type(node)):
        expected = get_type_hints(kind)[str(name)]
        try:
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and bool in (expected, *get_args(expected))
            ):
                raise ValidationError("a number for a switch")  # 3 would be true
            OmegaConf.update(known.config, key, value)
        except OmegaConfBaseException as error:
            wanted = expected.__name__ if isinstance(expected, type) else str(expected)
            raise ValueError(f"{key}={_shown(value)}: expected {in_words(wanted)}") from error
    elif isinstance(default, bool | int | float) and value is not None and not _is_like(value, default):
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise ValueError(f"{key}={_shown(value)}: expected {wanted}, as the default {_shown(default)}")


def _is_like(value: Any, default: float) -> bool:
    """A switch for a switch, a number (NaN is none) for a number."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float) and value == value


def _resolved(node: Any, name: str | int) -> Any:
    """The value, or None where it refers to one that is not set."""
    try:
        return node[name]
    except OmegaConfBaseException:
        return None


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(kind: str) -> str:
    """A type as people say it."""
    if kind.startswith("list"):
        return f"a list, as in [{'1,2' if 'int' in kind else 'a,b'}]"
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text", "None": "null"}
    return " or ".join(words.get(part, part) for part in kind.split(" | "))
