"""What a class is called in SNOMED CT: a small table of common names, and a user's own in a CSV file.

The numbers and words are those of DICOM PS3.16, as pydicom's dictionary of concepts has them; a test compares them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samadapt.types import SamAdaptError

_LIMITS = {"value": 16, "scheme": 16, "meaning": 64}  # characters that DICOM allows


@dataclass(frozen=True)
class Code:
    """A coded concept."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class Meaning:
    """What a structure is: its category, its type, and the side of the body."""

    category: Code
    type: Code
    side: Code | None = None


ANATOMY = Code("91723000", "Anatomical Structure")
ABNORMAL = Code("49755003", "Morphologically Abnormal Structure")
TISSUE = Code("85756007", "Tissue")
SIDES = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}
UNKNOWN = Meaning(TISSUE, TISSUE)

_ANATOMY = {
    "adrenal gland": "23451007",
    "aorta": "15825003",
    "artery": "51114001",
    "bladder": "89837001",
    "blood vessel": "59820001",
    "bone": "272673000",
    "brain": "12738006",
    "breast": "76752008",
    "bronchus": "955009",
    "cerebrospinal fluid": "65216001",
    "colon": "71854001",
    "duodenum": "38848004",
    "esophagus": "32849002",
    "eye": "81745001",
    "femur": "71341001",
    "gallbladder": "28231008",
    "gray matter": "389081007",
    "heart": "80891009",
    "hippocampus": "5366008",
    "inferior vena cava": "64131007",
    "kidney": "64033007",
    "left atrium": "82471001",
    "left ventricle": "87878005",
    "left ventricle myocardium": "49848007",
    "lens": "78076003",
    "liver": "10200004",
    "lung": "39607008",
    "lymph node": "59441001",
    "mandible": "91609006",
    "muscle": "71616004",
    "ovary": "15497006",
    "pancreas": "15776009",
    "parotid gland": "45289007",
    "portal vein": "32764006",
    "prostate": "41216001",
    "rectum": "34402009",
    "rib": "113197003",
    "right atrium": "73829009",
    "right ventricle": "53085002",
    "skin": "39937001",
    "small intestine": "30315005",
    "spinal cord": "2748008",
    "spine": "421060004",
    "spleen": "78961009",
    "stomach": "69695003",
    "thyroid": "69748006",
    "tooth": "38199008",
    "trachea": "44567001",
    "uterus": "35039007",
    "vein": "29092000",
    "vertebra": "51282000",
    "white matter": "389080008",
}
_ABNORMAL = {
    "cyst": "367643001",
    "edema": "79654002",
    "effusion": "41699000",
    "hemorrhage": "50960005",
    "lesion": "52988006",
    "mass": "4147007",
    "necrosis": "6574001",
    "neoplasm": "108369006",
    "nodule": "27925004",
    "pleural effusion": "60046008",
    "pneumothorax": "36118008",
    "tumor": "108369006",
}
_TITLES = {
    "cerebrospinal fluid",
    "gray matter",
    "left ventricle myocardium",
    "lymph node",
    "white matter",
    "blood vessel",
}
#: Other spellings of names in the table.
_SAME = {
    "cancer": "tumor",
    "csf": "cerebrospinal fluid",
    "gall bladder": "gallbladder",
    "grey matter": "gray matter",
    "haemorrhage": "hemorrhage",
    "la": "left atrium",
    "lv": "left ventricle",
    "myo": "left ventricle myocardium",
    "myocardium": "left ventricle myocardium",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "ra": "right atrium",
    "rv": "right ventricle",
    "tumour": "tumor",
    "urinary bladder": "bladder",
}


def _named(name: str) -> str:
    return " ".join(word.capitalize() for word in name.split()) if name in _TITLES else name.capitalize()


def known_meanings() -> dict[str, Meaning]:
    """Every name of the table with its meaning."""
    tables = ((ANATOMY, _ANATOMY), (ABNORMAL, _ABNORMAL))
    return {
        name: Meaning(category, Code(value, _named(name)))
        for category, table in tables
        for name, value in table.items()
    }


def meaning_of(name: str, own: Mapping[str, Meaning]) -> Meaning:
    """The meaning of a class by its name, in any spelling: `own` first, then the table; `UNKNOWN` where neither has it.

    A side ("kidney_left", "Left kidney") is kept apart from what is on it.
    """
    known = {_plain(key): value for key, value in own.items()} | {"": UNKNOWN}
    table = known_meanings() | {alias: known_meanings()[key] for alias, key in _SAME.items()}
    words = _plain(name).split()
    without = [word for word in words if word not in SIDES]
    for spelling in (" ".join(words), " ".join(without)):
        found = known.get(spelling) or table.get(spelling) or table.get(spelling.removesuffix("s"))
        if found and spelling:
            side = next((SIDES[word] for word in words if word in SIDES), None)
            whole = spelling == " ".join(words)
            return found if whole or side is None else Meaning(found.category, found.type, side)
    return UNKNOWN


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def read_codes(path: Path) -> dict[str, Meaning]:
    """A CSV with the columns class, value, meaning and, if other than SCT and the anatomical structure, scheme and category.

    Raises:
        SamAdaptError: a column is missing, or a value is empty or longer than DICOM allows.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SamAdaptError(
            f"--codes {path} cannot be read ({type(error).__name__}); expected a CSV file"
        ) from None
    categories = {"anatomy": ANATOMY, "abnormal": ABNORMAL, "tissue": TISSUE}
    found = {}
    for line, row in enumerate(rows, start=2):
        cells = {
            key: (row.get(key) or "").strip() for key in ("class", "value", "meaning", "scheme", "category")
        }
        cells["scheme"] = cells["scheme"] or "SCT"
        for key in ("class", "value", "meaning"):
            if not cells[key]:
                raise SamAdaptError(
                    f"--codes {path}, line {line}, has no {key}; expected the columns class, value, meaning and perhaps "
                    "scheme and category"
                )
        long = next((key for key, most in _LIMITS.items() if len(cells[key]) > most), None)
        if long:
            raise SamAdaptError(
                f"--codes {path}, line {line}: {long} has {len(cells[long])} characters; DICOM allows {_LIMITS[long]}"
            )
        if cells["category"] not in ("", *categories):
            raise SamAdaptError(
                f"--codes {path}, line {line}: category is {cells['category']!r}; expected one of {', '.join(categories)}"
            )
        code = Code(cells["value"], cells["meaning"], cells["scheme"])
        found[cells["class"]] = Meaning(categories[cells["category"] or "anatomy"], code)
    if not found:
        raise SamAdaptError(f"--codes {path} has no rows; expected the columns class, value and meaning")
    return found
