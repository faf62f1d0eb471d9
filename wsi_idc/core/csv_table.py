"""Read the CSV tables that users write (manifests, splits), and format tables as CSV text."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import regular_file

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@]")
_MAX_BYTES = 100 * 10**6


def read_csv_table(
    path: Path, *, needs: str, aliases: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV table as text: the patient ids "NA" and "007" are not converted.

    The cells are separated by commas, semicolons or tabs. Column names are converted to lower case.
    Spaces around a name or a cell are removed. Blank rows are skipped. A row may have fewer cells
    than there are columns.

    Args:
        path: File to read, in UTF-8 with or without a byte-order mark.
        needs: Names of the required columns, separated by commas.
        aliases: Alternative column names; each key is replaced by its value.

    Returns:
        The column names, and for each row the line number and a dictionary of cells by column.

    Raises:
        DataError: The file cannot be read, a column is missing or occurs twice, or a row has more
            cells than there are columns.
    """
    try:
        with regular_file(path, _MAX_BYTES).open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            names = [column.strip().lower() for column in next(reader, [])]
            header = [aliases.get(name, name) for name in names]
            rows = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a CSV with {needs}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a readable CSV (not UTF-8); save it as CSV UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: not a readable CSV ({reason}); give one with {needs}") from None
    noun = "columns" if "," in needs else "column"
    if not set(needs.split(",")) <= set(header):
        raise DataError(f"{path}: needs the {noun} {needs}; has {','.join(header)!r}")
    for column in filter(None, header):
        if header.count(column) > 1:
            raise DataError(f"{path}: has the column {column!r} twice")
    for line, cells in rows:
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells, but {len(header)} column names; put "
                f"quotation marks around a cell that contains {delimiter!r}"
            )
    stripped = [
        (line, dict(zip(header, map(plain_cell, map(str.strip, cells)), strict=False)))
        for line, cells in rows
    ]
    return header, stripped


def plain_cell(text: str) -> str:
    """Return the text of a cell without the apostrophe that ``csv_text`` adds."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def csv_text(table: "pd.DataFrame", **options: Any) -> str:
    """Return a table as CSV; the keyword arguments ``options`` are passed to ``DataFrame.to_csv``.

    A spreadsheet program runs a cell that begins with =, +, - or @ as a formula. Therefore this
    function adds an apostrophe at the start of such a cell. ``plain_cell`` removes the apostrophe.
    """
    texts = table.select_dtypes(exclude=["number", "bool"])
    escaped = {str(name): values.map(_safe_cell) for name, values in texts.items()}
    return table.assign(**escaped).to_csv(index=False, **options)


def _safe_cell(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
