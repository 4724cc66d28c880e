"""Inequalities, intervals and their unions as sets of real numbers, and whether two are the same set."""

from itertools import pairwise

import sympy

from verl_ext.evaluation.mathematics.expressions import Unreadable, expression, same_expression
from verl_ext.evaluation.mathematics.values import Expression, Items, Joined, Relation, Value, Words
from verl_ext.evaluation.mathematics.words import folded

RELATIONS = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne}
SETS = {
    "\\emptyset": sympy.S.EmptySet,
    "\\mathbb{R}": sympy.S.Reals,
    "(-\\infty,\\infty)": sympy.S.Reals,
}


def number(value: Value) -> sympy.Expr:
    if not isinstance(value, Expression):
        raise Unreadable(str(value))
    return expression(value.latex)


def variables(value: Value) -> frozenset[sympy.Basic]:
    """Those of the relations in it; none for an interval."""
    if isinstance(value, Relation):
        return frozenset(symbol for side in value.sides for symbol in expression(side).free_symbols)
    if isinstance(value, Joined):
        return frozenset(symbol for each in value.values for symbol in variables(each))
    return frozenset()


def as_set(value: Value) -> sympy.Set:
    """Raises Unreadable if it is no set of real numbers."""
    if isinstance(value, Words) and folded(value.text) in ("allrealnumbers", "allreals"):
        return sympy.S.Reals
    if isinstance(value, Expression) and value.latex in SETS:
        return SETS[value.latex]
    if isinstance(value, Relation):
        return solutions(value)
    if isinstance(value, Items) and value.kind in ("()", "[]", "(]", "[)") and len(value.values) == 2:
        ends = [number(each) for each in value.values]
        if not all(end.is_extended_real for end in ends) or not ends[0] < ends[1]:
            raise Unreadable(str(value))
        return sympy.Interval(ends[0], ends[1], value.kind[0] == "(", value.kind[1] == ")")
    if isinstance(value, Items) and value.kind == "set":
        return sympy.FiniteSet(*(number(each) for each in value.values))
    if isinstance(value, Joined):
        sets = [as_set(each) for each in value.values]
        if value.sign == "-":
            return sympy.Complement(sets[0], sympy.Union(*sets[1:]))
        return sympy.Union(*sets) if value.sign == "|" else sympy.Intersection(*sets)
    raise Unreadable(str(value))


def solutions(value: Relation) -> sympy.Set:
    """The real numbers for which an inequality in one variable holds."""
    names = variables(value)
    if len(names) != 1 or not set(value.signs) <= set(RELATIONS):
        raise Unreadable(str(value))
    x = sympy.Symbol("x", real=True)
    sides = [expression(side).xreplace({next(iter(names)): x}) for side in value.sides]
    found: sympy.Set = sympy.S.Reals
    for sign, (left, right) in zip(value.signs, pairwise(sides), strict=True):
        condition = RELATIONS[sign](left, right)
        if condition in (sympy.true, sympy.false):
            raise Unreadable(str(value))
        found = found.intersect(half_line(sign, sympy.Add(left, -right), x) or condition.as_set())
    return found


def half_line(sign: str, difference: sympy.Expr, x: sympy.Symbol) -> sympy.Set | None:
    """Where a*x + b compares to 0; None for another difference. sympy takes a second for it."""
    slope = difference.diff(x)
    if slope.free_symbols or not slope.is_real or slope.is_zero:
        return None
    end = -difference.subs(x, 0) / slope
    if not end.is_finite or sign == "\\ne":
        return None
    if (sign in (">", "\\ge")) == bool(slope > 0):
        return sympy.Interval(end, sympy.oo, sign in "<>", True)
    return sympy.Interval(-sympy.oo, end, True, sign in "<>")


def pieces(value: sympy.Set) -> list[tuple[sympy.Expr, sympy.Expr, bool, bool]] | None:
    """Intervals and points from left to right: start, end, whether each is left out. None for another kind of set."""
    found = []
    if value is sympy.S.EmptySet:
        return []
    for part in value.args if isinstance(value, sympy.Union) else (value,):
        if part is sympy.S.Reals:
            part = sympy.Interval(-sympy.oo, sympy.oo)
        if isinstance(part, sympy.Interval):
            found.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            found += [(each, each, False, False) for each in part.args]
        else:
            return None
    return sorted(found, key=lambda piece: float(piece[0]))


def same_pieces(one: sympy.Set, other: sympy.Set) -> bool:
    mine, theirs = pieces(one), pieces(other)
    if mine is None or theirs is None or len(mine) != len(theirs):
        return False
    return all(
        a[2:] == b[2:] and same_expression(a[0], b[0]) and same_expression(a[1], b[1])
        for a, b in zip(mine, theirs, strict=True)
    )
