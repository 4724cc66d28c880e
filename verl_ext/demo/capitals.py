"""Rows for a real model: capitals, asked for plainly, and for the teacher after four questions with their answers.

    python -m verl_ext.demo.capitals outputs/capitals

Without the examples an instruct model answers in a sentence, with them in a word, which is what the rows call right.
"""

import argparse
from pathlib import Path
from typing import Any

from verl_ext.data.create import parquet
from verl_ext.run.files import write_atomically
from verl_ext.run.visible import print

CAPITALS = """France Paris,Spain Madrid,Italy Rome,Germany Berlin,Japan Tokyo,China Beijing,Russia Moscow,Greece Athens,
Egypt Cairo,Portugal Lisbon,Austria Vienna,Poland Warsaw,Norway Oslo,Sweden Stockholm,Ireland Dublin,Cuba Havana,
Peru Lima,Kenya Nairobi,Iran Tehran,Thailand Bangkok,Belgium Brussels,Denmark Copenhagen,Turkey Ankara,Iraq Baghdad,
Syria Damascus,Lebanon Beirut,Jordan Amman,Libya Tripoli,Tunisia Tunis,Morocco Rabat,Algeria Algiers,Ghana Accra,
Nigeria Abuja,Senegal Dakar,Sudan Khartoum,Uganda Kampala,Rwanda Kigali,Zambia Lusaka,Angola Luanda,Namibia Windhoek,
India Delhi,Nepal Kathmandu,Bangladesh Dhaka,Pakistan Islamabad,Afghanistan Kabul,Mongolia Ulaanbaatar,Vietnam Hanoi,
Indonesia Jakarta,Philippines Manila,Australia Canberra,Colombia Bogota,Venezuela Caracas,Ecuador Quito,
Jamaica Kingston,Iceland Reykjavik,Estonia Tallinn,Latvia Riga,Lithuania Vilnius,Ukraine Kyiv,Romania Bucharest,
Bulgaria Sofia,Serbia Belgrade,Croatia Zagreb"""
SHOWN = (("Hungary", "Budapest"), ("Canada", "Ottawa"), ("Finland", "Helsinki"), ("Chile", "Santiago"))
HELDOUT_EVERY = 3
"""One country of so many is held out."""


def question(country: str) -> dict[str, str]:
    return {"role": "user", "content": f"What is the capital of {country}?"}


def row(number: int, country: str, capital: str) -> dict[str, Any]:
    """A row as `recipe.create_data` makes them (data/README.md)."""
    turns = [message for shown, name in SHOWN for message in (question(shown), {"role": "assistant", "content": name})]
    split = "train" if number % HELDOUT_EVERY else "heldout"
    return {
        "prompt": [question(country)],
        "teacher_messages": [*turns, question(country)],
        "label": capital,
        "data_source": "capitals",
        "reward_model": {"style": "rule", "ground_truth": capital},
        "extra_info": {"index": number, "split": split, "group": number, "slice": "capitals", "language": "en"},
    }


def write_rows(folder: Path) -> dict[str, int]:
    """Write train.parquet and heldout.parquet; the rows of each."""
    pairs = (pair.split() for pair in CAPITALS.replace("\n", "").split(","))
    rows = [row(number, country, capital) for number, (country, capital) in enumerate(pairs)]
    parts = {name: [each for each in rows if each["extra_info"]["split"] == name] for name in ("train", "heldout")}
    for name, part in parts.items():
        write_atomically(folder / f"{name}.parquet", parquet(part))
    return {name: len(part) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="rows that ask for capitals")
    parser.add_argument("folder", type=Path, help="folder of train.parquet and heldout.parquet")
    options = parser.parse_args()
    print(f"{options.folder}: {write_rows(options.folder)}")


if __name__ == "__main__":
    main()
