"""Words as answers: which are the same, and which are numbers."""

import re

FOLDED = {"yes": "yes", "no": "no", "true": "true", "false": "false", "dne": "doesnotexist"}
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: number for number, word in enumerate(ONES.split())} | {"onehundred": 100, "onethousand": 1000}
for tens, word in enumerate(TENS.split(), 2):
    NUMBERS[word] = 10 * tens
    NUMBERS |= {f"{word}-{one}": 10 * tens + number for number, one in enumerate(ONES.split()[1:10], 1)}


def folded(text: str) -> str:
    """Without quotes and spaces, and without case where case is not what tells two names apart: AB is not ab."""
    plain = re.sub(r"(?<!\d) | (?!\d)", "", text.replace('"', "")).strip(".!")
    plain = re.sub(r"(?<=\d)([ap])\.?m$", r"\1m", plain, flags=re.IGNORECASE)  # 3:00 P.M.
    lower = plain.lower()
    if re.fullmatch(r"[\d:]+[ap]m", lower) or lower in FOLDED:
        return FOLDED.get(lower, lower)
    is_word = re.search(r"[A-Za-z][a-z]{2}|[A-Z]{5}", plain) and not re.search(r"[\\^_=+*/<>]", plain)
    return lower if is_word else plain
