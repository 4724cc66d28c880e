"""The task reward: a diagnostic here, since the advantage of label-free distillation holds no task term."""

import re

from verl_ext.data.answer_text import without_thinking
from verl_ext.evaluation.mathematics.spelling import closing_brace
from verl_ext.evaluation.mathematics.verifier import MathVerifier

verifier = MathVerifier()

READ_CHARS = 200_000
"""Of a response, from its end; the answer stands there."""
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# Between two boxes that are one answer: `\boxed{1} and \boxed{2}`, `x=\boxed{1}$, $y=\boxed{2}`.
BETWEEN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\]\\,; ]|\\q?quad|\\text\{\s*(?:and|or),?\s*\}|and|or|[A-Za-z](?:_\w)?\s*=)*"
)
BARE_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?=$|[\s$]|\.\s|\.$)")


def boxed_answer(response: str) -> str | None:
    """What the last \\boxed{} (or \\fbox{}) behind any thinking holds; several that stand together joined by commas.

    Empty boxes are passed over. None without a box, or where the last one is not closed.
    """
    text = without_thinking(response).rstrip()[-READ_CHARS:]
    boxes: list[tuple[int, int, str]] = []  # start, end, inside
    position = 0
    while match := BOX.search(text, position):
        if text[match.end() : match.end() + 1] == "{":
            end = closing_brace(text, match.end())
            if end < 0:
                return None
            boxes.append((match.start(), end + 1, text[match.end() + 1 : end].strip()))
            position = end + 1
            continue
        position = match.end()
        if bare := BARE_NUMBER.match(text, position):
            boxes.append((match.start(), bare.end(), bare[1]))
    boxes = [box for box in boxes if box[2]]
    if not boxes:
        return None
    together = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : together[0][0]]
        if len(between) > 80 or not BETWEEN.fullmatch(between):
            break
        together.insert(0, box)
    return ", ".join(dict.fromkeys(inside for _, _, inside in together))


def math_match(response: str, truth: str) -> float:
    """1.0 if `response`'s last \\boxed{} holds the answer `truth`, else 0.0; 0.0 too where the answer is unknown ("").

    Compared as mathematics (docs/configuration.md says what is the same), in at most 5 s once the verifier runs, from
    any thread. An answer that cannot be read, or not in that time, is right only where it is written like the truth.
    """
    answer = boxed_answer(response)
    known = boxed_answer(truth) or truth
    if not known.strip() or not answer:
        return 0.0
    return float(verifier.equal(answer, known))
