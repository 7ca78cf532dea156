"""Tables as Excel, R, pandas and hands write them: read as meant, or refused with their place."""

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base import KitError, read_table, require_ids, require_labels

A, B, C = "0a" * 20, "b1" * 20, "c2" * 20


def labels(content: bytes) -> dict[str, int]:
    """Read a table of labels as packing does."""
    table = read_table(content, ["id", "label"], source="t.csv")
    ids = require_ids(table["id"], source="t.csv")
    return dict(zip(ids, require_labels(table["label"], source="t.csv"), strict=True))


PLAIN = f"id,label\n{A},0\n{B},1\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.rstrip().encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode("utf-8-sig"),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", " , ").encode(),
        PLAIN.upper().encode(),
        f"{PLAIN}\n\n".encode(),
        f"{PLAIN},\n".encode(),
        f'"id","label"\n"{A}","0"\n"{B}","1"\n'.encode(),
        f'"id";"label"\n"{A}";"0"\n"{B}";"1"\n'.encode("utf-8-sig"),
        f"label,id\n0,{A}\n1,{B}\n".encode(),
        f',id,label,note\n0,{A},0,"one, two"\n1,{B},1,\n'.encode(),
        f"id,label\n{A},0.0\n{B},1.0\n".encode(),
        f"id,label\n{A},0\n{B},1.\n".encode(),
    ],
)
def test_plain_meaning_is_read(content: bytes) -> None:
    assert labels(content) == {A: 0, B: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv line 1: the header is '', not 'id,label'"),
        ("\n" + PLAIN, "t.csv line 1: the header is '', not 'id,label'"),
        (f"{A},0\n{B},1\n", f"t.csv line 1: the header is '{A},0', not 'id,label'"),
        (PLAIN.replace("label", "target"), "line 1: the header is 'id,target'"),
        (PLAIN.replace("id,label", "id,label,label"), "line 1: the header is 'id,label,label'"),
        (PLAIN.replace("id,label", "id;label"), f"line 2: '{A},0' has 1 values, not 2"),
        (f"{PLAIN}{C}\n", f"line 4: '{C}' has 1 values, not 2"),
        (f"{PLAIN}{C},0,1\n", f"line 4: '{C},0,1' has 3 values, not 2"),
        (f"{PLAIN}{C},2\n", "line 4: label '2' is not 0 or 1"),
        (f"{PLAIN}{C},\n{C[::-1]},\n", "line 4: label '' is not 0 or 1 (1 more such lines)"),
        (f"{PLAIN}{C},nan\n", "line 4: label 'nan' is not 0 or 1"),
        (f"{PLAIN}{C},0.5\n", "line 4: label '0.5' is not 0 or 1"),
        (f"{PLAIN}{C},-1\n", "line 4: label '-1' is not 0 or 1"),
        (f"{PLAIN}{C},True\n", "line 4: label 'True' is not 0 or 1"),
        (f"{PLAIN}{C},\u0661\n", "line 4: label '\u0661' is not 0 or 1"),
        (f"{PLAIN}{A},0\n", f"line 4: id '{A}' is there twice"),
        (f"{PLAIN}{A.upper()},0\n", f"line 4: id '{A.upper()}' is there twice"),
        (f"{PLAIN}1.23E+45,0\n", "line 4: id '1.23E+45' is not 40 hex digits"),
        (f"{PLAIN},0\n", "line 4: id '' is not 40 hex digits"),
        (f"{PLAIN}\n{C}.tif,0\n", f"line 5: id '{C}.tif' is not 40 hex digits"),
        (f'{PLAIN}"{C},0\n', "line 4 is not CSV"),
        (f'{PLAIN}"{C}"0,0\n', "line 4 is not CSV"),
        (f"{PLAIN}{C},{'1' * 200_000}\n", "line 4 is not CSV: field larger than"),
        (f"{PLAIN}{C},{'1' * 200}\n", f"line 4: label '{'1' * 45}[... 140 more ...]"),
    ],
)
def test_other_tables_are_refused_with_line_and_value(text: str, message: str) -> None:
    with pytest.raises(KitError, match=re.escape(message)):
        labels(text.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp037"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(KitError, match=r"t\.csv line 1 "):
        labels(PLAIN.encode(encoding))


def test_a_byte_of_another_encoding_is_named_with_its_line() -> None:
    with pytest.raises(KitError, match=r"line 4 is not text in UTF-8 \(byte 0xe9\)"):
        labels(PLAIN.encode() + "é".encode("latin-1"))


def test_lines_are_those_of_the_file_though_values_hold_line_ends() -> None:
    text = f'id,slide\n{A},"one\ntwo"\n\n{B},x\n'
    table = read_table(text.encode(), ["id", "slide"], source="t.csv")
    assert table.index.tolist() == [2, 5]
    assert table["slide"].tolist() == ["one\ntwo", "x"]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", " , ").encode(),
        PLAIN.replace("id,", "ID,").encode(),
        f"{PLAIN}\n".encode(),
        f"label,id\n0,{A}\n1,{B}\n".encode(),
        f"id,label,note\n{A},0,\n{B},1,\n".encode(),
    ],
)
def test_exact_reading_takes_no_other_form(content: bytes) -> None:
    with pytest.raises(KitError, match=r"t\.csv line"):
        table = read_table(content, ["id", "label"], source="t.csv", exact=True)
        # A space is part of its value.
        require_ids(table["id"], source="t.csv")


