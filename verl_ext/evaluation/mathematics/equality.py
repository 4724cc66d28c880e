"""Whether two answers are the same, kind by kind. What cannot be compared is different."""

from fractions import Fraction

import sympy

from verl_ext.evaluation.mathematics.expressions import Unreadable, expression, points, same_expression
from verl_ext.evaluation.mathematics.reading import is_equation, is_name, read_value
from verl_ext.evaluation.mathematics.sets import SETS, as_set, number, pieces, same_pieces, variables
from verl_ext.evaluation.mathematics.spelling import one_spelling
from verl_ext.evaluation.mathematics.units import Unit
from verl_ext.evaluation.mathematics.values import (
    Based,
    Choice,
    Expression,
    Items,
    Matrix,
    Modular,
    Quantity,
    Ratio,
    Relation,
    Value,
    Words,
)
from verl_ext.evaluation.mathematics.words import NUMBERS, folded

FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
DEGREE, RADIAN, PERCENT = (("degree", 1),), (("radian", 1),), (("percent", 1),)


def same_answer(answer: str, truth: str) -> bool:
    """Whether `answer` is `truth`, both as somebody wrote them. Any error means that it cannot be said to be."""
    return same(read_value(one_spelling(answer)), read_value(one_spelling(truth)))


def same(one: Value, other: Value) -> bool:
    try:
        return compare(one, other)
    except (Unreadable, NotImplementedError):  # the latter is what sympy raises where it cannot decide
        return False


def compare(one: Value, other: Value) -> bool:
    if one == other:
        return one != Words("")
    for this, that in ((one, other), (other, one)):
        if isinstance(this, Relation) and not isinstance(that, Relation) and is_equation(this):
            value = assigned(this)
            return value is not None and compare(value, that)
        if isinstance(this, Quantity):
            return same_quantity(this, that)
        if isinstance(this, Modular):
            return same_remainder(this, that)
    if isinstance(one, Relation) and isinstance(other, Relation) and is_equation(one) and is_equation(other):
        return same_equation(one, other)
    if isinstance(one, Items) and isinstance(other, Items):
        return same_items(one, other)
    for this, that in ((one, other), (other, one)):
        if isinstance(this, Items) and this.kind == "set" and len(this.values) == 1 and isinstance(that, Expression):
            if that.latex in SETS:
                return False
            return isinstance(this.values[0], Expression) and compare(this.values[0], that)
    if isinstance(one, Expression) and isinstance(other, Expression) and not {one.latex, other.latex} & set(SETS):
        return same_letters(one, other) or same_formula(one.latex, other.latex)
    return same_plain(one, other)


def same_plain(one: Value, other: Value) -> bool:
    """Kinds that are compared with their own kind only; sets, however they are written."""
    if isinstance(one, Matrix) and isinstance(other, Matrix):
        return len(one.rows) == len(other.rows) and all(
            len(mine) == len(theirs) and all(map(same, mine, theirs))
            for mine, theirs in zip(one.rows, other.rows, strict=True)
        )
    if isinstance(one, Ratio) and isinstance(other, Ratio):
        return same_ratio(one, other)
    if isinstance(one, Based) and isinstance(other, Based):
        return one == other
    if isinstance(one, Words | Choice | Expression) and isinstance(other, Words | Choice | Expression):
        return same_words(one, other) or same_sets(one, other)
    return same_sets(one, other)


def same_words(one: Value, other: Value) -> bool:
    if isinstance(one, Choice) and isinstance(other, Choice):
        return one.letter == other.letter and (not one.text or not other.text or folded(one.text) == folded(other.text))
    words = [each.text for each in (one, other) if isinstance(each, Words)]
    if len(words) == 2:
        return folded(words[0]) == folded(words[1]) != ""
    formulas = [each.latex for each in (one, other) if isinstance(each, Expression)]
    if not words or not formulas:
        return False
    if folded(words[0]) == folded(formulas[0]) != "":
        return True
    if folded(words[0]) in NUMBERS:
        return same_formula(formulas[0], str(NUMBERS[folded(words[0])]))
    # `xy` is a name, unless the other one says that it is a product: x\cdot y
    return words[0].isalpha() and len(words[0]) < 4 and same_formula(formulas[0], words[0])


