"""LaTeX of one expression to sympy by latex2sympy2_extended, and whether two expressions have the same value.

Only what the parser is known to read is handed to it: a command or a spelling that it would drop or take for another is
refused before. Decimals are exact fractions. Values are compared exactly where they are rational, else to 50 digits
relative to their size, with variables at random real points.
"""

import random
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy.core.function import AppliedUndef

CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
COMMAND = re.compile(
    "frac|sqrt|binom|cdot|pi|infty|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|lfloor|rfloor|"
    "lceil|rceil|max|min|gcd|lcm|sum|prod|lim|int|to|alpha|beta|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|"
    "rho|sigma|tau|upsilon|phi|chi|psi|omega|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|Gamma|gamma"
)
NUMERAL = re.compile(r"\d+\.\d*|\.\d+")
REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
MIXED = re.compile(r"(?<![\d.^_A-Za-z{}/])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}|(?<![\d.^_A-Za-z}/])(\d+) (\d+)/(\d+)(?!\d)")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\d])(\d+\.?\d*|\.\d+) ?[eE]([+-]?\d+)(?![\dA-Za-z.])")
DIGITS = 50
POINTS = 6
KINKED = (sympy.Abs, sympy.Max, sympy.Min, sympy.floor, sympy.ceiling)
GROWING = (sympy.exp, sympy.factorial, sympy.gamma, sympy.binomial)
LARGEST = 300_000
"""Digits of a number that is worked out; one with more is compared with nothing."""


class Unreadable(Exception):
    """The text is no expression that can be compared."""


def readable(latex: str) -> str:
    """`latex` as the parser wants it.

    Raises:
        Unreadable: if it holds what the parser does not know or would read as something else.
    """
    text = re.sub(r"(?<=\d) ?x ?(?=10\^)", r"\\cdot ", latex)
    text = SCIENTIFIC.sub(lambda match: f"{match[1]}\\cdot10^{{{int(match[2])}}}", text)
    text = REPEATING.sub(repeating, text)
    text = MIXED.sub(mixed, text)
    text = re.sub(r"\\sqrt\[([3579])\]\{-(\d+)\}", r"(-\\sqrt[\1]{\2})", text)  # real, unlike (-8)^{1/3}
    text = NUMERAL.sub(lambda match: f"({fraction(Fraction(match[0] if match[0] != '.' else '0'))})", text)
    text = text.replace("*", "\\cdot ").replace("°", "\\cdot\\frac{\\pi}{180}").replace("\\lg", "\\log_{10}")
    text = re.sub(r"\\(gamma|Gamma)(?![A-Za-z(])", r"q_{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z_{])[A-Z]{2,}(?![A-Za-z])", lambda match: f"q_{{{match[0]}}}", text)
    unknown = not all(map(COMMAND.fullmatch, re.findall(r"\\([A-Za-z]+|.)", text)))
    if unknown or re.search(r"[^\\A-Za-z0-9+\-/^_(){}\[\]|!=,; ]", text):
        raise Unreadable(latex)
    # 1 2 is no 12; \frac{1}{2}3 and 1/2x can be read in two ways; n!! is no (n!)!; {x} and [x] may round.
    unambiguous = re.sub(r"\\log_\{\w+\}", "", text)
    if re.search(
        r"\d \d|[})]\d|/\d+\s*[A-Za-z\\(]|!!|(?<![\d.])0\d|--|\+\+|\+-|-\+|\d\.|\^\{\}|(?<![\\A-Za-z])[A-Za-z]{5,}",
        unambiguous,
    ):
        raise Unreadable(latex)
    if re.search(r"/\s*[A-Za-z]\s*[A-Za-z(\\]", text) or re.search(r"(?<!\\sqrt)\[", text):
        raise Unreadable(latex)
    return text


def fraction(value: Fraction) -> str:
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match[1] or "0", match[2], match[3]
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return f"({fraction(Fraction(f'{whole}.{fixed}0') + tail)})"


def mixed(match: re.Match[str]) -> str:
    whole, top, bottom = (int(each) for each in match.groups() if each is not None)
    if not 0 < top < bottom:
        raise Unreadable(match[0])  # 2\frac{3}{2}: a sum or a product?
    return f"({fraction(whole + Fraction(top, bottom))})"


