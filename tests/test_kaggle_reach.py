"""What a pushed command needs on Kaggle, found or missed before it is pushed."""

from pathlib import Path

import numpy as np
import pytest
from conftest import competition_files, write_folder

from kit.base import KitError, competition
from kit.data import read_slides
from kit.kaggle import Job, Reach, bundle
from kit.kaggle.reach import complete
from kit.kaggle.slides_code import SUFFIX, decode_slides, encode_slides, unpack_slides

ROOT = Path(__file__).parents[1]
BACKBONE = ("--recipe", "backbone")
ARMS = ("--arm", "a=backbone", "--arm", "b=backbone")


def job(*arguments: str) -> Job:
    return Job("train", arguments, "hcd-before", resume=False, hours=1.0)


@pytest.mark.parametrize(
    ("arguments", "reach", "weights"),
    [
        (("--bn", "after"), Reach(), ""),
        ((*BACKBONE, "--no-pretrained"), Reach(), ""),
        (BACKBONE, Reach(internet=True), ""),
        ((*BACKBONE, "--weights", "/kaggle/input/w.pth"), Reach(("a/b",)), ""),
        (BACKBONE, Reach(("a/b",)), "resnet50"),
        ((*BACKBONE, "--model", "vgg11"), Reach(models=("a/b/c/d/1",)), "vgg11"),
        (ARMS, Reach(("a/b",)), "resnet50"),
        ((*BACKBONE, "--model", "local-dir:/kaggle/input/m"), Reach(("a/b",)), ""),
        ((*BACKBONE, "--model", "hf-hub:a/b"), Reach(internet=True), ""),
    ],
)
def test_published_weights_come_from_what_is_mounted(
    arguments: tuple[str, ...], reach: Reach, weights: str
) -> None:
    assert complete(job(*arguments), reach).weights == weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (BACKBONE, "resnet50 would start from published weights.*--internet.*--kaggle-model"),
        (("--pretrained", "--model", "vgg11"), "vgg11 would start from published weights"),
        (ARMS, "resnet50 would start from published weights"),
        (("--slides", "none.csv"), "--slides none.csv: there is no such file here"),
        ((*BACKBONE, "--weights=none.pth"), "--weights none.pth: there is no such file here"),
        (("--teacher", "/kaggle/input/a", "runs/b"), "--teacher runs/b: runs do not go along"),
        (("--refit", "runs/a"), "--refit runs/a: runs do not go along"),
        (("--storage", "postgresql://a"), "--storage: a kernel without internet reaches no"),
        ((*BACKBONE, "--model", "local-dir:m"), "local-dir:m: the folder does not go along"),
        ((*BACKBONE, "--model", "hf-hub:a/b"), "without internet does not reach the hub: push"),
        (("--recipe", "none"), "none"),
    ],
)
def test_what_would_be_missing_there_is_told(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(KitError, match=message):
        complete(job(*arguments), Reach())


@pytest.mark.parametrize("option", ["weights", "slides"])
def test_a_file_that_a_recipe_names_does_not_go_along(tmp_path: Path, option: str) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(f'model = "resnet18"\n{option} = "mine"\n')
    with pytest.raises(KitError, match=f"names a file, mine, .* name it after -- with --{option}"):
        complete(job("--recipe", str(recipe)), Reach())
    (tmp_path / "mine").touch()
    complete(job("--recipe", str(recipe), f"--{option}", str(tmp_path / "mine")), Reach())
    recipe.write_text(f'model = "resnet18"\n{option} = "/kaggle/input/mine"\n')
    complete(job("--recipe", str(recipe)), Reach(("a/b",)))


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        ({"datasets": ("slides",)}, "--dataset slides: give OWNER/NAME"),
        ({"models": ("timm/resnet",)}, "--kaggle-model timm/resnet: give OWNER/MODEL/FRAMEWORK"),
    ],
)
def test_a_name_that_is_none_is_refused(reach: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(KitError, match=message):
        Reach(**reach)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the community's size and form, in an order of its own."""
    rng = np.random.default_rng(0)
    raw = rng.bytes(20 * competition.TRAIN_TILES)
    ids = [raw[start : start + 20].hex() for start in range(0, len(raw), 20)]
    slides = rng.integers(0, 216, len(ids))
    rows = (f"{one},camelyon16_train_normal_{n:03}" for one, n in zip(ids, slides, strict=True))
    path = tmp_path_factory.mktemp("table") / "patch_id_wsi_full.csv"
    path.write_text("\n".join(["id,wsi", *rows, ""]))
    return path


class TestSlides:
    def test_the_whole_table_travels_as_a_number_per_tile(self, table: Path) -> None:
        bare = len(bundle.script(job(), ROOT))
        text = bundle.script(job("--slides", str(table)), ROOT)
        assert len(text) - bare < 290_000
        assert "--slides', '{home}/given/1/patch_id_wsi_full.csv'" in text
        code = encode_slides(table)
        assert code is not None
        lines = table.read_text().splitlines()[1:]
        ids = np.array([line.partition(",")[0] for line in lines])
        decoded = decode_slides(code, ids, source="table").splitlines()
        assert decoded == ["id,slide", *sorted(lines)]
        with pytest.raises(KitError, match="is not a table of the 220,024 training tiles here"):
            decode_slides(code, ids[1:], source="table")

    def test_a_partial_table_is_named_as_such(self, table: Path, tmp_path: Path) -> None:
        part = tmp_path / "patch_id_wsi.csv"
        # So many ids are too many for a script: random, they have 20 bytes each.
        part.write_text("".join(table.read_text().splitlines(keepends=True)[:40_000]))
        with pytest.raises(KitError, match=r"patch_id_wsi_full.csv, travels .* one is partial"):
            bundle.build_kernel(
                tmp_path, job("--slides", str(part)), owner="nobody", repository=ROOT
            )

    def test_a_code_is_unpacked_beside_the_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = competition_files(train=24)
        write_folder(tmp_path, files)
        monkeypatch.setattr(competition, "TRAIN_TILES", 24)
        lines = files["train_labels.csv"].decode().split()[1:]
        ids = [line.partition(",")[0] for line in lines]
        rows = [f"{tile},S{row // 6}" for row, tile in enumerate(ids)]
        table = tmp_path / "table.csv"
        table.write_text("\n".join(["id,wsi", *rows]))
        code = encode_slides(table)
        assert code is not None
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / f"slides.csv{SUFFIX}").write_bytes(code)
        unpack_slides(tmp_path, tmp_path)
        found = read_slides(tmp_path / "given" / "slides.csv", np.array(ids))
        assert found.tolist() == [f"S{row // 6}" for row in range(24)]
