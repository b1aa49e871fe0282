"""The Palmer penguins: 344 penguins of three species, measured on three islands.

Measured by Dr. Kristen Gorman and the Palmer Station, Antarctica LTER, and published under CC0 by Horst, Hill and
Gorman (2020); read from the package ``palmerpenguins``. Columns are named as in the well-known Spark lab on these data.
"""

from pathlib import Path

import palmerpenguins
import pandas as pd

SPECIES = {"Adelie": 0, "Gentoo": 1, "Chinstrap": 2}

_COLUMNS = {
    "island": "Island",
    "bill_length_mm": "CulmenLength",
    "bill_depth_mm": "CulmenDepth",
    "flipper_length_mm": "FlipperLength",
    "body_mass_g": "BodyMass",
    "species": "Species",
}


def load() -> pd.DataFrame:
    """Return all penguins, in mm and g; measurements are missing where they were not taken.

    Columns: Island (text), CulmenLength, CulmenDepth, FlipperLength, BodyMass (float), Species (int, see SPECIES).
    """
    penguins = palmerpenguins.load_penguins()[list(_COLUMNS)].rename(columns=_COLUMNS)
    penguins["Species"] = penguins["Species"].map(SPECIES).astype("int64")
    return penguins


def write_csv(path: str | Path) -> str:
    """Write :func:`load` as a CSV file with a header to `path` and return the path."""
    load().to_csv(path, index=False)
    return str(path)
