"""What of an answer is looked at, and how: thinking left out, markup taken off, characters made alike."""

import html
import json
import re
import unicodedata

LEVELS = ("as written", "compatible characters", "any case", "any joint")
"""`any joint`: a hyphen, a space, an underscore or nothing between two words, and `not x` for the label `non-x`."""

_TAGS = re.compile(r"[<\[◁](/?)(?:seed:)?(?:think|thinking|thought|reasoning|scratchpad)[>\]▷]", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")

_INVISIBLE = re.compile("[\ufeff\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f]")
_AMPERSAND = re.compile(r"\s*&\s*")
_SPACES = re.compile(r"[^\S\n]+")
_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u2019\u2018\u201b`\u00b4", "'")
    | dict.fromkeys("“”„‟«»", '"')
    | {"\uff1a": ":", "♯": "#"}
)

_MARKER = re.compile(
    r"final[\s_]+answer[*_`'\"\])]*(?:\s*\([^)\n]{0,40}\))?(?:\s+(?:for|to|of)\b[^:\n]{0,60})?[*_`'\"\])]*"
    r"(?:\s*[:\uff1a\ufe55=→]|[ ]+(?:is|would\ be)\b\s*:?|[ ]*\n|\s*[-=\u2013—]+>|\s+[-\u2013—](?=\s))",
    re.IGNORECASE,
)
_BARE_MARKER = re.compile(r"^\W*final[\s_]+answer\b(?!s)", re.IGNORECASE | re.MULTILINE)

_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_LATEX = re.compile(r"\\(?:boxed|fbox|text\w*|math(?:rm|bf|it|sf|tt)|emph)\s*\{((?:[^{}\\]|\\.)*)\}")
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MATH = re.compile(r"\\[()\[\]]|\$\$?((?:[^$\n\\]|\\.)+)\$\$?")
_ESCAPED = re.compile(r"\\([_*#%&$+.!~`-])")
_SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>", re.IGNORECASE)
_HTML = re.compile(r"</?(?:b|i|u|p|em|strong|code|pre|span|div|br|h\d|mark|final_answer|answer|label)\b[^<>]*>", re.I)
_TICKED, _NOT_TICKED = re.compile(r"\[[xX✓✔]\] *|[☑☒✅] *"), re.compile(r"^.*(?:\[ \]|☐).*\n?", re.MULTILINE)
_XML = re.compile(r"<(\w[\w-]*)>([^<>]*)</\1>")
_ANGLES = re.compile(r"<([^<>/\n]{1,60})>")


def without_thinking(answer: str) -> str:
    """What a model says behind its thinking; nothing of a block that is not closed."""
    channels = list(_CHANNEL.finditer(answer))
    if channels:
        final = [match for match in channels if match[1] == "final"]
        return answer[final[-1].end() :] if final else ""
    kept, position, inside = [], 0, False
    for tag in _TAGS.finditer(answer):
        closes = bool(tag[1])
        if closes and not inside:  # opened in the prompt
            kept = []
        elif not closes and not inside:
            kept.append(answer[position : tag.start()])
        inside = not closes
        position = tag.end()
    return " ".join(kept if inside else [*kept, answer[position:]])


def ticked(text: str) -> str:
    """Without the boxes of a list that are not ticked, where one is."""
    return _TICKED.sub("", _NOT_TICKED.sub("", text)) if _TICKED.search(text) and _NOT_TICKED.search(text) else text


def behind_marker(text: str) -> str | None:
    """What follows the last `Final Answer:`; None without one."""
    for marker in (_MARKER, _BARE_MARKER):
        if found := list(marker.finditer(text)):
            return text[found[-1].end() :]
    return None


def json_values(text: str) -> list[str] | None:
    """The texts and numbers right in the JSON object that a text is, fenced or not; None where it is none."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):  # a model may repeat `[` to its end
        return None
    if not isinstance(found, dict):
        return None
    return [str(value) for value in found.values() if isinstance(value, str | int | float) and value is not True]


def plain(text: str) -> str:
    """Without LaTeX, HTML, special tokens and escapes."""
    text, before = html.unescape(_SPECIAL.sub(" ", text)), None
    while text != before:
        before, text = text, _LATEX.sub(r"\1", text)
    text = _MATH.sub(r"\1", _ESCAPED.sub(r"\1", text))
    return _ANGLES.sub(r"\1", _XML.sub(r"\1: \2", _HTML.sub(" ", text)))


def boxed(text: str) -> str:
    """What is in the boxes of the last line that has one; "" where there is none, or they differ."""
    lines = [found for line in text.split("\n") if (found := _BOX.findall(line))]
    return lines[-1][0] if lines and len(set(lines[-1])) == 1 else ""


def folded(text: str, level: int) -> str:
    """A text as it is compared at a level of LEVELS."""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", text)))
    if level >= 1:
        text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    if level >= 3:
        text = _AMPERSAND.sub(" and ", text)
    return unicodedata.normalize("NFKC", text.casefold()) if level >= 2 else text
