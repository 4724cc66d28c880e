"""What kind of answer a text is. Reads structure alone; expressions stay text.

What is not understood stays `Words`, which equals the same words and nothing else.
"""

import re

from verl_ext.evaluation.mathematics.spelling import closing
from verl_ext.evaluation.mathematics.units import unit_of
from verl_ext.evaluation.mathematics.values import (
    Based,
    Choice,
    Expression,
    Items,
    Joined,
    Matrix,
    Modular,
    Quantity,
    Ratio,
    Relation,
    Value,
    Words,
)

SIGNS = re.compile(r"\\approx|\\equiv|\\sim|\\le|\\ge|\\ne|\\in(?![a-z])|<=|>=|==|[<>=]")
SAME_SIGN = {"<=": "\\le", ">=": "\\ge", "==": "=", "\\equiv": "="}
PREFIX = re.compile(
    r'^(?:"?(?:the|our|so|thus|hence|final|correct|answer|ans|solution|result|option|choice|value|is|are|:|=|\s|"(?!\w))+'
    r'(?::|is\b|are\b)"?|"?(?:option|choice|answer|ans)\b"?)\s*"?',
    re.IGNORECASE,
)
NUMBER = r"(?:\d+\.?\d*|\.\d+)"
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:[, ]\d{3})+(?![\d,])(?! \d)")
# The unit is text, or a bare word of at least two letters, behind something that can be a number.
WITH_UNIT = re.compile(
    r'(.*[0-9})!]|.*\\pi|[a-z])\s*((?:"[^"]+"|[%°¤€]|(?<=[\d }])(?:[A-Za-z]{2,}(?![A-Za-z])|[kc]?m/[sh](?![a-z])))'
    r'(?:\^\{-?\d\}|[/ ]|\\cdot|"[^"]+"|[A-Za-z]{2,}(?![A-Za-z]))*)'
)
UNIT_FRACTION = re.compile(r'(?<=\d)\\frac\{"([^"]+)"\}\{"([^"]+)"(\^\{\d\})?\}$')
TIMES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
MANY = re.compile(rf'({NUMBER})"?({"|".join(TIMES)})"?((?:".*)?)')
WHOLE_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)


def read_value(text: str) -> Value:
    """The value that `text` (one_spelling's) is."""
    text = stripped(text)
    if not text:
        return Words("")
    if match := re.fullmatch(r"\(?(\d[0-9A-Fa-f]*)\)?_\{(\d+)\}", text):
        return Based(match[1].upper().lstrip("0") or "0", match[2])
    if match := re.fullmatch(r"(.+?)\(?\s*\\p?mod\s*\{?([^{}()]+)\}?\)?|(.+?)\(\\bmod\{?([^{}()]+)\}?\)", text):
        value = read_value(match[1] or match[3])
        if isinstance(value, Relation) and value.signs == ("=",):
            value = read_value(value.sides[1])
        return Modular(value, match[2] or match[4])
    choice = re.fullmatch(r'"?\(?([A-J])(?:[).:]"?\s*((?![+\-*/^_=<>!,.]).*)|\)?"?)', text, re.DOTALL)
    if choice and not re.search(r"[∧∨]|\([A-J]\)|\b[A-J](?:[.):]|$)", choice[2] or ""):
        return Choice(choice[1], (choice[2] or "").strip('" '))
    if match := WHOLE_MATRIX.fullmatch(text):
        return matrix(match[1], match[2]) or Words(text)
    return several(text) or joined(text) or relation(text) or bracketed(text) or single(text)


def stripped(text: str) -> str:
    """Without what ends or begins a sentence, and without braces around all of it."""
    before = None
    while before != text:
        before = text
        text = PREFIX.sub("", text.strip()).strip(" ;:").removeprefix("\\approx").removeprefix("\\sim")
        text = text.rstrip(".,") if not text.endswith("...") else text
        text = text.removeprefix("=").strip()
        if text.startswith("{") and closing(text, 0) == len(text) - 1 and not text.endswith("\\}"):
            text = text[1:-1]
        if re.fullmatch(r'"[^"]*"', text) and not re.search(r"[A-Za-z]{2}", text):
            text = text.strip('"')
    return text


