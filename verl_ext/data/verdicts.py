"""What a text in prose concludes: which of the labels named in it the writer gives. Pure functions.

A label is asserted where words lead up to it (`the answer is x`, `so x`,
`Category: x`) and its clause ends behind it; it is not where the clause denies it, doubts it, asks or offers two.
"""

import re
from dataclasses import dataclass, replace

from verl_ext.data.label_prose import DEGREE, FIRST, FIRST_COMMON, KIND, LABEL, MARKS, bare

_PARTICLE = r"(?:的|类|评价|评论|情感|情绪|です|だ|है|입니다)"
"""What ends a clause behind a label where it is written without spaces."""
_SENTENCE_END = re.compile(r"(?<=[.!?;…])\s+|[。！？；।\n|]+")
_CLAUSE_END = re.compile(
    rf"(?<!{LABEL}),|,(?!\s*(?:(?:or|and|nor)\s+)?{LABEL})|[;:，：،؛、()\u2014\u2013]|\s-\s|→|[-=]>|"
    r"\b(?:(?<!anything )but|so|therefore|thus|hence|though|although|while|whereas|however|because|sondern|"
    r"sino|mais|aber|pero)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|no|neither|nor|never|none|nothing|nobody|free of|without|unlike|than|anything but|far from|devoid of|"
    r"instead of|lacks?|hardly|barely|partly|wrong|excluded?|rules? out|nicht|kein\w*|weder|noch|ni|pas|niet|geen|"
    r"nie|não|inte|ikke|не|không|tidak|bukan|غير|و?ليس\w*)\b|n['\u2019]t\b|[不非没]",
    re.IGNORECASE,
)
_OFFERED = re.compile(
    r"\b(?:alternatively|either|whether|between\W+(?:and\W+)?$|cannot|can't|unclear|unsure|unable|hardly|barely|"
    r"partly|(?:not|n['\u2019]t) (?:sure|certain|clear|enough|know)|if(?! (?:I|you|forced|pressed)\b)|would have|"
    r"first (?:thought|glance|sight|instinct|impression)|initially|please (?:share|provide|paste|give|tell|"
    r"specify|let)|(?:wanted|tempted) to|mix(?:ed|ture)? (?:of|with)|combination of|oder|ou)\b|或|\d\s*(?:to|-)\s*$|"
    r"\bor\W+(?:\w+\W+){0,2}$|"
    rf"\bboth\W+(?:(?:an?\W+)?|.*{LABEL}.*\band\b.*)$",
    re.IGNORECASE,
)
_CONCEDED = re.compile(
    rf"^{MARKS}(?:while|whereas)\b[^,]*$|\b(?:even if|though|although|despite|in spite of)\b[^,]*$|"
    rf"{LABEL}[^.;]*\bwith\s+(?:an?|some|only|minor|slight|occasional|little)\b[^,;]*$|(?:^{MARKS}|"
    rf"\band\s+)so\s+(?:is|are|was|does|do)\s+$",
    re.IGNORECASE,
)
_DOUBTED = re.compile(r"\b(?:could|might|may|maybe|perhaps|possibly|vielleicht|könnte|peut(?:-être)?)\b", re.IGNORECASE)
_TURN = re.compile(r"\b(?:wait|actually|correction|hmm|rather|instead|on second thought)\b", re.IGNORECASE)
_NO = re.compile(rf"{MARKS}no\b", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:I['\u2019]d|I would|I['\u2019]ll|overall|all in all|in short|in sum|so|therefore|thus|hence|final\w*|"
    r"conclu\w*|answer|label|classif\w*|category|verdict|rating|score|winner|result|prediction|output|decision|"
    r"summary|ultimately|balance|reflection|second thought|the end|as a whole|best|most|correct|(?:but|rather|"
    r"instead|actually),? (?:it|this|that)|daher|also|insgesamt|donc|sondern)\b|[因所总]",
    re.IGNORECASE,
)
_FILLER = (
    r"(?:(?:clearly|definitely|certainly|probably|likely|simply|actually|really|only|mostly|mainly|generally|an?|the|"
    r"absolutely|predominantly|primarily|plain|most|more|best|overall|just|indeed|thus|then|hence|instead|rather|"
    r"still|here|in the end|on (?:reflection|balance|second thought|the whole)|after all|solid|clear|"
    rf"firm|definite|typical|classic|obvious|ein\w*|une?|una?|eher|option|choice|(?!one){KIND})\b[,:]?\s*)*\(?$"
)
_OBJECT = r"(?:it|this|that|them|him|her|(?:the|this|that)\s+(?:\w+\s+)?\w+)"
_LED = re.compile(
    r"(?:\b(?:is|(?<!I )(?<!we )(?<!you )would|are|was|were|be|being|it['\u2019]?s|that['\u2019]?s|(?<!such )as|"
    r"under|(?:is|\w+ed|written|spoken) (?:in|by)|recommend(?: to)?|into|say|choose|chose|pick|select|answer|"
    r"go (?:with|for)|settle (?:on|for)|conclude|means|remains|so|therefore|thus|hence|just|but|overall|rather|"
    r"instead|ultimately|assign|has|belongs? to|falls? in|fits?(?: best)?(?: in)?|corresponds? to|deserves?|worth|"
    r"gets?|earns?|receives?|merits?|award|points? to|matches|expresses|conveys|indicates|suggests|shows|found \w+|"
    r"(?:I|we) (?:sense|feel|hear|detect|see|read)|more of|(?:example|instance|case|expression|sense|feeling|tone|"
    r"score|rating|level|category|label|one) of|ist|est|es|é|è|sondern|also|daher|donc|(?:is|are|was|be|"
    r"been) (?:rated|labell?ed|classified|considered|deemed|called|seen|regarded)(?: as)?|"
    rf"(?:rat|giv|call|label|consider|deem|scor|mark|mak|plac|assign)\w*\s+{_OBJECT}(?:\s+as)?)(?![\w'\u2019])|"
    rf"^{MARKS}(?:\w+\s+){{0,3}}\w+\s*[-\u2013\u2014]|[:=→>：]|[是为為属于於は])[,:]?\s*{_FILLER}",
    re.IGNORECASE,
)
_OPENING = re.compile(rf"^{MARKS}(?=\w){_FILLER}", re.IGNORECASE)
_WEAKLY_LED = re.compile(
    r"\b(?:seems?|appears?|looks?|sounds?|feels?|reads?|leans?|is about|relates? to|pertains? to|deals? with|concerns|"
    rf"focus\w* on|discusses|covers)(?: to be| like| as| to| towards?)?\s+{_FILLER}",
    re.IGNORECASE,
)
_ENDED = re.compile(
    rf"(?![^(]*\b(?:mixed|leaning|border\w*|verging)\b)(?:[\s-]+(?:programming )?{KIND}\b)*\s*{_PARTICLE}?"
    r"(?:$|[.,;:!)(\n，、：\u2014\u2013>]|-\s|\s(?:because|since|as(?! well)|given|due to|rather than|instead of|not|"
    r"than|with|without|to|towards?|of|from|at|within|when|after|about|regarding|by|on|in|the|this|but|though|"
    r"although|even|despite|overall|here|based on|for|so|and|weil|parce que|porque)\b)",
    re.IGNORECASE,
)
_CONJUNCTION = (
    rf"(?:(?:or|and|and/or|as well as|along with|to|vs|versus|oder|ou|und|et|y|o)\b{MARKS}|[或和与跟/])"
    r"(?:(?:as|in|an?|the)\s)?"
)
_CHOICE_BEFORE = re.compile(rf"({LABEL}){MARKS}{_CONJUNCTION}$", re.IGNORECASE)
_CHOICE_BEHIND = re.compile(rf"{MARKS}(?:{_CONJUNCTION})?({LABEL})", re.IGNORECASE)
_JOINED = re.compile(
    r"\s*(?:,|,?\s+and|&)\s+(?:(?!but|with|not|no|so|even|though|although|despite|as|because|since|rather|which|it)\w+\s+){0,2}$",
    re.IGNORECASE,
)
"""`Critics were x, viewers y`."""
_ADDRESS = re.compile(
    r"\b(?:I|we|you)(?:['\u2019]\w+)?\s+(?:(?:can|would|will|could|do|am|are|really|also|all)\s+)*$|\byour\s+$",
    re.IGNORECASE,
)
"""What the model says of itself or its reader: `I would love`, `you are right`."""
_DISMISSED = re.compile(r"[^\w\n]*\s(?:but|yet|however)\b", re.IGNORECASE)
_DEGREE_BEFORE = re.compile(rf"{DEGREE.pattern}$", re.IGNORECASE)
_DECIDES = re.compile(r"\b(?:I|we)(?:['\u2019]d| would| will| have to| must)\s+$", re.IGNORECASE)
_DECIDED = re.compile(r"\s+(?:this|it)\b", re.IGNORECASE)
"""`I would approve this.`"""
_OTHER_BEHIND = re.compile(
    r"\s+(?:is|are|was|were|has|have|to (?:say|tell|know|judge|determine))\b|,\s+(?:I['\u2019 ](?!guess|think|"
    r"believe|suppose|d say|m afraid)|let\b)",
    re.IGNORECASE,
)
"""`The patient's health is failing`, `as an AI, I can't know`."""
_SLASHED = re.compile(r"[/\\]\s*$")
_OPENS = re.compile(rf"^{MARKS},\s")
_COPULA_BEHIND = re.compile(rf"^\s*{_PARTICLE}")
_NAMED = re.compile(
    rf"^(?:.*\b(?:that|so|therefore|thus|hence)\b|.*,)?{MARKS}(?:i (?:believe|think|guess|"
    rf"would say)\s+(?:that\s+)?)?(?:(?:an?|the|option|choice|assistant|model|{KIND}(?: of)?)\s+)*$",
    re.I,
)
_NAMES = re.compile(
    rf"^(?:\s+{KIND})*\s+(?:detected|found|it is|holds|applies|(?:is|was) the (?:\w+ ){{0,2}}(?:{KIND}|option|choice)|"
    r"seems (?:fair|right|apt|appropriate|reasonable)|is (?:responsible|in charge)|(?:is|fits|seems|would be|applies|"
    r"gives|provides|has|wins)\b(?:(?!\bnot\b|n't\b|\bthan\b).)*?\b(?:best|better|most|correct|right|answer|winner)|"
    r"(?:should|must|can) (?:answer|handle|take|get)\b)",
    re.I,
)
_OFFERED_BEHIND = re.compile(
    r"\s+(?:is|are|seems|would be|could be|may be|might be)\s+(?:also|plausible|possible)\b", re.I
)
_MIXED = re.compile(r"\bmixed\s*:", re.IGNORECASE)
_ASIDE = re.compile(r"\b(?:second(?:ary)?|alternatives?|runner-up|other)\b[^:]*:", re.IGNORECASE)
_AFFIRMED = re.compile(
    r"\b(?:no|without(?: an?y?)?|beyond(?: any)?) (?:doubt|question|hesitation)\b|\bnot only\b|\bnothing but\b|"
    r"\bno less than\b|\bnot surprising(?:ly)?\b",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"\s*(?:(?:is|are|was|were|seems?|can be|does|do)(?: both| clearly| also)?(?:n['\u2019]t| not| wrong| incorrect|"
    r" too| out| ruled| elimin\w+| excluded| impossible)\b|[^.;]*\bif\b[^.;]*\b(?:were|was|had)|नहीं|değil|이? ?아니|"
    r"ではな|ではあり|じゃな|نیست)",
    re.IGNORECASE,
)
_ASIDE_BEHIND = re.compile(
    r"\s*\(?\s*(?:secondar\w+|runner-up|minor|(?:only )?(?:in passing|briefly))\b", re.IGNORECASE
)
_ASPECT = re.compile(rf"^{MARKS}(?!.*\b{KIND}\b)(?:\w+ ){{0,3}}\w+\s*[:：]{MARKS}$", re.IGNORECASE)
"""`Clarity: 4`, which is the label of a part."""
_SEEN = 200
"""Characters of a sentence that are looked at on either side of a label."""
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
    text = bare(text, degrees)
    mentions = _mentions(text)
    found = [mention for mention in mentions if mention.weight >= _WEAK]
    strong = [mention for mention in found if mention.weight == _STRONG] or found
    if not strong:
        return [] if concluding else _sole(text, mentions)
    last = strong[-1]
    if concluding and not last.concludes:
        return []
    doubted = [mention for mention in mentions if mention.doubted and mention.position > last.position]
    return _distinct([*(strong if not last.concludes else [last]), *doubted])


