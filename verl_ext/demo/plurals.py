"""Rows for a real model: plurals, asked for plainly, and for the teacher after four questions with their answers.

    python -m verl_ext.demo.plurals outputs/plurals.jsonl

Without the examples an instruct model answers in a sentence, with them in a word, which is what the rows call right.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from verl_ext.run.files import write_atomically
from verl_ext.run.visible import print

REGULAR = """ant apple arm army arrow artist author baby badge bag ball balloon banana band bank barrel basket
battery beach bear bed bell belt bench berry bird blanket boat body book boot bottle bowl box boy branch brick
bridge brother brush bucket bug building bus bush button cabbage cable cake camel camera camp candle cap captain car
card carpet carrot castle cat cave chain chair cherry chicken circle city class clock cloud coat coin college comb
cook corner country cousin cow crab cream crown cup curtain daisy day desk diary dictionary dish doctor doll door
dragon drawer dream dress driver drum duck eagle ear editor egg elbow elephant empire enemy engine envelope eye
factory fairy family farm farmer father feather fence ferry field finger fire flag flame flower fly forest fork fox
friend frog fruit garden gate giant gift giraffe girl glass glove goat grape guard guest guitar hammer hand hat hill
hobby horse hospital hotel hour house idea insect island jacket jar jewel judge jug key king kitchen kite kitten
knee ladder lady lake lemon letter library lily lion lock lunch machine map market match melon mirror monkey month
moon mother motor mountain mouth nail neck needle nest night nose number nurse nut ocean office onion orange oven
owl page painter palace pan party patch path peach peanut pear pen pencil picture pig pillow pilot pin pipe pirate
plane planet plant plate pocket poet pond pony pot prince prize pupil puppy queen rabbit radio rat ribbon ring river
road robot rock roof room root rope rose ruler sailor sandwich school sea seat seed shadow ship shirt shoe shop
sister skirt sky snake sock song spider spoon spring spy stamp star station stick stone store storm story stove
stranger stream street student study suit table tail tax teacher temple tent test ticket tiger toe tower town toy
train tree truck turtle uncle valley vase village visitor wagon wall watch wave week well wheel window wing winner
witch word worker year zebra"""
OTHERS = """child children, foot feet, goose geese, knife knives, leaf leaves, man men, mouse mice, potato
potatoes, shelf shelves, thief thieves, tomato tomatoes, tooth teeth, wife wives, wolf wolves, woman women"""
SHOWN = ("dog", "lamp", "wish", "penny")


def plural(noun: str) -> str:
    """English's rule, which all of REGULAR and SHOWN follow."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def question(noun: str) -> dict[str, str]:
    return {"role": "user", "content": f"What is the plural of {noun}?"}


def row(noun: str, answer: str) -> dict[str, Any]:
    """A row as `recipe.create_data source=verl` reads them."""
    shown = [turn for each in SHOWN for turn in (question(each), {"role": "assistant", "content": plural(each)})]
    return {
        "prompt": [question(noun)],
        "teacher_messages": [*shown, question(noun)],
        "data_source": "plurals",
        "reward_model": {"style": "rule", "ground_truth": answer},
    }


def rows() -> list[dict[str, Any]]:
    regular = [row(noun, plural(noun)) for noun in REGULAR.split()]
    others = (pair.split() for pair in OTHERS.replace("\n", " ").split(","))
    return [*regular, *(row(noun, answer) for noun, answer in others)]


def main() -> None:
    parser = argparse.ArgumentParser(description="rows that ask for plurals")
    parser.add_argument("file", type=Path, help="file of the rows, .jsonl")
    options = parser.parse_args()
    found = rows()
    write_atomically(options.file, "".join(json.dumps(each) + "\n" for each in found))
    print(f"{options.file}: {len(found)} rows")


if __name__ == "__main__":
    main()
