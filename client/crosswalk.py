"""From the patient numbers of the hospital to those of de-identified images, without keeping the former.

    crosswalk.csv   a check of the site's secret; then one line a patient: keyed hash of the original number, and the
                    de-identified number

A list of patients holds original numbers, as those who withdraw consent are known by them; the images hold others. The hash is
keyed with the site's secret (`split.key`), so the file alone leads from nobody to nobody.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from excise.client.database import exclusively
from excise.client.keyed import check, check_of, keyed
from excise.common.errors import DataError
from excise.common.files import write_atomically
from excise.common.predicate import fold


class Crosswalk:
    """The crosswalk of one site; empty where there is none.

    Raises
    ------
    DataError : its file was damaged, or is of another secret
    """

    def __init__(self, folder: Path, secret: str) -> None:
        self.path, self._secret = folder / "crosswalk.csv", secret
        self._read()

    def _read(self) -> None:
        self._patients: dict[str, set[str]] = {}
        if not self.path.exists():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                lines = csv.reader(file)
                _, told = next(lines, ("", ""))
                for original, patient in lines:
                    self._patients.setdefault(original, set()).add(patient)
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{self.path} is damaged ({error}): put it back from your backup") from error
        check(told, self._secret, self.path)

    def __len__(self) -> int:
        return sum(map(len, self._patients.values()))

    def resolve(self, values: frozenset[str]) -> frozenset[str]:
        """`values`, and the de-identified numbers of those that are original ones."""
        return values.union(*(self._patients.get(self._keyed(value), set()) for value in values))

    def add(self, pairs: list[tuple[str, str]]) -> int:
        """Enter pairs of an original and a de-identified number; returns how many are new.

        Raises
        ------
        StorageError : it cannot be written; what it held stays
        """
        with exclusively(self.path):
            self._read()  # somebody else may have entered some
            before = len(self)
            for original, patient in pairs:
                self._patients.setdefault(self._keyed(original), set()).add(patient.strip())
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            lines.writerow(("check", check_of(self._secret)))
            lines.writerows(
                (original, patient) for original, patients in sorted(self._patients.items()) for patient in sorted(patients)
            )
            write_atomically(self.path, text.getvalue())
            return len(self) - before

    def _keyed(self, original: str) -> str:
        return keyed(self._secret, fold(original))


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """A CSV with the columns ``original`` and ``patient``.

    Raises
    ------
    DataError : it cannot be read, lacks a column, or holds an empty number; says in which line
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"original", "patient"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} lacks the column {', '.join(sorted(missing))}; it has {reader.fieldnames}")
            pairs = []
            for row in reader:
                original, patient = (row["original"] or "").strip(), (row["patient"] or "").strip()
                if not original or not patient:
                    raise DataError(f"{path} has an empty number in line {reader.line_num}")
                pairs.append((original, patient))
            return pairs
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"no readable crosswalk at {path}: {error}") from error