@cache
def expression(latex: str) -> sympy.Expr:
    """The value of `latex`, worked out.

    Raises:
        Unreadable: if it is none, or is too large.
    """
    text = readable(latex)
    try:
        parsed = latex2sympy(text, normalization_config=None, conversion_config=CONVERSION)
    except Exception as error:  # the parser raises Exception itself
        raise Unreadable(f"{latex}: {error}") from None
    if not isinstance(parsed, sympy.Expr):
        raise Unreadable(latex)
    if not parsed.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit):
        parsed = parsed.xreplace({sympy.Symbol("i"): sympy.I})
    parsed = parsed.xreplace({each: sympy.Symbol(f"call {each}") for each in parsed.atoms(AppliedUndef)})
    if digits(parsed) > LARGEST or tower(parsed) > 2:
        raise Unreadable(latex)
    value = sympy.sympify(parsed.doit())
    if not isinstance(value, sympy.Expr) or value.has(sympy.nan, sympy.zoo):
        raise Unreadable(latex)
    return value


def digits(value: sympy.Basic) -> float:
    """A bound on the decimal digits of what working `value` out makes; inf where that cannot be said."""
    if isinstance(value, sympy.Integer):
        return value.p.bit_length() * 0.302
    if isinstance(value, sympy.Rational):
        return (value.p.bit_length() + value.q.bit_length()) * 0.302
    below = [digits(argument) for argument in value.args]
    if isinstance(value, sympy.Pow):
        if value.exp.free_symbols or (not value.exp.args and not value.exp.is_Number):
            return max(below)
        return max(below[0], 1) * 10 ** min(below[1], 8) if below[1] >= 1 else max(below[0], 1) * 10
    if isinstance(value, sympy.factorial | sympy.gamma | sympy.binomial):
        return 10 ** min(below[0], 8) * max(below[0], 1)
    if isinstance(value, sympy.exp):
        return max(below[0], 10 ** (below[0] - 3))
    return sum(below)


def tower(value: sympy.Basic) -> int:
    """How many powers with a variable in the exponent stand on each other: 2 for 2^{2^x}."""
    if isinstance(value, sympy.Pow | sympy.exp) and value.args[-1].free_symbols:
        return 1 + tower(value.args[-1])
    return max(map(tower, value.args), default=0)


def same_expression(one: sympy.Expr, other: sympy.Expr) -> bool:
    """Whether both are the same for every real value of their variables."""
    if one == other:
        return True
    if one.has(sympy.oo, -sympy.oo) or other.has(sympy.oo, -sympy.oo):
        return False
    if one.is_Rational and other.is_Rational:
        return False
    if one.is_zero or other.is_zero:
        return bool((one - other).equals(0))
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    compared = 0
    for point in points(symbols, scales(one, other)):
        values = [sympy.N(each.xreplace(point), DIGITS + 10) for each in (one, other)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        if not close(*values):
            return False
        compared += 1
    return compared >= (POINTS // 2 if symbols else 1)


def close(one: sympy.Expr, other: sympy.Expr) -> bool:
    size = max(abs(one), abs(other))
    return bool(abs(one - other) <= size * sympy.Float(10, DIGITS) ** -DIGITS)


def scales(one: sympy.Expr, other: sympy.Expr) -> tuple[int, ...]:
    """How far from 0 to look: |x+9| is x+9 near it. Not far where something grows like 2^x."""
    powers = [power for each in (one, other) for power in each.atoms(sympy.Pow)]
    if not (
        any(each.has(*KINKED) for each in (one, other))
        or any(power.exp.is_Rational and not power.exp.is_Integer for power in powers)
    ):
        return (1,)
    grows = any(each.has(*GROWING) for each in (one, other)) or any(power.exp.free_symbols for power in powers)
    return (1, 10, 100) if grows else (1, 100, 10**4, 10**8)


def points(symbols: Sequence[sympy.Basic], sizes: Sequence[int]) -> list[dict[sympy.Basic, sympy.Basic]]:
    """Rational points, the same ones each time, positive and negative, of each of `sizes`; of several, whole ones too.

    z and w are complex: |z|^2 is not z^2.
    """
    if not symbols:
        return [{}]
    draw = random.Random(0)

    def coordinate(size: int) -> sympy.Expr:
        return sympy.Rational(draw.randint(1000, 40000), 9973) * draw.choice((1, -1)) * size

    chosen: list[dict[sympy.Basic, sympy.Basic]] = []
    for sign in (1, -1) if len(sizes) > 1 else ():
        chosen.append({s: sympy.Integer(sign * (number + 2)) for number, s in enumerate(symbols)})
    for size in sizes:
        for _ in range(POINTS):
            imaginary = {s: sympy.I * coordinate(size) if str(s) in ("z", "w") else sympy.S.Zero for s in symbols}
            chosen.append({s: coordinate(size) + imaginary[s] for s in symbols})
    return chosen