def top_level(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """`text` cut where `separator` stands outside all brackets and quotes; the pieces, and the separators between."""
    pieces, found, start, position, depth, quoted = [], list[str](), 0, 0, 0, False
    while position < len(text):
        c = text[position]
        quoted ^= c == '"'
        if not quoted:
            if c == "\\" and not separator.match(text, position) and text[position + 1 : position + 2] not in "{}":
                position += 2
                continue
            depth += (c in "([{") - (c in ")]}")
            if depth <= 0 and (match := separator.match(text, position)):
                pieces.append(text[start:position])
                found.append(match[0])
                start = position = match.end()
                continue
        position += 1
    return [*pieces, text[start:]], found


def several(text: str) -> Value | None:
    """A list by commas, semicolons, `and` and `or`; None if it is one value."""
    text = grouped(text)
    pieces, signs = top_level(text, re.compile(r"[,;∧∨]"))
    if len(pieces) == 1:
        return plus_minus(text)
    words = {sign for sign in signs if sign in "∧∨"}
    values = [read_value(piece) for piece in pieces if stripped(piece)]
    if len(values) == 1:
        return values[0]
    if any(isinstance(value, Relation | Joined) and not is_equation(value) for value in values):
        return Joined("|" if words == {"∨"} else "&", tuple(values)) if len(words) == 1 else Words(text)
    names = {value.sides[0] for value in values if isinstance(value, Relation)}
    if len(names) > 1 and "∨" in words:
        return Words(text)
    flat = [each for v in values for each in (v.values if isinstance(v, Items) and v.kind == "list" else (v,))]
    # x=1,2 is x=1 and x=2
    if isinstance(flat[0], Relation) and len(names) == 1 and not isinstance(flat[-1], Relation):
        flat = [read_value(v.sides[-1]) if isinstance(v, Relation) and len(v.sides) == 2 else v for v in flat]
    return Items("list", tuple(flat))


def grouped(text: str) -> str:
    """`1,234` outside brackets as 1234. Groups that could as well be a list of three-digit numbers stay one."""

    def number(match: re.Match[str]) -> str:
        groups = re.split("[, ]", match[0])
        depth = sum((c in "([") - (c in ")]") for c in text[: match.start()])
        if depth or (len(groups) > 2 and all(len(g) == 3 and g[0] != "0" for g in groups)):
            return match[0]
        return "".join(groups)

    return GROUPED.sub(number, text)


def plus_minus(text: str) -> Value | None:
    if not re.search(r"\\(?:pm|mp)(?![a-z])", text) or SIGNS.search(text):
        return None
    if len(re.findall(r"\\pm(?![a-z])", text)) > 1:
        return Words(text)
    return Items("list", tuple(read_value(signed(text, sign)) for sign in "+-"))


def signed(text: str, sign: str) -> str:
    other = "-" if sign == "+" else "+"
    text = re.sub(r"\\mp(?![a-z])\s*", other, re.sub(r"\\pm(?![a-z])\s*", sign, text))
    return text.removeprefix("+")


def is_equation(value: Value) -> bool:
    return isinstance(value, Relation) and set(value.signs) <= {"=", "\\approx", "\\in"}


def joined(text: str) -> Value | None:
    """Unions, intersections and differences of sets."""
    for command, sign in (
        (r"\\cup(?![a-z])", "|"),
        (r"\\cap(?![a-z])", "&"),
        (r"\\(?:setminus|backslash)(?![a-z])", "-"),
    ):
        pieces, _ = top_level(text, re.compile(command))
        if len(pieces) > 1 and not SIGNS.search(pieces[0]):
            return Joined(sign, tuple(read_value(piece) for piece in pieces))
    return None


def relation(text: str) -> Value | None:
    sides, signs = top_level(text, SIGNS)
    if len(sides) < 2:
        return None
    sides = [side.strip() for side in sides]
    if not all(sides):
        return Words(text)
    signs = [SAME_SIGN.get(sign, sign) for sign in signs]
    if signs == ["\\in"]:
        inside = read_value(sides[1])
        return inside if isinstance(inside, Items | Joined | Expression) else Words(text)
    if re.search(r"\\pm(?![a-z])", text):
        if signs != ["="] or "\\pm" in sides[0]:
            return Words(text)
        return read_value(sides[1]) if is_name(sides[0]) else Words(text)
    if (
        set(signs) == {"="}
        and len(sides) == 2
        and (word := read_value(sides[1]))
        and isinstance(word, Words)
        and '"' in word.text
    ):
        return Words(text)
    return Relation(tuple(sides), tuple(signs))


def is_name(side: str) -> bool:
    """Whether a value can be assigned to it: `x`, `a_{1}`, `f(n)`, `AB`, `\\angle A`, `(x;y)`, `"Area"`."""
    name = r"(?:\\(?!pi|infty)[A-Za-z]+\s*)?[A-Za-z]*'*(?:_\{\w+\}|_\w)?'*"
    call = rf"{name}(?:\^\{{-1\}})?(?:\((?:[A-Za-z0-9]|\\[a-z]+)(?:[,;][A-Za-z])*\))?|P\([^()]*\)"
    side = re.sub(r"\\overline\{(\w+)\}|\|(\w+)\|", r"\1\2", side)
    if side in ("e", "i") or not side:
        return False
    return bool(
        re.fullmatch(call, side)
        or re.fullmatch(r'"[A-Za-z ]+"(?:_\{\w+\})?', side)
        or re.fullmatch(r"\([A-Za-z](?:[,;][A-Za-z])+\)", side)
    )


def bracketed(text: str) -> Value | None:
    """What brackets around all of it make: a set, a pair, an interval, or the value itself."""
    body = text.replace("\\langle", "(").replace("\\rangle", ")").replace("\\{", "{").replace("\\}", "}")
    is_set = text.startswith("\\{") and text.endswith("\\}")
    if not (is_set or (body[0] in "([" and body[-1] in ")]")) or closing(body, 0) != len(body) - 1:
        return None
    inside = body[1:-1]
    if is_set:
        if not inside.strip():
            return Expression("\\emptyset")
        condition, _ = top_level(inside, re.compile(r":|\\mid(?![a-z])|\|"))
        if len(condition) == 2 and is_name(re.sub(r"\\in\s*\\mathbb\{R\}", "", condition[0]).strip()):
            return read_value(condition[1])
    pieces, _ = top_level(inside, re.compile(r"[,;]"))
    if len(pieces) == 1 and not is_set:
        return read_value(inside) if not re.search(r"[a-z]\($|!", text) else None
    values = tuple(read_value(piece) for piece in pieces)
    return Items("set" if is_set else body[0] + body[-1], values)


def matrix(kind: str, body: str) -> Matrix | None:
    if kind[0] in "vV":
        return None
    body = re.sub(r"\\hline", "", body)
    rows = [tuple(read_value(cell) for cell in row.split("&")) for row in body.split("\\\\") if row.strip()]
    return Matrix(tuple(rows)) if len({len(row) for row in rows}) == 1 else None


def single(text: str) -> Value:
    """A number with or without a unit, a ratio, a word, or an expression."""
    text = grouped(text)
    if re.fullmatch(rf"{NUMBER}(?::{NUMBER})+", text):
        return Ratio(tuple(text.split(":")))
    if match := re.fullmatch(rf'({NUMBER})"?to"?({NUMBER})', text.replace(" ", "")):
        return Ratio((match[1], match[2]))
    if text[0] in "¤€£" and (unit := unit_of(text[0])) and '"' not in text:
        return Quantity(read_value(text[1:]), unit)
    if text[:2] in ("-¤", "-€", "-£") and (unit := unit_of(text[1])):
        return Quantity(read_value("-" + text[2:]), unit)
    if match := MANY.fullmatch(text):
        return read_value(f"{match[1]}\\cdot{TIMES[match[2]]}{match[3]}")
    text = UNIT_FRACTION.sub(r'"\1/\2"\3', text)
    match = WITH_UNIT.fullmatch(text)
    inside = match and match[2] == "°" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", match[1])  # \sin 30°
    if match and not inside and (unit := unit_of(match[2], one=match[1] == "1")):
        return Quantity(read_value(match[1]), unit)
    is_words = '"' in text or re.fullmatch(r"[A-Za-z]{2,}|[A-Za-z][A-Za-z .']*[A-Za-z]", text)
    return Words(text) if is_words else Expression(text)
