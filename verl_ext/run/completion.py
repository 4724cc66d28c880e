"""Shell completion: what a word of the command line can become."""

from collections.abc import Sequence

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.overrides import choices, options

BASH = """_{name}() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" word="${{COMP_WORDS[COMP_CWORD]}}" found
    local typed="${{line##* }}"
    local before="${{typed%"$word"}}"
    [[ $word == "=" ]] && before="$typed"
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${{found#"$before"}}")
    done < <({command} --complete "$line" 2>/dev/null)
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=.] ]] && compopt -o nospace
    return 0
}}
complete -o default -F _{name} {command}
"""
"""Bash splits words at `=`, and wants only what follows the last one."""


def bash_script(command: str) -> str:
    """What a shell evaluates to complete `command`, which must answer `--complete LINE`."""
    return BASH.format(command=command, name=command.replace("-", "_"))


def candidates(name: str, words: Sequence[str], added: Sequence[str] = ()) -> list[str]:
    """What the last of `words` can become in the configuration `name`: groups, keys one level deep, choices, defaults.

    The other words may choose groups. Hydra must be initialised.
    """
    *before, word = words
    groups = [group for group in choices(name, added) if "@" not in group and not group.startswith("hydra/")]
    key, equals, value = word.partition("=")
    if equals and key in groups:
        return [f"{key}={option}" for option in options(name, key) if option.startswith(value)]
    picked = [each for each in before if "=" in each and options(name, each.partition("=")[0])]
    try:
        config = compose(name, [*added, *picked])
    except (HydraException, OmegaConfBaseException):  # a half-typed line: no keys to offer
        return []
    if equals:
        return [f"{key}={each}" for each in _values(config, key) if each.startswith(value)]
    parent, dot, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    below = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    assert isinstance(below, dict)
    ends = {str(inner): "." if isinstance(value, dict) else "=" for inner, value in below.items()}
    keys = [f"{parent}{dot}{inner}{end}" for inner, end in ends.items() if inner.startswith(last)]
    return sorted({*keys, *(f"{group}=" for group in groups if not dot and group.startswith(key))})


def _values(config: DictConfig, key: str) -> list[str]:
    """true and false for a switch, else the default."""
    try:
        default = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return []
    if isinstance(default, bool):
        return ["true", "false"]
    return [] if default is None or OmegaConf.is_config(default) else [str(default)]
