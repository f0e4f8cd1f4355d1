"""Writes VOTables of every datatype in every encoding, and what astropy reads from them.

usage: votable_against_astropy.py DIRECTORY
Makes NAME.xml files and cases.json: [{file, columns, rows}], values as JSON: NULL, NaN and empty text are null,
infinities "+Inf" and "-Inf", a complex number [re, im].
"""

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
from astropy.io.votable import parse
from astropy.io.votable.tree import Field, Resource, TableElement, VOTableFile

warnings.simplefilter("ignore")
inf, nan = float("inf"), float("nan")

# name, datatype, arraysize, VALUES null, values (None is masked)
COLUMNS = [
    ("flag", "boolean", None, None, [True, False, None, True]),
    ("flags3", "boolean", "3", None, [[True, False, True], [False] * 3, [True] * 3, [False, True, False]]),
    ("flags_any", "boolean", "*", None, [[True], [False, True], [True] * 9, [False] * 4]),
    ("one_bit", "bit", None, None, [True, False, True, False]),
    ("bits12", "bit", "12", None, [[True] * 12, [False] * 12, [True, False] * 6, [False] * 11 + [True]]),
    ("bits_any", "bit", "*", None, [[True, False, True], [True] * 8, [False] * 9, [True]]),
    ("byte", "unsignedByte", None, "255", [0, 254, None, 7]),
    ("bytes_any", "unsignedByte", "*", None, [[1, 2, 3], [255], [0] * 5, [9, 8]]),
    ("short", "short", None, "-32768", [-32767, 32767, None, 0]),
    ("int", "int", None, "-1", [-2147483648, 2147483647, None, 0]),
    ("grid", "int", "2x3", None, [[[1, 2], [3, 4], [5, 6]]] * 4),
    ("pairs_any", "int", "2x*", None, [[[1, 2]], [[1, 2], [3, 4]], [[5, 6], [7, 8], [9, 10]], [[0, 0]]]),
    ("long", "long", None, "-9223372036854775808", [9223372036854775807, -9007199254740993, None, 0]),
    ("char1", "char", None, None, ["a", "Z", "0", "~"]),
    ("char5", "char", "5", None, ["abcde", "ab", "a b", "x"]),
    ("char_max", "char", "8*", None, ["abcdefgh", "", "a<&>b", "x y"]),
    ("char_any", "char", "*", None, ["O'Neil", "", "a & b < c > \"d\"", "two\nlines"]),
    ("unicode_any", "unicodeChar", "*", None, ["é – 星", "", "µJy", "field"]),
    ("unicode3", "unicodeChar", "3", None, ["星星星", "éa", "abc", "x"]),
    ("float", "float", None, None, [0.1, -inf, None, 1.5e-30]),
    ("floats_any", "float", "*", None, [[0.1, 0.2], [nan, 1.0], [3.25], [inf, -inf]]),
    ("double", "double", None, None, [0.1, 59612.5, None, inf]),
    ("double_null", "double", None, None, [-0.45, nan, 1e300, 5e-324]),
    ("doubles3", "double", "3", None, [[0.1, 0.2, 0.3], [1.0, nan, 3.0], [0.0, -0.0, 1e-300], [1, 2, 3]]),
    ("float_complex", "floatComplex", None, None, [1 + 2j, -0.5j, None, 0.1 + 0.2j]),
    ("double_complex", "doubleComplex", None, None, [1 + 2j, 1e300 - 1e-300j, None, 0.1 + 0.2j]),
    ("complexes2", "doubleComplex", "2", None, [[1j, 2], [3 + 4j, 5], [0, 0], [1.5 - 1.5j, -1]]),
]
ROWS = 4
# astropy writes the items of a variable array as wide as they are in memory.
DTYPES = {"boolean": bool, "bit": bool, "unsignedByte": "u1", "int": "i4", "float": "f4"}


def as_json(value, mask, single):
    """A value astropy read, as the JSON that is expected; `single` ones have 32 bits also where they came as text."""
    if isinstance(value, np.ma.MaskedArray):
        value, mask = value.data, np.ma.getmaskarray(value)
    if isinstance(value, (np.ndarray, list, tuple)):
        if len(value) == 0:
            return None
        masks = mask if isinstance(mask, (np.ndarray, list)) and np.shape(mask) else [bool(np.all(mask))] * len(value)
        return [as_json(item, one, single) for item, one in zip(value, masks)]
    if value is None or value is np.ma.masked or bool(np.all(mask)):
        return None
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return value or None
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (complex, np.complexfloating)):
        parts = [number(value.real, single), number(value.imag, single)]
        return None if None in parts else parts
    return number(value, single)


def number(value, single):
    value = float(np.float32(value)) if single else float(value)
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")


def columns(encoding):
    """astropy writes one byte for each bit of a variable array, which VOTable packs: that column goes as text only."""
    return [column for column in COLUMNS if column[0] != "bits_any" or encoding == "tabledata"]


def write(path, encoding):
    document = VOTableFile(version="1.4")
    resource = Resource(type="results")
    document.resources.append(resource)
    table = TableElement(document)
    resource.tables.append(table)
    for name, datatype, arraysize, null, _ in columns(encoding):
        extra = {} if arraysize is None else {"arraysize": arraysize}
        field = Field(document, name=name, datatype=datatype, unit="m" if datatype == "double" else None, **extra)
        table.fields.append(field)
        if null is not None:
            field.values.null = int(null)
    table.create_arrays(ROWS)
    for name, datatype, _, _, values in columns(encoding):
        for row, value in enumerate(values):
            if value is None:
                table.array.mask[name][row] = True
                if not isinstance(table.array[name].data[row], (bool, np.bool_)):
                    table.array.data[name][row] = nan if table.array[name].dtype.kind in "fc" else 0
            elif table.array.dtype[name] == object and isinstance(value, list):
                table.array.data[name][row] = np.ma.array(
                    value, dtype=DTYPES[datatype], mask=np.zeros(np.shape(value), bool)
                )
            else:
                table.array.data[name][row] = value
    table.format = encoding
    document.to_xml(str(path))


def main():
    directory = Path(sys.argv[1])
    cases = []
    for encoding in ["tabledata", "binary", "binary2"]:
        path = directory / f"{encoding}.xml"
        write(path, encoding)
        table = parse(str(path)).get_first_table()
        names = [name for name, *_ in columns(encoding)]
        assert [field.name for field in table.fields] == names
        rows = [
            [
                as_json(table.array.data[name][row], table.array.mask[name][row], datatype.startswith("float"))
                for name, datatype, *_ in columns(encoding)
            ]
            for row in range(len(table.array))
        ]
        cases.append({"file": path.name, "columns": names, "rows": rows})
    (directory / "cases.json").write_text(json.dumps(cases, allow_nan=False))


main()
