"""Tables of others, CSV files as people and programs write them: what is plain is read.

What is not plain is refused with file, line and value; nothing is guessed.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from kit.base.errors import KitError
from kit.base.text import shorten

_MARK = "\ufeff"


def read_table(
    content: bytes,
    columns: Sequence[str],
    *,
    source: str,
    exact: bool = False,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Read the named columns of a CSV file as text.

    A byte order mark, any line end, quotes, semicolons or tabs for commas, blank lines, spaces
    around values, capitals in the header, another order of the columns and further columns
    change nothing.

    Parameters
    ----------
    source
        What messages call the file.
    exact
        Take only the plainest form, as a reader that is not ours must be able to read the file,
        too: a header of these columns alone, in this order, with commas and without a byte order
        mark, and no blank lines or spaces. Line ends and quotes are free.
    aliases
        Other names that a column is known by, where its own is not in the header.

    Returns
    -------
    DataFrame
        `columns`, in this order. Its index holds the line of the file on which each row begins.

    Raises
    ------
    KitError
        With the line and the value.
    """
    text = _decode(content, source)
    header = text.splitlines()[0] if text else ""
    known = [(column, *(aliases or {}).get(column, ())) for column in columns]
    delimiter = "," if exact else _delimiter(header, known)
    rows = _rows(text if exact else text.removeprefix(_MARK), delimiter, source, exact=exact)
    _, names = next(rows, (1, []))
    places = _exact_places(names, columns) if exact else _places(names, known)
    if not places:
        wanted = ",".join(columns)
        raise KitError(f"{source} line 1: the header is {shorten(header)!r}, not {wanted!r}")
    table = {
        line: [row[place] if exact else row[place].strip() for place in places]
        for line, row in rows
    }
    return pd.DataFrame(list(table.values()), index=list(table), columns=list(columns), dtype=str)


def require_ids(column: pd.Series, *, source: str) -> pd.Series:
    """Return ids in lower case, each of 40 hex digits and there once.

    Parameters
    ----------
    column
        As `read_table` returns it.
    """
    ids = column.str.lower()
    _refuse(column[~ids.str.fullmatch("[0-9a-f]{40}")], "is not 40 hex digits", source)
    _refuse(column[ids.duplicated()], "is there twice", source)
    return ids


def require_labels(column: pd.Series, *, source: str) -> pd.Series:
    """Return labels as integers, each written as 0 or 1, or 0.0 or 1.0."""
    _refuse(column[~column.str.fullmatch(r"[01](\.0*)?")], "is not 0 or 1", source)
    return column.str[0].astype("int64")


def require_values(column: pd.Series, *, source: str) -> pd.Series:
    """Return a column in which no value is empty."""
    _refuse(column[column == ""], "is empty", source)
    return column


def _decode(content: bytes, source: str) -> str:
    """Return the text of a file in UTF-8, a byte order mark included."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise KitError(
            f"{source} line {line} is not text in UTF-8 (byte {content[error.start]:#04x}): "
            "save the table as CSV in UTF-8"
        ) from error


def _rows(
    text: str, delimiter: str, source: str, *, exact: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield each row, the header first, with the line on which it begins; all as wide as that."""
    line, width = 1, None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if width is None or exact or any(map(str.strip, row)):
                width = len(row) if width is None else width
                if len(row) != width:
                    found = f"{shorten(delimiter.join(row))!r} has {len(row)} values, not {width}"
                    raise KitError(f"{source} line {line}: {found}")
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise KitError(f"{source} line {line} is not CSV: {error}") from error


def _delimiter(header: str, known: Sequence[Sequence[str]]) -> str:
    """Return the delimiter between the columns' names, a comma where none is."""
    plain = header.removeprefix(_MARK).replace('"', "")
    found = [mark for mark in ";\t" if _places(plain.split(mark), known)]
    return found[0] if found else ","


def _exact_places(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    return list(range(len(columns))) if names == list(columns) else []


def _places(names: Sequence[str], known: Sequence[Sequence[str]]) -> list[int]:
    """Return where the columns are in a header, each by the first of its names that is there.

    Nothing unless each is there, and once.
    """
    header = [name.strip().lower() for name in names]
    found = [next((name for name in one if name in header), "") for one in known]
    once = all(header.count(name) == 1 for name in found)
    return [header.index(name) for name in found] if once else []


def _refuse(bad: pd.Series, what: str, source: str) -> None:
    """Name the first bad value by its line, and say how many more there are."""
    if len(bad):
        more = f" ({len(bad) - 1:,} more such lines)" if len(bad) > 1 else ""
        value = shorten(bad.iloc[0])
        raise KitError(f"{source} line {bad.index[0]}: {bad.name} {value!r} {what}{more}")
