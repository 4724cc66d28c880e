"""Money, by prices that the user states: of hosted tokens, and of rented devices. None is built in (docs/ledger.md)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.ledger.entries import LABELS, Entry
from verl_ext.run.hydra import schema_of
from verl_ext.run.settings import settings_of

MILLION = 1_000_000
HOUR_S = 3600
KINDS = ("sampled", "prefilled", "prefilled_cached", "scored", "trained")


@dataclass(frozen=True)
class TokenPrices:
    """Money for a million tokens of each kind of one model, >= 0; null where it is not stated."""

    sampled: float | None = None
    prefilled: float | None = None
    prefilled_cached: float | None = None
    scored: float | None = None
    trained: float | None = None

    def __post_init__(self) -> None:
        for kind, price in vars(self).items():
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ValueError(f"{kind}={price} must be a number >= 0")


@dataclass(frozen=True)
class Prices:
    """A price table. Costs at hosted and at rented prices are two answers to one question, and are never added."""

    currency: str = "USD"
    """What it is called."""
    student: TokenPrices = field(default_factory=TokenPrices)
    """Of the student's tokens at a host: all but those of labels and scores."""
    teacher: TokenPrices = field(default_factory=TokenPrices)
    """Of the teacher's: labels and scores."""
    device_hour: float | None = None
    """Of one rented device, >= 0; null where it is not stated."""

    def __post_init__(self) -> None:
        if self.device_hour is not None and not (math.isfinite(self.device_hour) and self.device_hour >= 0):
            raise ValueError(f"device_hour={self.device_hour} must be a number >= 0")


def read_prices(path: Path) -> Prices:
    """The table in a YAML file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return settings_of(OmegaConf.merge(schema_of(Prices), OmegaConf.load(path)), Prices)
    except OmegaConfBaseException as error:
        raise ValueError(f"prices={path}: {error.full_key or ''}: {str(error).splitlines()[0]}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"prices={path}: {error}") from error


def hosted(entries: Iterable[Entry], prices: Prices) -> float | None:
    """Money for the tokens; None where the price of a kind that was used is not stated."""
    money = 0.0
    for entry in entries:
        for kind in KINDS:
            count = vars(entry.tokens)[kind]
            side = prices.teacher if entry.phase == LABELS or kind == "scored" else prices.student
            price = vars(side)[kind]
            if count and price is None:
                return None
            money += count * (price or 0.0) / MILLION
    return money


def rented(entries: Iterable[Entry], prices: Prices) -> float | None:
    """Money for the device-seconds; None where the price is not stated, or on how many devices it ran is not known."""
    entries = list(entries)
    if prices.device_hour is None or not all(entry.devices for entry in entries):
        return None
    return sum(entry.device_seconds for entry in entries) / HOUR_S * prices.device_hour
