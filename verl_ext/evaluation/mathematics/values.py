"""The kinds of answers: a number, a list, an interval, a word. Expressions are LaTeX still."""

from dataclasses import dataclass

from verl_ext.evaluation.mathematics.units import Unit


@dataclass(frozen=True)
class Words:
    """Text that is compared as text: a word, a name, or what was not understood."""

    text: str


@dataclass(frozen=True)
class Choice:
    """The letter of a choice, with the text behind it (`E. text`); "" where there is none."""

    letter: str
    text: str


@dataclass(frozen=True)
class Expression:
    """LaTeX of one expression, for the parser."""

    latex: str


@dataclass(frozen=True)
class Quantity:
    number: "Value"
    unit: Unit


@dataclass(frozen=True)
class Based:
    """Digits in a base that is written behind them: `101_2`."""

    digits: str
    base: str


@dataclass(frozen=True)
class Ratio:
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Modular:
    """`3 \\pmod 5`."""

    value: "Value"
    modulus: str


@dataclass(frozen=True)
class Items:
    """Several values. `kind`: `list`, `set`, or the brackets around them, such as `()` and `[)`, where order counts."""

    kind: str
    values: tuple["Value", ...]


@dataclass(frozen=True)
class Relation:
    """Sides with the signs between them: `1<x<2` has three sides."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """Sets or relations joined: `|` either, `&` both, `-` the first without the others."""

    sign: str
    values: tuple["Value", ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple["Value", ...], ...]


Value = Words | Choice | Expression | Quantity | Based | Ratio | Modular | Items | Relation | Joined | Matrix