def _sole(text: str, mentions: list[_Mention]) -> list[str]:
    """The one label that a text names and neither denies, doubts nor offers, where it is no word of something else."""
    named = [mention for mention in mentions if not mention.denied]
    if len(_distinct(named)) != 1 or any(mention.doubted or mention.offered for mention in named):
        return []
    return _distinct([mention for mention in named if mention.weight and not text.endswith(("?", "？"))])


def only_denied(text: str) -> list[str]:
    """The one label that a text names, and denies each time."""
    mentions = _mentions(bare(text, degrees=False))
    denied = all(mention.denied and not mention.offered and not mention.doubted for mention in mentions)
    return _distinct(mentions) if denied and len(_distinct(mentions)) == 1 else []


def second_thoughts(explanation: str, degrees: bool) -> list[str]:
    """The labels that what follows a label gives too, or doubts it with: `or x`, `it could be x`, `wait, x`."""
    mentions = _mentions(bare(explanation, degrees))
    strong = [mention for mention in mentions if mention.weight == _STRONG and mention.concludes]
    since = strong[-1].position if strong else 0
    found = [mention for mention in mentions if mention.doubted or mention in strong]
    return _distinct([mention for mention in found if mention.position >= since])


def _distinct(mentions: list[_Mention]) -> list[str]:
    return list(dict.fromkeys(mention.label for mention in mentions))


