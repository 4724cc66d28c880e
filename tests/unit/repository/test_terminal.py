"""One way to the terminal: what is printed passes `verl_ext.run.visible`, whoever prints it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = ("verl_ext/run/visible.py", "verl_ext/run/terminal.py", "verl_ext/platform/sglang_cpu")
FILES = [
    file
    for package in ("verl_ext", "recipe")
    for file in sorted((ROOT / package).rglob("*.py"))
    if not str(file.relative_to(ROOT)).startswith(OWN)
]


def ways_round(source: str) -> Iterator[str]:
    """What in a module's source writes to the terminal as it stands."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "verl_ext.run.visible"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        if called == "print" and "print" not in imported:
            yield f"line {node.lineno}: print, which is not imported from verl_ext.run.visible"
        elif called == "Console":
            yield f"line {node.lineno}: Console; make a verl_ext.run.terminal.Terminal"
        elif called in ("Progress", "Live", "Status") and "console" not in given:
            yield f"line {node.lineno}: {called} without console=Terminal()"
        elif called in ("sys.stdout.write", "sys.stderr.write", "rich.print"):
            yield f"line {node.lineno}: {called}; import print from verl_ext.run.visible"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_printed_as_it_stands(file):
    assert list(ways_round(file.read_text())) == []


def test_the_rule_sees_what_it_should():
    bad = "from rich.console import Console\nprint(1)\nConsole().print(2)\nProgress(x)\nsys.stderr.write(y)\n"
    assert len(list(ways_round(bad))) == 4
    assert list(ways_round("from verl_ext.run.visible import print\nprint(1)\nProgress(x, console=c)")) == []
