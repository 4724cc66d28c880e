"""How long a server asks to be left alone."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BUSY = (429, 503)
"""Statuses that may come with `Retry-After`: too many requests, not ready."""
USUAL_S, LONGEST_S = 1.0, 60.0


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds of the header `Retry-After`, given as a number or a date; USUAL_S without one, at most LONGEST_S."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError, OverflowError):  # neither, a date without a zone, or no date of this era
            seconds = USUAL_S
    return min(max(seconds, 0.0), LONGEST_S) if seconds == seconds else USUAL_S