def _mentions(text: str) -> list[_Mention]:
    mentions, start = [], 0
    for sentence in _SENTENCE_END.split(text):
        start = text.index(sentence, start)
        for match in re.finditer(LABEL, sentence):
            mention = _mention(text, start, sentence, match.start())
            last = mentions[-1] if mentions else mention
            joined = last.weight >= _WEAK and _JOINED.fullmatch(text, last.position + 1, mention.position)
            mentions.append(replace(mention, doubted=True) if joined else mention)
        start += len(sentence)
    return mentions


def _mention(text: str, start: int, sentence: str, position: int) -> _Mention:
    label, behind = sentence[position], sentence[position + 1 : position + 1 + _SEEN]
    before = sentence[max(0, position - _SEEN) : position]
    clause, since = _clause(before), re.split(LABEL, before)[-1]
    denied = _is_denied(before, clause, since, behind)
    doubted = bool(_DOUBTED.search(clause) or _OFFERED_BEHIND.match(behind))
    offered = bool(_OFFERED.search(clause) or _MIXED.search(since)) or sentence.endswith(("?", "？"))
    choices = _CHOICE_BEHIND.match(behind), _CHOICE_BEFORE.search(before)
    chosen = {choice[1] for choice in choices if choice} - {label}
    around = (before + _COPULA_BEHIND.sub("", behind)).replace(label, "")
    alone = not any(character.isalnum() or character >= FIRST for character in around)
    excluded = denied or offered or chosen
    weight = 0 if excluded else _weight(label, before, behind, led=alone, begins=start == 0)
    turns = bool(_TURN.search(since))
    turned = turns or (weight < _WEAK and bool(offered or alone or _NO.match(before)))
    return _Mention(
        label=label,
        position=start + position,
        weight=min(weight, _WEAK) if doubted else weight,
        concludes=turns or bool(_CONCLUDES.search(since)) or (alone and start + len(sentence) == len(text)),
        denied=denied,
        offered=bool(offered or chosen),
        doubted=(doubted or turned) and not denied and not _DISMISSED.match(behind),
    )


