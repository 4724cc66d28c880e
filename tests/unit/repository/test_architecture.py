"""docs/architecture.md against the imports: rooms, diagrams, and the way of one sample."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MOST_FILES = 12
ENTRIES = ("trainer/agent_loop.py", "trainer/trainer.py", "trainer/losses.py")  # verl calls these


def imported_by(file: str) -> set[str]:
    """Files of verl_ext that a file imports, as paths below it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "verl_ext" / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("verl_ext."):
            assert node.module is not None
            module = node.module.removeprefix("verl_ext.").replace(".", "/")
            for name in (f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names)):
                if (ROOT / "verl_ext" / name).is_file():
                    found.add(name)
    return found


def reached_from(entries: tuple[str, ...]) -> set[str]:
    reached, waiting = set(), list(entries)
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += imported_by(file)
    return reached


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_room_has_its_row_and_every_row_its_room():
    rooms = {path.name for path in (ROOT / "verl_ext").iterdir() if (path / "__init__.py").is_file()}
    named = re.findall(r"^\| (.*?) \|", section("The rooms of verl_ext, in the order of the data"), re.MULTILINE)
    assert {room for row in named for room in re.findall(r"`(\w+)/`", row)} == rooms


def test_the_diagrams_name_files_that_exist():
    diagrams = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    assert len(diagrams) == 2
    for diagram in diagrams:
        files = re.findall(r"\b(?:\w+/)+\w+\.py\b", diagram)
        assert len(files) > 5
        assert [file for file in files if not ((ROOT / "verl_ext" / file).is_file() or (ROOT / file).is_file())] == []


def test_a_sample_passes_through_few_files_and_the_page_lists_them_all():
    """What the entries import of trainer, teacher and method is on the way, on the store's, or named as beside it."""
    way = section("The way of one sample")
    numbered = re.findall(r"^\d+\. `verl_ext/(\S+?)`", way, re.MULTILINE)
    assert len(numbered) == len(set(numbered)) <= MOST_FILES
    assert {file for file in reached_from(ENTRIES) if file.startswith(("trainer/", "teacher/", "method/"))} == set(
        re.findall(r"`verl_ext/(\S+?)`", way)
    )
    for file in numbered:  # each is handed the sample by one before it, or called by verl
        assert file in ENTRIES or any(file in imported_by(other) for other in numbered)
