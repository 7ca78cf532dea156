"""JSON files of others: read with their types, or refused by key and value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kit.base import KitError, read_json, write_json


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...]
    weights: dict[str, float]


GOOD = {"name": "a", "sizes": [1, 2], "weights": {"x": 0.5, "y": 1}}


def test_values_of_the_right_types_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", GOOD | {"more": None})
    assert read_json(tmp_path / "a.json", Part, what="a part") == Part(
        "a", (1, 2), {"x": 0.5, "y": 1.0}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name = 3: Input should be a valid string"),
        ({"name": None}, "name = None: Input should be a valid string"),
        ({"sizes": "12"}, "sizes = '12': Input should be a valid array"),
        ({"sizes": [1, "2"]}, "sizes.1 = '2': Input should be a valid integer"),
        ({"weights": {"x": "y" * 10**7}}, "[... 9,999,942 more ...]yyyy"),
        ({"weights": []}, "weights = []: Input should be an object"),
    ],
)
def test_values_of_other_types_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, GOOD | change)
    with pytest.raises(KitError) as caught:
        read_json(path, Part, what="a part")
    assert f"{path} is not a part: " in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff", '{"name": "a"}'])
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(KitError, match=r"a\.json is not a part: "):
        read_json(path, Part, what="a part")
    with pytest.raises(KitError, match=r"cannot read .*b\.json: No such file"):
        read_json(tmp_path / "b.json", Part, what="a part")