def _is_denied(before: str, clause: str, since: str, behind: str) -> bool:
    """Whether a label is denied, conceded or named by the way; `clause` and `since` are ends of `before`."""
    if _DENIED.search(_AFFIRMED.sub("", clause)) or _CONCEDED.search(before) or _ASIDE.search(since):
        return True
    return bool(_DENIED_BEHIND.match(behind) or _ASIDE_BEHIND.match(behind))


def _weight(label: str, before: str, behind: str, *, led: bool, begins: bool) -> int:
    """How a label between two texts is asserted. `led`: as if by words; `begins`: its sentence is the first."""
    if _NAMED.match(before) and _NAMES.match(behind):
        return _STRONG
    common, ended = label >= FIRST_COMMON, _ENDED.match(behind)
    if _DECIDES.search(before) and _DECIDED.match(behind):
        return _BARE
    if _OTHER_BEHIND.match(behind) or (common and begins and not before.strip() and behind.startswith(" of ")):
        return 0
    if not ended:
        return 0 if common or _means_other(before) else _WEAK if _LED.search(before) else _BARE
    if _ASPECT.match(before) and not _CONCLUDES.search(before):
        return _BARE
    if led or _LED.search(before) or (begins and _OPENING.search(before)):
        return _STRONG
    if _WEAKLY_LED.search(before) or (not common and _OPENS.match(before + behind)):
        return _WEAK
    return _BARE if not _means_other(before) else 0


def _means_other(before: str) -> bool:
    """Whether a label is part of another name, or a word of the model about itself."""
    return any(sign.search(before) for sign in (_ADDRESS, _DEGREE_BEFORE, _SLASHED))


def _clause(before: str) -> str:
    """The clause that a label stands in, up to the label."""
    return _CLAUSE_END.split(before)[-1]
