"""The table of all runs: what it says of each, and that nothing in a folder costs the table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, Browser, needs_chromium, visit
from conftest import RECIPE, ROOT, Type, edit_config, run_kernel

from kit import runs
from kit.base import KitError


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A finished run, one with other options, one that is not finished, and one of a study."""
    folder = tmp_path / "runs"
    for name in ("one", "two", "stopped", "study/runs/before-1"):
        shutil.copytree(trained, folder / name)
    edit_config(folder / "two", "recipe", "lr", value=0.01)
    edit_config(folder / "two", "recipe", "bn", value="after")
    edit_config(folder / "two", "recipe", "seed", value=4)
    figures = json.loads((folder / "two" / "metrics.json").read_text())
    figures["auc"] |= {"estimate": 0.9, "low": 0.8, "high": 0.95}
    (folder / "two" / "metrics.json").write_text(json.dumps(figures))
    for name in ("metrics.json", "model.safetensors", "valid.csv"):
        (folder / "stopped" / name).unlink()
    history = folder / "stopped" / "history.jsonl"
    history.write_text(history.read_text().splitlines(keepends=True)[0])
    return folder


def table_of(folder: Path) -> pd.DataFrame:
    table = runs.runs_table([folder])
    table["run"] = [str(path.relative_to(folder)) for path in table.index]
    return table.set_index("run")


def test_a_row_says_what_a_run_is_and_how_it_did(place: Path) -> None:
    table = table_of(place)
    assert table.index.tolist() == ["one", "stopped", "study/runs/before-1", "two"]
    one, config = table.loc["one"], runs.read_config(place / "one")
    figures = runs.read_metrics(place / "one")
    assert [one["auc"], one["low"], one["high"]] == [
        figures["auc"][key] for key in ("estimate", "low", "high")
    ]
    assert one["minutes"] * 60 == pytest.approx(
        sum(result.seconds for result in runs.read_history(place / "one"))
    )
    assert (one["state"], one["recipe"], one["holds_out"]) == ("finished", "notebook", "tiles")
    assert (one["tiles"], one["held_out"]) == (config["data"]["train_tiles"], figures["tiles"])
    assert (one["device"], one["kit"], one["seed"]) == ("cpu", config["kit"], 0)
    assert one["changed"] == f"--epochs {RECIPE.epochs} --batch-size {RECIPE.batch_size}"
    two = table.loc["two"]
    assert two["changed"] == f"--bn after {one['changed']} --lr 0.01"
    assert (two["lr"], two["seed"]) == (0.01, 4)
    stopped = table.loc["stopped"]
    assert (stopped["state"], stopped["note"]) == ("unfinished", "epoch 1 of 2")
    assert np.isnan(stopped["auc"])


def test_a_cross_validation_has_a_row_beside_those_of_its_folds(
    trained: Path, tmp_path: Path
) -> None:
    for fold in range(2):
        part = shutil.copytree(trained, tmp_path / "cv" / f"fold-{fold}")
        edit_config(part, "recipe", "folds", value=2)
        edit_config(part, "recipe", "fold", value=fold)
    (tmp_path / "cv" / "fold-1" / "metrics.json").unlink()
    table = table_of(tmp_path)
    assert table["kind"].tolist() == ["cross-validation", "fold", "fold"]
    assert table.loc["cv", "note"] == "1 of 2 folds"
    shutil.copy(trained / "metrics.json", tmp_path / "cv" / "fold-1")
    shutil.copy(trained / "metrics.json", tmp_path / "cv")
    table = table_of(tmp_path)
    assert table["state"].tolist() == ["finished"] * 3
    assert table.loc["cv", "auc"] == table.loc["cv/fold-0", "auc"]
    assert table.loc["cv", "minutes"] == pytest.approx(2 * table.loc["cv/fold-0", "minutes"])


def test_whatever_lies_in_a_folder_costs_its_own_row_alone(place: Path, trained: Path) -> None:
    wrong = {
        "cut": ("metrics.json", b"{"),
        "list": ("config.json", b"[1]"),
        "bytes": ("config.json", bytes(range(256))),
        "nan": ("metrics.json", b'{"tiles": NaN}'),
        "line": ("history.jsonl", b'{"epoch": 7}\n'),
        "deep": ("config.json", b"[" * 100_000),
        "empty": ("history.jsonl", b""),
        "type": ("config.json", b'{"recipe": {"lr": "high"}, "preprocessing": {}, "data": {}}'),
    }
    for name, (file, content) in wrong.items():
        (shutil.copytree(trained, place / name) / file).write_bytes(content)
    for name in ("config.json", "metrics.json", "history.jsonl", "model.safetensors"):
        (shutil.copytree(trained, place / f"no {name}") / name).unlink()
        folder = shutil.copytree(trained, place / f"folder {name}")
        (folder / name).unlink()
        (folder / name).mkdir()
    (place / "ring").symlink_to(place)
    (place / "nowhere").symlink_to(place / "gone")
    os.mkfifo(shutil.copytree(trained, place / "pipe") / "more.json")
    odd = os.fsdecode(os.fsencode(str(place)) + b"/\xff\x1b[2J\n")
    shutil.copytree(trained, odd)
    table = runs.runs_table([place])
    table.index = pd.Index([path.name for path in table.index])
    assert len(table) == 4 + len(wrong) + 2 * 4 + 2
    assert table.loc[["one", "two", "pipe", Path(odd).name], "state"].eq("finished").all()
    broken = [*wrong, "no config.json", "no history.jsonl", "no model.safetensors"]
    assert table.loc[broken, "state"].eq("broken").all(), table.loc[broken, "state"]
    assert (table.loc[broken, "note"] != "").all()
    assert table.loc["no metrics.json", "state"] == "unfinished"
    assert table.loc[Path(odd).name, "run"].endswith(r"\udcff\x1b[2J\n")
    assert "\n" not in "".join(table["run"])