def same_letters(one: Expression, other: Expression) -> bool:
    """`\\angle ABC` is `\\angle CBA`; x^2+c is x^2+C, the constant of an integral."""
    spelt = []
    for text in (one.latex, other.latex):
        for command in ("\\angle ", "\\widehat{", "\\overline{"):
            letters = text.removeprefix(command).rstrip("}")
            if text.startswith(command) and letters.isalpha() and letters.isupper():
                text = command + min(letters, letters[::-1])
        spelt.append(text)
    return spelt[0] == spelt[1]


def same_formula(one: str, other: str) -> bool:
    values = [expression(text) for text in (one, other)]
    constants = [value.free_symbols & {sympy.Symbol("C"), sympy.Symbol("c")} for value in values]
    if all(len(found) == 1 for found in constants) and constants[0] != constants[1]:
        rest = [value - next(iter(found)) for value, found in zip(values, constants, strict=True)]
        names = {str(symbol) for value in rest for symbol in value.free_symbols}
        return len(names) == 1 and names <= set("xyztu") and same_expression(*rest)
    return same_expression(*values)


def same_quantity(one: Quantity, other: Value) -> bool:
    """A unit that one of the two leaves out is taken for granted; units that differ are converted."""
    mine = number(one.number)
    size, base = one.unit
    factor = sympy.Rational(size.numerator, size.denominator)
    if base == DEGREE:
        factor = sympy.pi / 180
    if not isinstance(other, Quantity):
        theirs = number(other)
        return same_expression(mine, theirs) or (
            base in (DEGREE, PERCENT) and not one_is_a_degree(other) and same_expression(mine * factor, theirs)
        )
    theirs, (other_size, other_base) = number(other.number), other.unit
    if {base, other_base} == {DEGREE, RADIAN}:
        return same_expression(*(in_radians(n, u) for n, u in ((mine, one.unit), (theirs, other.unit))))
    return base == other_base and same_expression(
        mine * sympy.Rational(size.numerator, size.denominator),
        theirs * sympy.Rational(other_size.numerator, other_size.denominator),
    )


def one_is_a_degree(value: Value) -> bool:
    return isinstance(value, Expression) and "°" in value.latex


def in_radians(value: sympy.Expr, unit: Unit) -> sympy.Expr:
    return value * sympy.pi / 180 if unit[1] == DEGREE else value


def same_remainder(one: Modular, other: Value) -> bool:
    """The same class; a modulus that one of the two leaves out is taken for granted."""
    if not isinstance(other, Modular):
        if isinstance(other, Relation):
            return False
        return same(one.value, other)
    moduli = [expression(each.modulus) for each in (one, other)]
    if moduli[0] != moduli[1]:
        return False
    difference = number(one.value) - number(other.value)
    return bool(moduli[0].is_Integer and difference.is_Integer and difference % moduli[0] == 0)


def same_ratio(one: Ratio, other: Ratio) -> bool:
    """In proportion; two that could both be times of a day are compared as such."""
    if len(one.parts) != len(other.parts):
        return False
    if all(len(part) == 2 for each in (one, other) for part in each.parts[1:]):
        return [Fraction(part) for part in one.parts] == [Fraction(part) for part in other.parts]
    mine, theirs = ([Fraction(part) for part in each.parts] for each in (one, other))
    return all(a * theirs[0] == b * mine[0] for a, b in zip(mine, theirs, strict=True)) and bool(mine[0] and theirs[0])


def assigned(value: Relation) -> Value | None:
    """What `x=5`, `2+3=5`, `A=2\\pi r=6` or `\\pi\\approx 3.14` say; None where the sides do not agree."""
    sides, signs = value.sides, value.signs
    if is_name(sides[-1]) and not is_name(sides[0]):
        sides = tuple(reversed(sides))
    if signs[-1] == "\\approx":
        exact = sides[-2]
        if not is_name(exact):
            return read_value(exact) if rounds_to(exact, sides[-1]) else None
    if not is_name(sides[0]):
        values = [expression(side) for side in sides]
        return read_value(sides[-1]) if all(same_expression(values[0], each) for each in values[1:]) else None
    middle = [side for side in sides[1:-1] if not expression(side).free_symbols]
    if any(not same(read_value(side), read_value(sides[-1])) for side in middle):
        return None
    if any(expression(side).has(sympy.Symbol(sides[0])) for side in sides[1:-1]):
        return None
    return read_value(sides[-1])


