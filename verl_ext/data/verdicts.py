"""What a text in prose concludes: which of the labels named in it the writer gives. Pure functions.

The text comes with each label in it written as one character of LABEL, so that the rules below see words and labels
only, and hold for every set of labels. A label is asserted where words lead up to it (`the answer is x`, `so x`,
`Category: x`) and its clause ends behind it; it is not where the clause denies it, doubts it, asks or offers two.
"""

import re
import unicodedata
from dataclasses import dataclass

FIRST, FIRST_COMMON = "\U000f0000", "\U00100000"
LABEL = f"[{FIRST}-\U0010fffd]"
"""From FIRST_COMMON on: labels that are common words or mere numbers (`no`, `a`, `de`, `4`)."""
_MARKS = rf"[^\w{FIRST}-\U0010fffd]*"

KIND = (
    r"(?:sentiment|language|label|class|category|classification|answer|tone|mood|emotion|feeling|attitude|opinion|"
    r"topic|"
    r"intent|speech|review|text|comment|content|sentence|statement|document|article|story|piece|section|matter|issue|"
    r"problem|email|message|"
    r"tweet|post|report|ticket|request|query|code|snippet|rating|score|stars?|points?|one|news|case|"
    r"relationship|level|priority|type|group|team|department|desk|queue|folder|tag|bucket)"
)
"""What a label may be called, or be the label of: `the positive class`, `a negative review`."""

