"""One command for every verb.

    verl-opd VERB --help              # what it does, and its settings
    verl-opd VERB key=value ...       # do it
    verl-opd --version                # of this project, verl, vLLM and torch
    eval "$(verl-opd --completion bash)"   # complete verbs, keys, groups and choices with TAB

In a checkout `python -m recipe` is the same command, and `python -m recipe.<file>` one verb.
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from verl_ext.run.command import COMMAND, VERBS, pipe_may_close, versions
from verl_ext.run.visible import print, visible


def summary(module: str) -> str:
    """The first line of a verb's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")))
    assert text is not None
    return text.splitlines()[0]


def overview() -> str:
    verbs = "\n".join(f"  {verb:15}{summary(module)}" for verb, module in VERBS.items())
    return f"{__doc__}\nVerbs:\n{verbs}"


def completions(line: str) -> list[str]:
    """What the last word of a command line can become."""
    words = [*line.split(), *([""] if line.endswith(" ") else [])][1:]
    if len(words) < 2:
        return [verb for verb in VERBS if verb.startswith(words[0] if words else "")]
    verb, *rest = words
    if rest[-1].startswith("-"):
        return [flag for flag in ("--cfg", "--debug", "--help", "--resolve") if flag.startswith(rest[-1])]
    if verb not in VERBS:
        return []
    from verl_ext.run.verb import complete

    return complete(importlib.import_module(f".{VERBS[verb]}", __package__).VERB, rest)


def print_completion(shell: str) -> None:
    if shell != "bash":
        sys.exit(
            f"error: --completion {shell}: only bash; zsh takes the same after `autoload bashcompinit; bashcompinit`"
        )
    from verl_ext.run.completion import bash_script

    print(bash_script(COMMAND))


def main() -> None:
    with pipe_may_close():
        run(*sys.argv[1:])


def run(*given: str) -> None:
    verb, *words = given or ("--help",)
    if verb in ("--help", "-h", "help"):
        print(overview())
    elif verb == "--version":
        print(versions())
    elif verb == "--completion":
        print_completion(*(words or [""]))
    elif verb == "--complete":
        print("\n".join(completions(words[0])))
    elif verb in VERBS:
        sys.argv = [f"{COMMAND} {verb}", *words]
        importlib.import_module(f".{VERBS[verb]}", __package__).main()
    else:
        begun = [word for word in VERBS if word.startswith(verb)]
        close = begun or difflib.get_close_matches(verb, [*VERBS, *VERBS.values()], 1, 0.5)
        known = {module: word for word, module in VERBS.items()}
        fix = f"did you mean {known.get(close[0], close[0])}?" if close else f"verbs: {', '.join(VERBS)}"
        sys.exit(visible(f"error: unknown verb {verb}; {fix}"))


if __name__ == "__main__":
    main()