def test_a_run_of_a_later_version_is_said_to_be_one(place: Path) -> None:
    edit_config(place / "two", "recipe", "fancy", value=3)
    edit_config(place / "two", "kit", value="9.1")
    row = table_of(place).loc["two"]
    assert row["state"] == "of version 9.1"
    assert "unknown key fancy" in row["note"]
    assert row["auc"] == 0.9


def test_runs_of_older_versions_are_read(place: Path) -> None:
    config = json.loads((place / "one" / "config.json").read_text())
    for name in ("options", "custom", "kit", "precision", "device"):
        config.pop(name, None)
    config["data"].pop("split")
    for name in ("norm", "keep", "train_tiles", "lora"):
        config["recipe"].pop(name)
    (place / "one" / "config.json").write_text(json.dumps(config))
    row = table_of(place).loc["one"]
    assert (row["state"], row["device"], row["split"], row["keep"]) == ("finished", "", "", "last")


def test_runs_are_chosen_and_sorted(place: Path) -> None:
    table = runs.runs_table([place])

    def names(**options: object) -> list[str]:
        return [path.name for path in runs.choose_runs(table, **options).index]  # type: ignore[arg-type]

    assert names()[0] == "two"
    assert names()[-1] == "stopped"
    assert names(sort="lr")[-1] == "two"
    assert names(sort="lr", reverse=True)[0] == "two"
    assert names(where="auc > 0.85 and recipe == 'notebook'") == ["two"]
    assert names(where="state == 'unfinished'") == ["stopped"]
    assert names(where="held_out > 1 and not standin", sort="run") == ["one", "before-1", "two"]
    assert names(where="lr > 1") == []
    # A short training is not one of no time.
    minutes = runs.shown_table(table.assign(minutes=0.04))["minutes"]
    assert set(minutes) == {"0.04"}
    assert names(sort="weights")  # a column without a value


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("acu > 0.9", "name 'acu' is not defined"),
        ("auc >", "invalid syntax"),
        ("recipe > 3", "not supported"),
        ("auc", "not true or false"),
        ("auc = 0.9", "not true or false"),
        ("__import__('os').remove('x')", "not a supported function"),
        ("@pd.read_csv('x')", "not defined"),
        ("", "empty"),
    ],
)
def test_what_is_no_condition_is_refused(place: Path, where: str, message: str) -> None:
    with pytest.raises(KitError, match=message):
        runs.choose_runs(runs.runs_table([place]), where=where)
    with pytest.raises(KitError, match="--sort acu is no column"):
        runs.choose_runs(runs.runs_table([place]), sort="acu")


def test_the_command_writes_the_table_in_each_format(place: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"table.{ending}" for ending in ("csv", "md", "tex")]
    out = [word for file in files for word in ("--out", file)]
    said = run_kernel("runs", place, "--sort", "run", *out)
    assert "0.9000 [0.8000, 0.9500]" in said
    assert "interval for new tiles of the same slides" in said
    assert "unfinished, epoch 1 of 2" in said
    table, markdown, latex = pd.read_csv(files[0]), files[1].read_text(), files[2].read_text()
    assert table["run"].tolist() == [str(path) for path in runs.runs_table([place]).index]
    assert table["auc"].tolist()[-1] == 0.9
    assert table["lr"].tolist()[-1] == 0.01
    assert len(markdown.splitlines()) == 2 + len(table)
    assert "-{}-lr 0.01" in latex
    assert r"\toprule" in latex


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nowhere", "there is no folder nowhere"),
        ("--out table.xlsx", "written as .csv, .md, .tex"),
        ("--curves one", "name its file with --html"),
        (".", "no runs in ."),
    ],
)
def test_what_cannot_be_listed_is_one_message(
    tmp_path: Path, type_in: Type, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = type_in(f"runs {options}")
    assert status == 1
    assert message in said
    assert said.count("\n") == 1


def test_the_table_needs_no_torch(place: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
        "run_name='__main__'); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(ROOT / "kernels" / "runs.py"), str(place)]
    ended = subprocess.run(
        [*command, "--html", str(place / "p.html")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@needs_chromium
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_leads_to_the_runs_and_lays_curves_over_each_other(
    chromium: Browser, place: Path, tmp_path: Path, type_in: Type, width: int
) -> None:
    moved = place.rename(place.with_name("my runs %41"))
    (moved / "one" / "report.html").write_text("<title>page of one</title>")
    (moved / "study" / "report.html").write_text("<title>page of the study</title>")
    page = tmp_path / "pages" / "runs.html"
    page.parent.mkdir()
    line = f"runs '{moved}' --sort run --html {page}"
    assert type_in(line)[0] == 0
    with visit(chromium, page, width=width) as opened:
        opened.assert_sound()
        assert opened.page.locator("img").count() == 3
        assert opened.page.locator("a").count() == 2
        captions = opened.page.locator("figcaption").all_inner_texts()[1:]
        ends = ["of the weights as they were then" in caption for caption in captions]
        assert ends == [True, True, False], "training losses are means over an epoch"
        for number, title in enumerate(("page of one", "page of the study")):
            opened.page.locator("a").nth(number).click()
            assert opened.page.title() == title
            opened.page.go_back()
    status, said = type_in(f"{line} --curves '{moved}/nothing'")
    assert status == 1
    assert "holds no finished epoch" in said
    assert type_in(f"{line} --curves '{moved}/two'")[0] == 0
