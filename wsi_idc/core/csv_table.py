"""Reading of CSV tables that users write: manifests and splits."""

import csv
from pathlib import Path

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import regular_file

_MAX_BYTES = 100 * 10**6


def read_csv_table(path: Path, *, needs: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV table; all cells stay text, such as the patient ids "NA" and "007".

    The cells are separated by commas, semicolons or tabs. Column names may have capitals and spaces
    around them. Blank rows are skipped. Missing cells at the end of a row count as empty.

    Args:
        path: File to read, in UTF-8 with or without a byte-order mark.
        needs: Columns that the table must have, separated by commas, for the error messages.

    Returns:
        The column names in lower case, and for each row its line number and its cells by column.

    Raises:
        DataError: The file cannot be read, a column is missing or is there twice, or a row has more
            cells than there are columns.
    """
    try:
        with regular_file(path, _MAX_BYTES).open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            header = [column.strip().lower() for column in next(reader, [])]
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
                f"{path}, line {line}: {len(cells)} cells under {len(header)} columns; quote a "
                f"cell that has a {delimiter!r}"
            )
    stripped = [
        (line, dict(zip(header, map(str.strip, cells), strict=False))) for line, cells in rows
    ]
    return header, stripped
