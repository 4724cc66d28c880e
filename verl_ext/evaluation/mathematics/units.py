"""Units: which text behind a number is one, and what it is worth. Anything else behind a number is no unit."""

import re
from fractions import Fraction

Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""How many base units it is, and the power of each; the base of a counted thing is its name."""

METRE, SECOND, GRAM, LITRE = ("metre", 1), ("second", 1), ("gram", 1), ("metre", 3)
SIZES: dict[str, tuple[Fraction, tuple[str, int]]] = {}
for names, size, base in (
    ("m meter metre", "1", METRE),
    ("cm centimeter centimetre", "1/100", METRE),
    ("mm millimeter millimetre", "1/1000", METRE),
    ("dm decimeter decimetre", "1/10", METRE),
    ("km kilometer kilometre", "1000", METRE),
    ("in inch", "0.0254", METRE),
    ("ft foot feet", "0.3048", METRE),
    ("yd yard", "0.9144", METRE),
    ("mi mile", "1609.344", METRE),
    ("s sec second", "1", SECOND),
    ("ms millisecond", "1/1000", SECOND),
    ("min minute", "60", SECOND),
    ("h hr hour", "3600", SECOND),
    ("day", "86400", SECOND),
    ("week", "604800", SECOND),
    ("g gram", "1", GRAM),
    ("kg kilogram", "1000", GRAM),
    ("mg milligram", "1/1000", GRAM),
    ("lb pound", "453.59237", GRAM),
    ("oz ounce", "28.349523125", GRAM),
    ("l L liter litre", "1/1000", LITRE),
    ("ml mL milliliter millilitre", "1/1000000", LITRE),
    ("¤ dollar usd buck", "1", ("dollar", 1)),
    ("cent", "1/100", ("dollar", 1)),
    ("€ euro eur", "1", ("euro", 1)),
    ("% percent", "1/100", ("percent", 1)),
    ("° deg degree", "1", ("degree", 1)),
    ("rad radian", "1", ("radian", 1)),
    ("celsius fahrenheit newton watt volt ampere coulomb hertz pascal kelvin mole year month", "1", ("", 1)),
    ("J joule", "1", ("joule", 1)),
    ("kJ kilojoule", "1000", ("joule", 1)),
    ("N", "1", ("newton", 1)),
    ("W", "1", ("watt", 1)),
    ("kW kilowatt", "1000", ("watt", 1)),
    ("V", "1", ("volt", 1)),
    ("A", "1", ("ampere", 1)),
    ("C", "1", ("coulomb", 1)),
    ("K", "1", ("kelvin", 1)),
    ("Hz", "1", ("hertz", 1)),
    ("Pa", "1", ("pascal", 1)),
    ("mol", "1", ("mole", 1)),
    ("£ yen rupee rs", "1", ("", 1)),
):
    for name in names.split():
        SIZES[name] = (Fraction(size), base if base[0] else (name, 1))
COMPOUND = {"mph": "mi/h", "kmh": "km/h", "kmph": "km/h", "kph": "km/h", "mps": "m/s", "cc": "cm^3", "sqft": "ft^2"}
ADJECTIVE = re.compile("red|blue|green|black|white|yellow|old|different|distinct|possible|whole|prime|positive")
UNLIKE_PLURALS = re.compile(
    "people|children|men|women|feet|mice|geese|fish|sheep|deer|units|person|man|woman|child|north|south|east|west"
)
# Words in -s that count nothing, and words that make another number of the one before them.
NO_UNIT = re.compile(
    "is|was|has|does|its|his|this|thus|plus|minus|times|less|unless|perhaps|maybes|guesses|yes|always|sometimes|us|as|"
    "others|dozens?|tens?|hundreds?|thousands?|millions?|billions?|trillions?|half|halves|thirds?|quarters?|fourths?|"
    "fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|factorials?|sins|cos|abs|mods|bases|"
    "percentage|and|or|not|than|more|fewer|but|wrong|the"
)


def unit_of(text: str, one: bool = False) -> Unit | None:
    """The unit that `text` names, such as `cm^{2}`, `km/h`, `square feet`, `apples`; `one`: also `apple`. Else None."""
    text = re.sub(r'°\s*"?([CF])"?$', lambda m: {"C": "celsius", "F": "fahrenheit"}[m[1]], text)
    text = re.sub(r"[\"{}.]|\\cdot", " ", text).strip()
    if not re.fullmatch(r"[A-Za-z¤€£%°/^0-9 \-]{1,60}", text):
        return None
    size, powers, sign, square = Fraction(1), dict[str, int](), 1, 1
    words = re.findall(r"/|[A-Za-z¤€£%°]+(?:\s*\^\s*-?\d+)?|\S", text)
    for word in words:
        if word in ("/", "per"):
            sign = -1
        elif word.lower() in ("square", "sq", "cubic", "cu"):
            square = 2 if word[0] in "sS" else 3
        elif not ADJECTIVE.fullmatch(word) or len(words) == 1:
            name, _, power = word.replace(" ", "").partition("^")
            found = single(name, one or sign < 0)
            if found is None:
                return None
            exponent = int(power or 1) * square * sign
            size *= found[0] ** exponent
            for base, own in found[1]:
                powers[base] = powers.get(base, 0) + own * exponent
            square = 1
    return (size, tuple(sorted(powers.items()))) if powers and square == 1 else None


def single(name: str, one: bool) -> Unit | None:
    """One word as a unit: a known one, a plural, or with `one` a singular."""
    if name in COMPOUND:
        return unit_of(COMPOUND[name])
    lower = name.lower()
    spellings = (name, lower, lower.removesuffix("es"), lower.removesuffix("s")) if len(name) > 1 else (name,)
    for known in spellings:
        if known in SIZES and (known in spellings[:2] or len(known) > 1):
            size, base = SIZES[known]
            return size, (base,)
    if not name.isalpha() or NO_UNIT.fullmatch(lower) or len(name) < 3:
        return None
    if one or UNLIKE_PLURALS.fullmatch(lower) or re.search(r"[^s]s$", lower):
        return Fraction(1), ((singular(lower), 1),)
    return None


def singular(word: str) -> str:
    irregular = {"people": "person", "children": "child", "men": "man", "women": "woman"}
    if word in irregular:
        return irregular[word]
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("xes", "ches", "shes", "sses")) else word.removesuffix("s")