IDS = st.lists(st.binary(min_size=20, max_size=20).map(bytes.hex), unique=True, max_size=8)


@settings(max_examples=100)
@given(ids=IDS, data=st.data())
def test_every_way_of_writing_a_table_reads_the_same(ids: list[str], data: st.DataObject) -> None:
    """Columns in any order, quotes, delimiters, line ends, capitals and marks change nothing."""
    expected = {tile: data.draw(st.integers(0, 1)) for tile in ids}
    notes = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5)
    names = data.draw(st.permutations(["id", "label", "note"]))
    spell = data.draw(st.sampled_from([str, str.upper]))
    written = data.draw(st.sampled_from(["{}", "{}.0", "{}."]))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(
        buffer,
        names,
        delimiter=data.draw(st.sampled_from(",;\t")),
        quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writeheader()
    for tile, label in expected.items():
        row = {"id": spell(tile), "label": written.format(label), "note": data.draw(notes)}
        writer.writerow(row)
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    assert labels(buffer.getvalue().encode(encoding)) == expected


@settings(max_examples=100)
@given(ids=IDS.filter(len), data=st.data())
def test_one_bad_value_among_good_ones_is_named(ids: list[str], data: st.DataObject) -> None:
    rows = [[tile, "1"] for tile in ids]
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, 1))
    good = re.compile(["[0-9a-fA-F]{40}", r"[01](\.0*)?"][column])
    values = st.text("0123456789abcdefxyz.-+e", max_size=41)
    rows[row][column] = data.draw(values.filter(lambda value: not good.fullmatch(value)))
    content = pd.DataFrame(rows, columns=["id", "label"]).to_csv(index=False).encode()
    value = re.escape(repr(rows[row][column]))
    with pytest.raises(KitError, match=f"line {row + 2}: (id|label) {value} is not"):
        labels(content)


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text('id,label;\t"\r\n01.\ufeff', max_size=60).map(str.encode))
def test_whatever_the_bytes_they_are_read_or_refused(content: bytes) -> None:
    for prefix in (b"", b"id,label\n"):
        try:
            read = labels(prefix + content)
        except KitError as error:
            assert "t.csv line" in str(error)
        else:
            assert set(read.values()) <= {0, 1}


@pytest.mark.parametrize(
    "text",
    [f"id,wsi\n{A},a", f"WSI;ID\na;{A}", f"slide\tid\twsi\na\t{A}\tb", f"wsi,id,slide\nb,{A},a"],
)
def test_a_column_is_found_by_another_name_it_is_known_by(text: str) -> None:
    aliases = {"slide": ["wsi"]}
    table = read_table(text.encode(), ["id", "slide"], source="t.csv", aliases=aliases)
    assert table.to_numpy().tolist() == [[A, "a"]]


@pytest.mark.parametrize("header", ["id,wsi,wsi", "id,wsis", "wsi,slide", "id,slide,slide,wsi"])
def test_a_column_that_is_there_twice_or_never_is_refused(header: str) -> None:
    with pytest.raises(KitError, match=f"the header is '{header}', not 'id,slide'"):
        read_table(header.encode(), ["id", "slide"], source="t", aliases={"slide": ["wsi"]})
