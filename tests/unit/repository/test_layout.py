"""The tree keeps its shape: few rooms, small files, short functions, and tests where one looks for them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE, UNIT = ROOT / "verl_ext", ROOT / "tests" / "unit"
ROOMS, FILE_LINES, FUNCTION_LINES = 17, 300, 60
SOURCES = sorted(path for top in ("verl_ext", "recipe", "benchmarks") for path in (ROOT / top).rglob("*.py"))


def folders(path: Path) -> set[str]:
    """Those that hold a module: a branch that was left may leave its __pycache__ behind."""
    return {entry.name for entry in path.iterdir() if any(entry.rglob("*.py"))}


def test_the_package_holds_rooms_and_nothing_beside_them():
    assert [path.name for path in PACKAGE.iterdir() if path.is_file()] == ["__init__.py"]
    assert len(folders(PACKAGE)) <= ROOMS


def test_the_unit_tests_mirror_the_package():
    beside = {"repository", "benchmarks"}
    assert folders(UNIT) - beside == folders(PACKAGE)
    for room in folders(UNIT):
        assert list((UNIT / room).glob("test_*.py")), f"tests/unit/{room} holds no test"


def test_a_package_says_in_one_line_what_it_is():
    for path in SOURCES:
        if path.name == "__init__.py":
            opening = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
            assert opening.endswith("."), f"{path}: no docstring that opens with a sentence"
            assert "\n" not in opening, f"{path}: its first sentence is longer than a line"


def test_files_are_short():
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_short():
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name}, {lines} lines"] if lines > FUNCTION_LINES else []
    assert long == []
