"""One spelling for an answer: what LaTeX, Unicode and habit write in many ways. Pure text, no value is read here.

Left are ASCII and a few signs of ours: `"cm"` is text, `°` a degree, `¤` a dollar, `∧` and `∨` the words and, or. A
comma with a space behind it becomes `;`, since it separates and never groups digits.
"""

import re
import unicodedata

SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\cdot ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ",
    "÷": "/", "⁄": "/", "∕": "/", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "∞": "\\infty ",
    "π": "\\pi ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "⌀": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ",
    "∈": "\\in ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}",
    "≈": "\\approx ", "≡": "\\equiv ", "∖": "\\setminus ", "√": "\\sqrt ", "∛": "\\sqrt[3]", "∠": "\\angle ",
    "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "λ": "\\lambda ",
    "μ": "\\mu ", "µ": "\\mu ", "σ": "\\sigma ", "φ": "\\phi ", "ϕ": "\\phi ", "ω": "\\omega ", "ρ": "\\rho ",
    "τ": "\\tau ", "ε": "\\epsilon ", "Δ": "\\Delta ", "Ω": "\\Omega ", "Σ": "\\Sigma ", "Φ": "\\Phi ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "º": "°", "˚": "°", "∘": "°", "′": "'", "’": "'", "…": "\\ldots ", "∣": "|",
    "∧": "\\land ", "∨": "\\lor ", "€": "€", "£": "£",
    "。": ".", "、": ", ", "“": "", "”": "", '"': "",
}  # fmt: skip

# Commands with the same meaning; an end of the word is added to each.
SAME = (
    (r"\\(?:left|right|middle|displaystyle|textstyle|limits|nolimits|therefore|strut|hfill|bm|it|bf|rm|sf|tt|em)", ""),
    (r"\\(?:bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr|mathopen|mathclose|mathstrut|normalsize|large|Large)", ""),
    (r"\\(?:d|t|c)frac", r"\\frac"),
    (r"\\(?:d|t)binom", r"\\binom"),
    (r"\\(?:leq|leqslant)", r"\\le "),
    (r"\\(?:geq|geqslant)", r"\\ge "),
    (r"\\neq", r"\\ne "),
    (r"\\lt", "<"),
    (r"\\gt", ">"),
    (r"\\(?:cdot|times|ast)", r"\\cdot "),
    (r"\\div", "/"),
    (r"\\(?:varnothing|O)", r"\\emptyset "),
    (r"\\(?:to|rightarrow|longrightarrow)", r"\\to "),
    (r"\\(?:lvert|rvert|vert)", "|"),
    (r"\\(?:lbrace)", r"\\{"),
    (r"\\(?:rbrace)", r"\\}"),
    (r"\\(?:degree|textdegree)", "°"),
    (r"\\(?:ldots|dots|cdots|dotsc)", r"\\ldots "),
    (r"\\(?:quad|qquad|enspace|thinspace|nobreakspace|space|hspace\{[^{}]*\}|phantom\{[^{}]*\})", " "),
    (r"\\(?:colon|ratio)", ":"),
    (r"\\(?:bar)", r"\\overline"),
    (r"\\(?:imath)", "i"),
    (r"\\(?:varphi)", r"\\phi "),
    (r"\\(?:varepsilon)", r"\\epsilon "),
    (r"\\(?:textdollar)", "¤"),
    (r"\\(?:euro)", "€"),
    (r"\\(?:pounds)", "£"),
    (r"\\(?:percent)", "%"),
)
SAME_SPELLING = tuple((re.compile(pattern + r"(?![A-Za-z])\s*"), new) for pattern, new in SAME)

BOLD = r"mathbf|boldsymbol|mathit|mathsf|mathtt|mathcal|pmb|underline|bm|boxed|fbox"
WORDS = r"text|textbf|textit|textrm|textsf|texttt|textnormal|textup|emph|mbox|hbox|mathrm|operatorname\*?"
FONT = re.compile(rf"\\(?:(?P<bold>{BOLD})|(?P<words>{WORDS}))\s*\{{(?P<inside>(?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")
LETTER, CHOICE = re.compile("[A-Za-z]"), re.compile(r"\s*\(?[A-J][).:]+\s*")
COUNTED = re.compile(r"\s*(-?\d[\d.,/]*)\s+(?!(?:and|or)\b)")
SEPARATOR = re.compile(r",?\s*\b(and|or)\b\s*|\s*([,;])\s*")
OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
COLOR = re.compile(r"\\(?:textcolor|color|colorbox)\s*(?:\[\w*\])?\{[^{}]*\}")
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp|sqrt|gcd|lcm"
BARE_FUNCTION = re.compile(
    rf"(?<![\\A-Za-z])({FUNCTIONS}|pi|infty|theta|emptyset|(?:sec|min|max)(?=\s*\())(?![A-Za-z])"
)


