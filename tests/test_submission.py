"""The submission file: no ranking is lost in writing, no fault passes in checking."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kit import kaggle
from kit.base import KitError

IDS = [f"{i:040x}" for i in range(0xA0, 0xA5)]
ROWS = [f"{name},0.{i}" for i, name in enumerate(IDS)]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submission") / "submission.csv"


def test_writes_the_competitions_format(path: Path) -> None:
    kaggle.write_submission(path, IDS[:2], [0.25, 1e-9])
    assert path.read_bytes() == f"id,label\n{IDS[0]},0.25\n{IDS[1]},1e-09\n".encode()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_writing_neither_makes_nor_breaks_ties(path: Path, dtype: type) -> None:
    @given(hnp.arrays(dtype, 50, elements=st.floats(0, 1, width=np.finfo(dtype).bits)))
    def keeps_ranks(probabilities: np.ndarray) -> None:
        kaggle.write_submission(path, [f"{i}" for i in range(50)], probabilities)
        read = pd.read_csv(path)["label"]
        pd.testing.assert_series_equal(
            read.rank(), pd.Series(probabilities.astype(float)).rank(), check_names=False
        )

    keeps_ranks()


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    write_lines(path, "old")
    with pytest.raises(ValueError, match="same length"):
        kaggle.write_submission(path, IDS, [0.5])
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_valid_file_is_described(path: Path) -> None:
    kaggle.write_submission(path, IDS, np.array([0.5, 0.25, 0.75, 0.5, 1]))
    assert kaggle.validate_submission(path, IDS) == kaggle.SubmissionSummary(
        rows=5, minimum=0.25, maximum=1, in_order=True, hard=False
    )


def test_quotes_will_do(path: Path) -> None:
    """R quotes all text, the header too."""
    write_lines(path, '"id","label"', *(f'"{name}",0.5' for name in IDS))
    assert kaggle.validate_submission(path, IDS).in_order


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_order_and_line_end_will_do(path: Path, end: str) -> None:
    path.write_bytes(end.join(["id,label", *ROWS[::-1]]).encode())
    assert not kaggle.validate_submission(path, IDS).in_order


def test_hard_labels_are_told(path: Path) -> None:
    kaggle.write_submission(path, IDS, [0, 1, 1, 0, 1])
    assert kaggle.validate_submission(path, IDS).hard


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (ROWS[:-1], "4 rows instead of 5"),
        (ROWS[:-1], f"1 ids are missing: {IDS[4]}"),
        ([], "0 rows instead of 5"),
        ([*ROWS[:-1], "abc,0.5"], "1 unknown ids: line 6: 'abc'"),
        ([*ROWS, ""], "line 7: '' has 0 values, not 2"),
        ([ROWS[0], *ROWS], f"1 ids that are there before: line 3: '{IDS[0]}'"),
        (
            [row.upper() for row in ROWS],
            f"5 ids in upper case (they are lower case): line 2: '{IDS[0].upper()}', line 3: "
            f"'{IDS[1].upper()}', line 4: '{IDS[2].upper()}'",
        ),
        ([*ROWS[:-1], f"{IDS[4]},nan"], "1 labels that are not finite numbers: line 6: 'nan'"),
        ([*ROWS[:-1], f"{IDS[4]},-inf"], "1 labels that are not finite numbers: line 6: '-inf'"),
        ([*ROWS[:-1], f"{IDS[4]},"], "1 labels that are not finite numbers: line 6: ''"),
        ([*ROWS[:-1], IDS[4]], f"line 6: '{IDS[4]}' has 1 values, not 2"),
        ([*ROWS[:-1], f"{IDS[4]},tumour"], "line 6: 'tumour'"),
        ([*ROWS[:-1], f"{IDS[4]},1.001"], "1 labels outside [0, 1]: line 6: '1.001'"),
        ([*ROWS[:-1], f"{IDS[4]},-1e-9"], "1 labels outside [0, 1]: line 6: '-1e-9'"),
        ([*ROWS[:-1], f"{IDS[4]},0,5"], f"line 6: '{IDS[4]},0,5' has 3 values, not 2"),
        ([f"{row},1" for row in ROWS], f"line 2: '{IDS[0]},0.0,1' has 3 values, not 2"),
        ([*ROWS[:-1], f'"{IDS[4]},0.5'], "line 6 is not CSV"),
    ],
)
def test_faults_in_rows_are_refused(path: Path, rows: list[str], problem: str) -> None:
    write_lines(path, "id,label", *rows)
    with pytest.raises(KitError) as error:
        kaggle.validate_submission(path, IDS)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "header",
    ["id;label", "label,id", "Id,Label", "id,label,", "id,probability", "\ufeffid,label", ""],
)
def test_faults_in_the_header_are_refused(path: Path, header: str) -> None:
    write_lines(path, header, *ROWS)
    with pytest.raises(KitError) as error:
        kaggle.validate_submission(path, IDS)
    assert f"line 1: the header is {header!r}, not 'id,label'" in str(error.value)


def test_all_kinds_of_problem_are_told_at_once(path: Path) -> None:
    write_lines(path, "id,label", ROWS[0], ROWS[0], "abc,2", f"{IDS[1].upper()},nan")
    with pytest.raises(KitError) as error:
        kaggle.validate_submission(path, IDS)
    _, *problems, next_step = str(error.value).splitlines()
    assert [problem.split()[1] for problem in problems] == [
        "rows",
        "ids",
        "unknown",
        "ids",
        "ids",
        "labels",
        "labels",
    ]
    assert "kernels/predict.py" in next_step


def test_other_encodings_are_refused(path: Path) -> None:
    path.write_text("id,label\n", encoding="utf-16")
    with pytest.raises(KitError, match="line 1 is not text in UTF-8"):
        kaggle.validate_submission(path, IDS)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"no submission at .*none\.csv"):
        kaggle.validate_submission(tmp_path / "none.csv", IDS)
    with pytest.raises(KitError, match="Is a directory"):
        kaggle.validate_submission(tmp_path, IDS)
