"""Text files of users as text, and what they hold as records: JSON, JSON Lines, CSV, parquet.

Text is UTF-8, or what its byte-order mark says. Numbers of JSON stay exact: integers of any size, decimals as written.
"""

import codecs
import csv
import io
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.run.files import reason_of

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MOST_DIGITS = 400
"""Of a number that is written out; a float has 309 at most."""
EXACT_FLOATS = 2**53
"""From here on a float stands for several integers."""


class Record(NamedTuple):
    """One row of a file."""

    place: str
    """File and line, or file and row from 0, for error messages."""
    values: dict[str, Any]


def read_text(path: Path) -> str:
    """A text file without its byte-order mark, line ends as `\\n`.

    Raises:
        ValueError: naming file, line and how to convert it, where it is not UTF-8 and no mark says what it is.
    """
    raw = path.read_bytes()
    name, utf8 = shlex.quote(path.name), shlex.quote(f"utf8-{path.name}")
    mark, encoding = next(((mark, code) for mark, code in BOMS if raw.startswith(mark)), (b"", "utf-8"))
    try:
        text = raw.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1 if encoding == "utf-8" else 1
        raise ValueError(
            f"{path}:{line}: not {encoding.upper()} (byte 0x{raw[len(mark) + error.start]:02X}); convert the file: "
            f"iconv -f CP1252 -t UTF-8 {name} > {utf8} (or from the encoding that it has)"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"{path}:{line}: holds a zero byte, as UTF-16 without a byte-order mark does; convert the file: "
            f"iconv -f UTF-16LE -t UTF-8 {name} > {utf8}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """Its lines. Not splitlines(): it would also break at U+2028, which is legal inside a JSON string."""
    return read_text(path).removesuffix("\n").split("\n")


def records(path: Path) -> list[Record]:
    """The rows of a .jsonl, .json (a list of objects), .csv, .tsv or .parquet file.

    Raises:
        ValueError: naming the file, and the line or row, where it is not one.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(READERS)}")
    return list(READERS[path.suffix](path))


def parse_json(place: str, text: str) -> Any:
    """JSON with exact numbers. ValueError naming `place` where it is none, or no UTF-8 file could hold it."""
    try:
        value = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError, ArithmeticError) as error:  # an exponent that no Decimal takes
        raise ValueError(f"{place}: not JSON: {reason_of(error)}") from None
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: half of a surrogate pair, which no UTF-8 file can hold; take it out") from error
    return value


def value_as_text(place: str, value: Any) -> str:
    """A label or an answer as text, white space around it dropped; "" where it is missing (none, NaN).

    Raises:
        ValueError: naming `place`, where it is no text and no number, or a number that was rounded.
    """
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        if abs(value.adjusted()) > MOST_DIGITS:  # written out, 1e99999999999 fills the memory
            raise ValueError(f"{place} is {value}, a number of more than {MOST_DIGITS} digits; store it as text")
        return f"{value:f}"
    if isinstance(value, float) and abs(value) < EXACT_FLOATS:
        return np.format_float_positional(value, trim="0")
    if isinstance(value, float):
        raise ValueError(f"{place} is {value!r}, a number that was rounded when the file was made; store it as text")
    raise ValueError(f"{place} is {str(value)[:60]}, expected text or a number")


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), 1):
        yield _object(f"{path}:{number}", parse_json(f"{path}:{number}", line))


def _json(path: Path) -> Iterator[Record]:
    text = read_text(path)
    try:
        values = parse_json(str(path), text)
    except ValueError:
        if text.lstrip().startswith("{") and "\n" in text.strip():  # JSON Lines under another name
            yield from _json_lines(path)
            return
        raise
    if not isinstance(values, list):
        raise ValueError(
            f"{path}: expected a list of objects, found {_kind(values)}; one object a line is a .jsonl file"
        )
    for number, value in enumerate(values):
        yield _object(f"{path} row {number}", value)


def _object(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected an object, found {_kind(value)}")
    return Record(place, value)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text"}.get(type(value), str(value)[:40])


def _csv(path: Path) -> Iterator[Record]:
    """With a header line; every value is text, an empty one is missing."""
    reader = csv.reader(io.StringIO(read_text(path)), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header) or not all(header):
            raise ValueError(f"{path}:1: expected a header line that names each column once, found {', '.join(header)}")
        for values in reader:
            place = f"{path}:{reader.line_num}"
            if len(values) != len(header):
                raise ValueError(
                    f"{place}: {len(values)} values for {len(header)} columns; put a value that holds the separator or "
                    "a line break in quotes"
                )
            yield Record(place, {name: value or None for name, value in zip(header, values, strict=True)})
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _parquet(path: Path) -> Iterator[Record]:
    try:
        rows = pq.ParquetFile(path).read().to_pylist()  # read_table imports pandas
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # of a damaged one, Arrow says it in any way
        raise ValueError(f"{path} is no parquet file ({reason_of(error)}); make it again") from None
    for number, row in enumerate(rows):
        yield Record(f"{path} row {number}", row)


READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
