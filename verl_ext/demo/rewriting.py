"""A task in which an early mistake costs the whole answer: three digits, rewritten step by step by named moves.

`275 aL bT` is answered `aL=725 bT=257 \\boxed{257}`: what the digits are after each move, then the last of it in a box.
Every move starts from the digits written before it, so a wrong one is carried to the end, where `data_source=math`
looks.

    python -m verl_ext.demo.rewriting outputs/moves.jsonl --rows 1800
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from verl_ext.run.files import write_atomically
from verl_ext.run.visible import print

STEPS = "abcdefgh"
"""Names of the moves of a sentence; its answer has 48 tokens."""
MOVES = {"L": (1, 0, 2), "R": (0, 2, 1), "T": (1, 2, 0), "V": (2, 1, 0)}
"""Move -> the place that each new digit comes from."""
PROMPT = (
    "Rewrite the digits move by move. L swaps the first two, R swaps the last two, T takes the first to the end, V "
    "turns all three round. Write the digits after each move, then the last ones in a box.\nDigits and moves: {text}"
)

Digits = tuple[int, ...]


class Problem(NamedTuple):
    """Three digits, all different, and a move for each name of STEPS."""

    start: Digits
    moves: str

    @property
    def sentence(self) -> str:
        named = " ".join(f"{name}{move}" for name, move in zip(STEPS, self.moves, strict=True))
        return f"{written(self.start)} {named}"

    def answer(self, states: Sequence[Digits]) -> str:
        """The answer that holds these states, right or wrong, and the last of them in the box."""
        steps = zip(STEPS, self.moves, states, strict=True)
        worked = " ".join(f"{name}{move}={written(state)}" for name, move, state in steps)
        return f"{worked} \\boxed{{{written(states[-1])}}}"

    @property
    def states(self) -> list[Digits]:
        """The right ones."""
        found = [self.start]
        for move in self.moves:
            found.append(moved(found[-1], move))
        return found[1:]


def written(state: Digits) -> str:
    return "".join(map(str, state))


def moved(state: Digits, move: str) -> Digits:
    return tuple(state[place] for place in MOVES[move])


def draw(rng: random.Random) -> Problem:
    return Problem(tuple(rng.sample(range(1, 10), 3)), "".join(rng.choices([*MOVES], k=len(STEPS))))


def problems(rows: int, seed: int) -> list[Problem]:
    """So many different ones."""
    rng, found = random.Random(seed), dict[Problem, None]()
    while len(found) < rows:
        found[draw(rng)] = None
    return list(found)


def write_sentences(file: Path, rows: int, seed: int) -> None:
    """Sentences with the digits that belong in the box as their label, and beside them the prompt, `prompt.txt`."""
    lines = ({"text": each.sentence, "label": written(each.states[-1])} for each in problems(rows, seed))
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(file.with_name("prompt.txt"), PROMPT + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="sentences of the task of rewriting, and its prompt beside them")
    parser.add_argument("file", type=Path, help="file of the sentences, .jsonl")
    parser.add_argument("--rows", type=int, default=1800, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_sentences(options.file, options.rows, options.seed)
    print(f"{options.file}: {options.rows} sentences")


if __name__ == "__main__":
    main()
