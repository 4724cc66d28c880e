"""What the source says about each field of a settings dataclass, so that `--help` cannot drift from it."""

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any, get_type_hints

ENTRY = re.compile(r"^(\w+): (.*)$")


def field_docs(settings: type) -> dict[str, str]:
    """Field -> text: the string below the field, or `name: text` in the class's docstring; a base class's too."""
    docs: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        if is_dataclass(cls):
            docs |= _of_docstring(cls) | _below_fields(cls)
    return docs


def nested(settings: type, name: str) -> Any:
    """The dataclass of a field that holds one, else None."""
    kind = get_type_hints(settings).get(name)
    return kind if is_dataclass(kind) else None


def doc_of(settings: type, key: str) -> str:
    """The text of a dotted key below a dataclass; KeyError where there is none."""
    name, _, rest = key.partition(".")
    return doc_of(nested(settings, name), rest) if rest else field_docs(settings)[name]


def _of_docstring(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    names = get_type_hints(cls)
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        entry = ENTRY.match(line)
        if entry and entry[1] in names:
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.startswith(" "):
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return found


def _below_fields(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
