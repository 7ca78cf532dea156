import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from kit.base import (
    KitError,
    Recipe,
    RunOptions,
    command,
    parse_options,
    parse_recipe,
    read_recipe,
    recipe_values,
    recipe_words,
)


def parse(*argv: str) -> RunOptions:
    return parse_options(RunOptions, "A command.", argv)


def test_notebook_recipe_is_the_default() -> None:
    assert read_recipe("notebook") == Recipe() == parse().recipe


def test_command_line_comes_after_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('bn = "after"\nbatch_size = 32\nwidths = [8, 16, 32]\nlr = 1\n')
    recipe = parse("--recipe", str(file), "--batch-size", "16").recipe
    assert (recipe.bn, recipe.batch_size, recipe.widths, recipe.lr) == ("after", 16, (8, 16, 32), 1)
    assert parse(f"--recipe={file}").recipe.batch_size == 32


def test_values_survive_json() -> None:
    recipe = Recipe(bn="after", slides=Path("slides.csv"), validate_on=("A",), per_class=None)
    assert parse_recipe(recipe_values(recipe), source="config.json") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo = 1", "unknown key foo"),
        ('bn = "middle"', "bn = 'middle'"),
        ('batch_size = "64"', "batch_size = '64'"),
        ("batch_size = 1", "batch_size = 1"),
        ("lr = inf", "lr = inf"),
        ("holdout = 1.0", "holdout = 1.0"),
        ("crop = 97", "crop = 97"),
        ('validate_on = ["A"]', "give their table"),
        ("pretrained = true", "need a timm model"),
        ('model = "resnet18"\npretrained = true\nweights = "w"', "exclude each other"),
        ("lr = = 1", "not a TOML file"),
        (f"widths = {'[' * 10_000}{']' * 10_000}", "its values are nested too deeply"),
        (f"lr = {'[' * 300}{']' * 300}", "its values are nested too deeply"),
        (
            "seed = 4294967296",
            "seed = 4294967296: Input should be less than or equal to 4294967295",
        ),
    ],
)
def test_bad_recipe_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(KitError, match=message) as caught:
        read_recipe(str(file))
    assert "bad.toml" in str(caught.value)


def test_every_bad_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('foo = 1\nlr = "x"\n')
    with pytest.raises(KitError, match=r"lr = 'x'.*unknown key foo"):
        read_recipe(str(file))


def test_missing_recipe_names_those_that_exist() -> None:
    with pytest.raises(KitError, match=r"no recipe nothing.*notebook"):
        parse("--recipe", "nothing")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "-3"], r"lr = -3\.0: Input should be greater than 0"),
        (["--workers", "-1"], "workers = -1"),
        (["--lr", "x" * 100_000], r"x\[\.\.\. 99,940 more \.\.\.\]x+ has 100,000 characters"),
        (["--model", "resnet18", "--bn", "before"], "--bn has no meaning for --model resnet18"),
        (["--model", "resnet18", "--bn-momentum=0.9"], "--bn-momentum has no meaning"),
    ],
)
def test_bad_option_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(KitError, match=message):
        parse(*argv)


@pytest.mark.parametrize("argv", [["--batchsize", "3"], ["--bn", "middle"], ["--lr", "fast"]])
def test_unknown_option_or_value_ends_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2


@pytest.mark.parametrize("option", ["validate-on", "leave-out"])
def test_a_second_list_of_slides_is_refused(option: str) -> None:
    argv = ["--slides", "slides.csv", f"--{option}", "A", f"--{option}=B"]
    with pytest.raises(KitError, match=f"--{option} is given 2 times: name all slides after one"):
        parse(*argv)


def test_a_command_can_be_typed_whatever_its_words_hold() -> None:
    typed = command("train", "--data", Path("My Drive/it's"), "--epochs", 3)
    assert typed == """python kernels/train.py --data 'My Drive/it'"'"'s' --epochs 3"""
    assert shlex.split(typed)[3] == "My Drive/it's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2**32}, "seed = 4294967296: a seed is a number from 0 to 4294967295"),
        ({"orientations": 8}, "orientations needs the model compact"),
    ],
)
def test_a_recipe_that_cannot_be_is_a_message(change: dict[str, int], message: str) -> None:
    """As when a comparison gives its arms a seed, or an option of the command line."""
    with pytest.raises(KitError, match=message):
        replace(Recipe(), **change)


def test_a_network_of_ones_own_takes_the_place_of_compact(tmp_path: Path) -> None:
    """The recipe's own options of its network then mean nothing, and training stays as it is."""
    own = parse("--recipe", "compact", "--model", f"{tmp_path}/net.py:Net").recipe
    assert (own.model, own.ema) == (f"{tmp_path}/net.py:Net", 0.995)
    assert "orientations" in own.unused_options()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("notebook", {}),
        ("compact", {"seed": 3, "lr": 1e-4, "precision": "fp32"}),
        ("compact", {"slides": Path("a b/s.csv"), "validate_on": ("x y", "z"), "folds": None}),
        ("notebook", {"per_class": None, "widths": (1, 2, 3), "bn": "after"}),
        ("backbone", {"pretrained": False, "weights": Path("w.pth"), "folds": 5, "fold": 2}),
    ],
)
def test_words_of_a_recipe_are_read_as_that_recipe(name: str, changes: dict[str, object]) -> None:
    recipe = replace(read_recipe(name), **changes)  # type: ignore[arg-type]
    words = recipe_words(recipe)
    assert words[:2] == ["--recipe", name]
    assert len([word for word in words if word.startswith("--")]) <= 1 + len(changes)
    assert parse(*words).recipe == recipe


def test_words_leave_out_what_the_model_does_not_use() -> None:
    recipe = Recipe(model="resnet18", bn_momentum=0.5)
    words = recipe_words(recipe)
    assert "--bn-momentum" not in words
    assert parse(*words).recipe == replace(recipe, bn_momentum=0.99)