def one_spelling(text: str) -> str:
    """`text` in the spelling that this module's docstring describes."""
    text = ascii_signs(text).replace("\\\n", " ").replace("\n", " ").replace("\t", " ").strip()
    text = re.sub(r"^\s*####|\\+\s*$", "", text)
    text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text)
    text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text) if "\\begin" not in text else text
    text = text.replace("\\$", "¤").replace("$", "")
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\;|\\ |~|\\!|\\:|,\\!)(?=\d{3}(?!\d))", "", text)  # 1{,}234
    text = text.replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"(?<!\\)\\[,;:!> ]|~", " ", text)
    text = text.replace("\\'", "'").replace("\\_", "_").replace("\\&", "&") if "\\begin" not in text else text
    for pattern, new in SAME_SPELLING:
        text = pattern.sub(new, text)
    text = OVER.sub(r"\\frac{\1}{\2}", fonts(COLOR.sub("", text)))
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{?°\}?)", "°", text).replace("\\circ", "°")
    text = re.sub(r"(?<![A-Za-z\\\"])\s*\b(and|or)\b(?!\")", lambda m: "∧" if m[1] == "and" else "∨", text)
    text = BARE_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"\b(?:infinity|inf)\b", r"\\infty ", text)
    return spaces(arguments(text))


def ascii_signs(text: str) -> str:
    """Full-width and other digits, superscripts, fractions, signs; invisible characters go."""
    if text.isascii():
        return text.replace('"', "")
    text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: "^{" + "".join(compatible(c) for c in m[0]) + "}", text)
    text = re.sub(r"[₀-₉₊₋]+", lambda m: "_{" + "".join(compatible(c) for c in m[0]) + "}", text)
    return "".join(one_sign(c) for c in text)


def compatible(c: str) -> str:
    return unicodedata.normalize("NFKC", c).replace("−", "-")


def one_sign(c: str) -> str:
    if c in SIGNS:
        return SIGNS[c]
    if c.isascii():
        return c
    kind = unicodedata.category(c)
    if kind in ("Cf", "Mn"):
        return ""
    if kind == "Nd":
        return str(unicodedata.digit(c))
    if unicodedata.decomposition(c).startswith("<fraction>"):
        top, _, bottom = compatible(c).partition("⁄")
        return f" \\frac{{{top}}}{{{bottom}}}" if bottom else c
    same = compatible(c)
    return "".join(SIGNS.get(each, each) for each in same)


def fonts(text: str) -> str:
    """`\\text{cm}` becomes `"cm"`; bold and other letters lose their font; text without a word is no text."""

    def plain(match: re.Match[str]) -> str:
        inside = match["inside"]
        if match["bold"]:
            return "{" + inside + "}" if len(inside) > 1 else inside
        if re.fullmatch(r"[\s,]*(?:and|or)[\s,]*", inside):
            return "∧" if "and" in inside else "∨"
        if re.fullmatch(FUNCTIONS, inside.strip()):
            return "\\" + inside.strip() + " "
        if '"' in inside or "\\" in inside or not LETTER.search(inside) or CHOICE.fullmatch(inside):
            return " " + inside.replace('"', " ") + " "
        counted = COUNTED.match(inside)
        if counted:
            return f' {counted[1]} "{inside[counted.end() :].strip()}" '
        return SEPARATOR.sub(lambda m: f'" {m[1] or m[2]} "', f' "{inside.strip()}" ').replace('""', "")

    before = None
    while before != text:
        before, text = text, FONT.sub(plain, text)
    return re.sub(r'"\s+"', " ", text)


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes; -1 if nowhere. Any of `([{` closes any of `)]}`; `\\{` counts as one."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return -1


def closing_brace(text: str, start: int) -> int:
    """Where the brace at `start` closes, as TeX sees it: `\\{` is none. -1 if nowhere."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return -1


def arguments(text: str) -> str:
    """Braces around the arguments of `\\frac12`, `\\sqrt2`, `\\sqrt(2)`, `x^2`, `x^(1/2)`, `a_1`."""
    out, position = [], 0
    wanted = re.compile(r"\\frac(?![A-Za-z])|\\binom(?![A-Za-z])|\\sqrt(?![A-Za-z])|\*\*|\^|_")
    while match := wanted.search(text, position):
        out.append(text[position : match.start()] + match[0].replace("**", "^"))
        position = match.end()
        if match[0] == "\\sqrt" and (root := re.compile(r"\s*\[[^\[\]]*\]").match(text, position)):
            out.append(root[0].strip())
            position = root.end()
        for _ in range(2 if match[0] in ("\\frac", "\\binom") else 1):
            piece, position = argument(text, position, long=match[0] in ("^", "**", "_"))
            out.append(piece)
    return "".join(out) + text[position:]


def argument(text: str, position: int, long: bool) -> tuple[str, int]:
    """The argument at `position` in braces, and where it ends; `long`: a bare number is all of it, as in 2^10."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position < len(text) and text[position] in "{(":
        end = closing(text, position)
        if end > 0:
            return "{" + arguments(text[position + 1 : end]) + "}", end + 1
    one = re.compile(r"[+-]?\d+(?:/\d+)?(?!\d)|[A-Za-z]" if long else r"\d|[A-Za-z]").match(text, position)
    one = one or re.compile(r"\\[A-Za-z]+").match(text, position)
    if one is None:
        return "", position
    return "{" + one[0].split("/")[0] + "}", position + len(one[0].split("/")[0])


def spaces(text: str) -> str:
    """None but those between two digits, between letters of a word and behind a command."""
    text = re.sub(r",\s+", ";", text.strip())
    quoted = text.split('"')
    for number in range(0, len(quoted), 2):
        piece = re.sub(r"\s+", " ", quoted[number])
        piece = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", piece) if len(piece) > 1 else piece.strip()
        quoted[number] = re.sub(r"(?<=\\cdot) (?=[^A-Za-z])", "", piece)
    return '"'.join(quoted).strip()