_DECORATION = re.compile(r"[*_`\"“”«»「」『』【】\[\]{}$#]+|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)")
_QUOTE = re.compile(r"[\"“”„«][^\"“”„«»\n]*[\"“”»]")
_SENTENCE_END = re.compile(r"(?<=[.!?;…])\s+|[。！？；।\n|]+")
_CLAUSE_END = re.compile(
    rf"(?<!{LABEL}),|,(?!\s*(?:(?:or|and|nor)\s+)?{LABEL})|[;:，：()\u2014\u2013]|\s-\s|→|[-=]>|\b(?:but|so|therefore|"
    rf"thus|"
    r"hence|though|although|while|whereas|however|because|sondern|sino|mais|aber|pero)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|no|neither|nor|never|none|nothing|nobody|free of|without|unlike|than|anything but|far from|devoid of|"
    r"instead of|lacks?|hardly|barely|partly|wrong|excluded?|rules? out|nicht|kein\w*|weder|noch|ni|pas)\b|"
    r"n['\u2019]t\b|[不非没]",
    re.IGNORECASE,
)
_OFFERED = re.compile(
    r"\b(?:or|alternatively|either|whether|between\W+(?:and\W+)?$|both|cannot|can't|unclear|unsure|unable|if|"
    r"would have|first (?:thought|glance|sight)|initially|please|(?:wanted|tempted|inclined) to|mix(?:ed|ture)? (?:of|"
    r"with)|combination of|oder|"
    r"ou)\b|或|\d\s*(?:to|-)\s*$",
    re.IGNORECASE,
)
_CONCEDED = re.compile(rf"^{_MARKS}(?:(?:even )?though|although|while|whereas|despite)\b[^,]*$", re.IGNORECASE)
_DOUBTED = re.compile(r"\b(?:could|might|may|maybe|perhaps|possibly|vielleicht|könnte|peut(?:-être)?)\b", re.IGNORECASE)
_TURN = re.compile(
    rf"\b(?:wait|actually|correction|should be|hmm|rather|instead|on second thought)\b|^{_MARKS}no\b", re.I
)
_CONCLUDES = re.compile(
    r"\b(?:overall|so|therefore|thus|hence|final\w*|conclu\w*|answer|label|classif\w*|category|verdict|rating|score|"
    r"winner|result|prediction|output|"
    r"decision|summary|ultimately|balance|reflection|second thought|the end|as a whole|best|most|correct|"
    r"(?:but|rather|instead|actually),? (?:it|this|that)|daher|also|insgesamt|donc|sondern)\b|[因所总]",
    re.IGNORECASE,
)
_DEGREE = re.compile(
    r"\b(?:(?!hard|part|bare|scarce|un)\w+ly|very|quite|fairly|pretty|somewhat|strong|mild|"
    r"slight)\s+",
    re.IGNORECASE,
)
_FILLER = (
    r"(?:(?:clearly|definitely|certainly|probably|likely|simply|actually|really|only|mostly|mainly|generally|an?|the|"
    r"most|more|best|overall|just|indeed|thus|then|hence|"
    r"instead|rather|still|here|in the end|on (?:reflection|balance|second thought|the whole)|after all|solid|clear|"
    rf"firm|definite|typical|classic|obvious|ein\w*|une?|una?|eher|option|choice|(?!one){KIND})\b[,:]?\s*)*\(?$"
)
_OBJECT = r"(?:it|this|that|them|him|her|(?:the|this|that)\s+(?:\w+\s+)?\w+)"
_LED = re.compile(
    r"(?:\b(?:is|(?<!I )(?<!we )(?<!you )would|are|was|were|be|being|it['\u2019]?s|that['\u2019]?s|(?<!such )as|under|"
    r"(?:is|\w+ed|written|spoken) in|recommend(?: to)?|into|say|choose|chose|pick|select|answer|go (?:with|for)|"
    r"conclude|means|remains|so|therefore|thus|hence|just|but|overall|rather|instead|ultimately|assign|has|"
    r"belongs? to|falls? in|fits?(?: best)?(?: in)?|corresponds? to|"
    r"matches|expresses|conveys|indicates|suggests|shows|found \w+|(?:I|we) (?:sense|feel|hear|detect|see|read)|"
    r"more of|"
    r"(?:example|instance|case|expression|sense|feeling|tone|score|rating|level|category|label|one) of|"
    r"ist|est|es|é|è|sondern|also|daher|donc|"
    r"(?:is|are|was|be|been) (?:rated|labell?ed|classified|considered|deemed|called|seen|regarded)(?: as)?|"
    rf"(?:rat|giv|call|label|consider|deem|scor|mark|mak|plac|assign)\w*\s+{_OBJECT}(?:\s+as)?)(?![\w'\u2019])"
    rf"|^{_MARKS}(?:\w+\s+){{0,3}}\w+\s*[-\u2013\u2014]|[:=→>：]|[是为為属于於は])[,:]?\s*{_FILLER}",
    re.IGNORECASE,
)
_OPENING = re.compile(rf"^{_MARKS}(?=\w){_FILLER}", re.IGNORECASE)
_WEAKLY_LED = re.compile(
    r"\b(?:seems?|appears?|looks?|sounds?|feels?|reads?|leans?|is about|relates? to|pertains? to|deals? with|concerns|"
    rf"focus\w* on|discusses|covers)(?: to be| like| as| to| towards?)?\s+{_FILLER}",
    re.IGNORECASE,
)
_ENDED = re.compile(
    rf"(?![^(]*\b(?:mixed|leaning|border\w*|verging)\b)(?:[\s-]+{KIND}\b)*\s*(?:的|类|です|だ|है|입니다)?"
    r"(?:$|[.,;:!)(\n，、：\u2014\u2013>]|-\s|\s(?:because|since|as(?! well)|given|due to|rather than|"
    r"instead of|not|than|with|without|to|towards?|of|from|at|within|when|after|about|regarding|by|on|in|the|this|but|"
    r"though|"
    r"although|even|despite|overall|"
    r"here|based on|for|so|"
    r"and|weil|parce que|porque)\b)",
    re.IGNORECASE,
)
_CONJUNCTION = rf"(?:(?:or|and|and/or|to|vs|versus|oder|ou|und|et|y|o)\b{_MARKS}|[或和与跟/])(?:(?:as|in|an?|the)\s)?"
_CHOICE_BEFORE = re.compile(rf"({LABEL}){_MARKS}{_CONJUNCTION}$", re.IGNORECASE)
_CHOICE_BEHIND = re.compile(rf"{_MARKS}(?:{_CONJUNCTION})?({LABEL})", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:I|I['\u2019]\w+|we|you|your|let|here)\b", re.IGNORECASE)
_DISMISSED = re.compile(r"[^\w\n]*\s(?:but|yet|however)\b", re.IGNORECASE)
_OPENS = re.compile(rf"^{_MARKS},\s")
_COPULA_BEHIND = re.compile(r"^\s*(?:的|类|です|だ|है|입니다)")
_ENDS_SENTENCE = re.compile(rf"(?:\s+{KIND}\b)*\s*(?:的|类|です|だ|है|입니다)?{_MARKS}$", re.IGNORECASE)
_NAMED = re.compile(
    rf"^{_MARKS}(?:i (?:believe|think|guess|would say)\s+(?:that\s+)?)?"
    rf"(?:(?:the|option|choice|assistant|model|{KIND})\s+)*$",
    re.I,
)
_NAMES = re.compile(
    rf"^(?:\s+{KIND})*\s+(?:detected|found|it is|holds|applies|(?:is|was) the (?:\w+ )?{KIND}|"
    r"(?:is|fits|seems|would be|applies|gives|provides|has|wins)\b(?:(?!\bnot\b|n't\b|\bthan\b).)*?"
    r"\b(?:best|better|most|correct|right|answer|winner)|(?:should|must|can) (?:answer|handle|take|get)\b)",
    re.I,
)
_OFFERED_BEHIND = re.compile(
    r"\s+(?:is|are|seems|would be|could be|may be|might be)\s+(?:also|plausible|possible)\b", re.I
)
_MIXED = re.compile(r"\bmixed\s*:", re.IGNORECASE)
_ASIDE = re.compile(r"\b(?:second(?:ary)?|alternatives?|runner-up|other)\b[^:]*:", re.IGNORECASE)
_CONTRASTED = re.compile(r"\s+(?:rather than|instead of|not)\b|[.,;:!]", re.IGNORECASE)
_LETTER = re.compile(rf"^\W*\w\)\s+(?={LABEL})")
_OUT_OF = re.compile(rf"(?<={LABEL})((?:\s+{KIND})?)\s+out of (?:{LABEL}|\d+)")
_SCORE = re.compile(rf"({LABEL})\W{{0,4}}[:=(]\W*(?:\d|(?:yes|no|true|false)\b)", re.IGNORECASE)

_SEEN = 200
"""Characters of a sentence that are looked at on either side of a label."""
_READ = 6000
"""Characters of a text that are looked at, its last ones: where a model repeats itself, time grows with them."""
_WORDS = 3
"""Of a sentence that may name a label without leading up to it: `very low` is another label than `low`."""
_STRONG, _WEAK, _BARE = 3, 2, 1
"""How a label is asserted: `it is x`, `it seems x`, a sentence that ends with it. 0: not at all."""


@dataclass(frozen=True)
class _Mention:
    label: str
    position: int
    """Of the label's character in the text."""
    weight: int
    """_STRONG, _WEAK, _BARE or 0."""
    concludes: bool
    """`Overall, x`."""
    denied: bool
    offered: bool
    """`Either x`, `if x`, or in a question."""
    doubted: bool
    """`Or x`, `it could be x`, `wait, x`."""


def verdict(text: str, degrees: bool, concluding: bool) -> list[str]:
    """The label that a text gives, as its character of LABEL: none, one, or several that it could be.

    Args:
        text: prose, its labels as characters of LABEL.
        degrees: some label is another with a word before it (`very positive`), so that `slightly positive` is none.
        concluding: only what is called a conclusion counts, or stands alone on the last line.
    """
    text = _bare(text, degrees)
    mentions = _mentions(text)
    found = [mention for mention in mentions if mention.weight >= _WEAK]
    strong = [mention for mention in found if mention.weight == _STRONG] or found
    if not strong:
        return [] if concluding else _only(mentions) or _in_brackets(text, mentions) or _sole(text, mentions)
    last = strong[-1]
    if concluding and not last.concludes:
        return []
    doubted = [mention for mention in mentions if mention.doubted and mention.position > last.position]
    return _distinct([*(strong if not last.concludes else [last]), *doubted])


def _only(mentions: list[_Mention]) -> list[str]:
    """The one label that a text names and does not deny, where a sentence ends with it."""
    named = [mention for mention in mentions if not mention.denied]
    sole = len(_distinct(named)) == 1 and not any(mention.doubted for mention in named)
    return _distinct([mention for mention in named if mention.weight == _BARE and sole])


def _sole(text: str, mentions: list[_Mention]) -> list[str]:
    """The one label, not a common word, that a sentence alone names and neither denies, doubts nor offers."""
    named = [mention for mention in mentions if not mention.denied]
    if len(_distinct(named)) != 1 or any(mention.doubted or mention.offered for mention in named):
        return []
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    speaks = _ADDRESS.search(text) or len(text.split()) < _WORDS or named[0].label >= FIRST_COMMON
    behind = [(mention.position, text[mention.position + 1 :]) for mention in named]
    ended = any(_ENDED.match(rest) if position else _CONTRASTED.match(rest) for position, rest in behind)
    return _distinct(named) if len(sentences) == 1 and ended and not speaks else []


def second_thoughts(explanation: str, degrees: bool) -> list[str]:
    """The labels that what follows a label gives too, or doubts it with: `or x`, `it could be x`, `wait, x`."""
    mentions = _mentions(_bare(explanation, degrees))
    strong = [mention for mention in mentions if mention.weight == _STRONG]
    since = strong[-1].position if strong and strong[-1].concludes else 0
    found = [mention for mention in mentions if mention.doubted or mention.weight == _STRONG]
    return _distinct([mention for mention in found if mention.position >= since])


def is_list_of_scores(text: str) -> bool:
    """`positive: 0.2, negative: 0.7`."""
    return len(set(_SCORE.findall(_bare(text, degrees=True)))) > 1


def _bare(text: str, degrees: bool) -> str:
    text = text[-_READ:]
    text = "".join(one for one in text if unicodedata.category(one) not in ("So", "Sk"))
    if not re.fullmatch(_QUOTE, text.strip()):
        text = _QUOTE.sub(lambda quote: quote[0] if not re.search(r"\w", quote[0]) else "quote", text)
    text = _LETTER.sub("", _OUT_OF.sub(r"\1", _DECORATION.sub("", text)))
    return (text if degrees else _DEGREE.sub("", text)).strip(" |\n")


def _distinct(mentions: list[_Mention]) -> list[str]:
    return list(dict.fromkeys(mention.label for mention in mentions))


def _mentions(text: str) -> list[_Mention]:
    mentions, start = [], 0
    for sentence in _SENTENCE_END.split(text):
        start = text.index(sentence, start)
        mentions += [_mention(text, start, sentence, match.start()) for match in re.finditer(LABEL, sentence)]
        start += len(sentence)
    return mentions


def _mention(text: str, start: int, sentence: str, position: int) -> _Mention:
    label, behind = sentence[position], sentence[position + 1 : position + 1 + _SEEN]
    before = sentence[max(0, position - _SEEN) : position]
    clause, since = _clause(before), re.split(LABEL, before)[-1]
    denied = bool(_DENIED.search(clause) or _ASIDE.search(since))
    doubted = bool(_DOUBTED.search(clause) or _OFFERED_BEHIND.match(behind))
    offered = bool(_OFFERED.search(clause) or _MIXED.search(since)) or sentence.endswith(("?", "？"))
    choices = _CHOICE_BEHIND.match(behind), _CHOICE_BEFORE.search(before)
    chosen = {choice[1] for choice in choices if choice} - {label}
    around = (before + _COPULA_BEHIND.sub("", behind)).replace(label, "")
    alone = not any(character.isalnum() or character >= FIRST for character in around)
    excluded = denied or offered or chosen or _CONCEDED.search(before)
    weight = 0 if excluded else _weight(label, before, behind, led=alone, begins=start == 0)
    turned = weight < _WEAK and bool(offered or alone or _TURN.search(before))
    return _Mention(
        label=label,
        position=start + position,
        weight=min(weight, _WEAK) if doubted else weight,
        concludes=bool(_CONCLUDES.search(since)) or (alone and start + len(sentence) == len(text)),
        denied=denied,
        offered=bool(offered or chosen),
        doubted=(doubted or turned) and not denied and not _DISMISSED.match(behind),
    )


def _weight(label: str, before: str, behind: str, *, led: bool, begins: bool) -> int:
    """How a label between two texts is asserted. `led`: as if by words; `begins`: its sentence is the first."""
    if _NAMED.match(before) and _NAMES.match(behind):
        return _STRONG
    if not _ENDED.match(behind):
        return 0
    if led or _LED.search(before) or (begins and _OPENING.search(before)):
        return _STRONG
    common = label >= FIRST_COMMON
    if _WEAKLY_LED.search(before) or (not common and _OPENS.match(before + behind)):
        return _WEAK
    ends = _ENDS_SENTENCE.match(behind) or not _ADDRESS.search(before)
    return _BARE if ends and not common and len(before.split()) > 1 else 0


def _in_brackets(text: str, mentions: list[_Mention]) -> list[str]:
    """`It is about computers (x).`"""
    named = _distinct([mention for mention in mentions if not mention.denied])
    brackets = re.search(rf"[^.!?\n]*\(({LABEL})\)(?=\W*(?:$|[\n.,;]))", text)
    return named if brackets and named == [brackets[1]] and not _OFFERED.search(brackets[0]) else []


def _clause(before: str) -> str:
    """The clause that a label stands in, up to the label."""
    return _CLAUSE_END.split(before)[-1]