def rounds_to(exact: str, rounded: str) -> bool:
    places = len(rounded.partition(".")[2])
    return bool(abs(expression(exact) - expression(rounded)) <= sympy.Rational(1, 2 * 10**places))


def same_equation(one: Relation, other: Relation) -> bool:
    """The same name with the same value, or two equations each of which is a multiple of the other."""
    if is_name(one.sides[0]) and one.sides[0] == other.sides[0]:
        mine, theirs = assigned(one), assigned(other)
        if mine is None or theirs is None or same(mine, theirs):
            return mine is not None and theirs is not None
    if len(one.sides) != 2 or len(other.sides) != 2 or {*one.signs, *other.signs} != {"="}:
        return False
    return proportional(one, other) is not None


def proportional(one: Relation, other: Relation) -> sympy.Expr | None:
    """The constant by which the differences of the two's sides differ; None if by no constant."""
    mine, theirs = (expression(each.sides[0]) - expression(each.sides[1]) for each in (one, other))
    mine, theirs = sympy.expand(mine), sympy.expand(theirs)
    if not mine.free_symbols or mine.free_symbols != theirs.free_symbols:
        return None
    point = points(sorted(mine.free_symbols, key=str), (1,))[0]
    at_point = [each.xreplace(point) for each in (mine, theirs)]
    if 0 in at_point:
        return None
    ratio = at_point[0] / at_point[1]
    return ratio if same_expression(mine, theirs * ratio) else None


def same_items(one: Items, other: Items) -> bool:
    ordered = [each.kind not in ("list", "set") for each in (one, other)]
    if all(ordered):
        if one.kind != other.kind or len(one.values) != len(other.values):
            return False
        return all(map(same, one.values, other.values))
    if any(ordered):
        pair, items = (one, other) if ordered[0] else (other, one)
        named = by_name(items)
        return pair.kind == "()" and named is not None and same_items(pair, Items("()", named))
    names = [by_name(each) for each in (one, other)]
    if (names[0] is None) != (names[1] is None):  # x=3,y=2 is 3,2 in this order
        mine, theirs = (named or each.values for named, each in zip(names, (one, other), strict=True))
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    mine, theirs = list(one.values), list(other.values)
    if "set" in (one.kind, other.kind):
        mine, theirs = distinct(mine), distinct(theirs)
    return len(mine) == len(theirs) and matched(mine, theirs)


def by_name(items: Items) -> tuple[Value, ...] | None:
    """The values of `x=2,y=3` in the order of their names; None where not all have a name of their own."""
    named = {
        v.sides[0]: v for v in items.values if isinstance(v, Relation) and v.signs == ("=",) and is_name(v.sides[0])
    }
    if len(named) != len(items.values):
        return None
    return tuple(read_value(named[name].sides[1]) for name in sorted(named))


def matched(mine: list[Value], theirs: list[Value]) -> bool:
    """Whether every value of `mine` has one of its own in `theirs`."""
    left = list(theirs)
    for value in mine:
        found = next((n for n, candidate in enumerate(left) if same(value, candidate)), None)
        if found is None:
            return False
        del left[found]
    return True


def distinct(values: list[Value]) -> list[Value]:
    kept: list[Value] = []
    for value in values:
        if not any(same(value, each) for each in kept):
            kept.append(value)
    return kept


def same_sets(one: Value, other: Value) -> bool:
    """Inequalities, intervals and their unions as sets of real numbers; inequalities in several variables as such."""
    names = [variables(each) for each in (one, other)]
    if all(names) and names[0] != names[1]:
        return False
    if any(len(each) > 1 for each in names):
        return isinstance(one, Relation) and isinstance(other, Relation) and same_inequality(one, other)
    mine, theirs = as_set(one), as_set(other)
    return pieces(mine) is not None and same_pieces(mine, theirs)


def same_inequality(one: Relation, other: Relation) -> bool:
    if len(one.sides) != 2 or len(other.sides) != 2:
        return False
    ratio = proportional(one, other)
    if ratio is None or not ratio.is_real:
        return False
    return one.signs[0] == (other.signs[0] if ratio > 0 else FLIPPED.get(other.signs[0]))
