from __future__ import annotations

import textwrap
from dataclasses import fields
from pathlib import Path

import pytest

from onnxslim.commands.compress import command as compress
from onnxslim.errors import UsageError
from onnxslim.pipeline import recipe
from onnxslim.pipeline.data_settings import SETTINGS, DataSettings
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.recipe import GOALS, Recipe, load_recipe, parse_recipe
from onnxslim.records import OutputKind


def examples() -> list[str]:
    """The indented blocks of the module's docstring that are TOML."""
    blocks: list[list[str]] = [[]]
    for line in (recipe.__doc__ or "").splitlines():
        if line.startswith("    "):
            blocks[-1].append(line)
        elif line.strip():
            blocks.append([])
    return [textwrap.dedent("\n".join(block)) for block in blocks if any(block)]


def test_example_of_the_documentation_is_read_as_it_says(tmp_path: Path) -> None:
    text = examples()[0].replace("simplify,prune-channels:ratio=0.3", "simplify")
    assert parse_recipe(text, tmp_path) == Recipe(
        passes=parse_pipeline("simplify"),
        calib=str(tmp_path / "samples.npz"),
        eval=str(tmp_path / "labelled.npz"),
        train=str(tmp_path / "more.npz"),
        target="openvino",
        goal="both",
        force=False,
        verify=True,
        latency=True,
        strict=False,
        threads=2,
        seed=0,
        max_drop=0.5,
        min_agreement=0.99,
        min_sqnr=30.0,
        min_cosine=0.99,
        min_row_cosine=0.9,
        max_kl=0.1,
        max_row_kl=3.0,
        floor=True,
        data=DataSettings(
            map={"image": "pixels", "label": "class"},
            preset="imagenet",
            image_size=(224, 224),
            tokenizer=str(tmp_path / "tokenizer.json"),
        ),
        output_kinds={"logits": OutputKind.CLASSES},
        input_shapes={"data": (1, 3, 224, 224)},
    )


def test_example_with_tables_gives_the_same_as_text() -> None:
    text = examples()[1].replace("prune-channels", "simplify")
    text = text.replace("ratio = 0.3", 'skip = ["eliminate-identity"]')
    assert parse_recipe(text).passes == parse_pipeline("simplify,simplify:skip=eliminate-identity")


def test_function_is_no_path() -> None:
    assert parse_recipe('calib = "my_data:samples"', Path("there")).calib == "my_data:samples"
    assert parse_recipe('calib = "/data/a.npz"', Path("there")).calib == "/data/a.npz"


def test_empty_recipe_says_nothing() -> None:
    assert parse_recipe("") == Recipe()


def test_both_names_of_a_source_mean_the_same() -> None:
    assert parse_recipe('calibration = "a.npz"\nevaluation = "b.npz"') == parse_recipe(
        'calib = "a.npz"\neval = "b.npz"'
    )
    with pytest.raises(UsageError, match="`calib` and `calibration` mean the same"):
        parse_recipe('calib = "a.npz"\ncalibration = "b.npz"')


def test_settings_of_data_are_completed_by_the_recipe() -> None:
    given = Recipe(data=DataSettings(preset="none", map={"x": "a"}))
    below = parse_recipe('[data]\npreset = "imagenet"\nmap = "x=b,y=c"\nscale = "1/255"')
    assert given.over(below).data == DataSettings(
        preset="none", map={"x": "a", "y": "c"}, scale=1 / 255
    )
    with pytest.raises(UsageError, match=r"`image_siz` is no setting.* mean `image-size`"):
        parse_recipe("[data]\nimage_siz = 3")


def test_command_line_wins_over_the_recipe() -> None:
    given = Recipe(seed=7, verify=False, input_shapes={"a": (1, 2)})
    below = Recipe(seed=1, threads=4, verify=True, input_shapes={"a": (9, 9), "b": (3,)})
    assert given.over(below) == Recipe(
        seed=7, threads=4, verify=False, input_shapes={"a": (1, 2), "b": (3,)}
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed = ", "not valid TOML"),
        ("sede = 1", "has no key `sede`. Did you mean `seed`? It takes"),
        ("[floors]\nmax-drp = 1", "`floors` has no key `max-drp`. Did you mean `max-drop`?"),
        ("floors = 3", "`floors` must be a table"),
        ("[floors]\nmax-drop = 101", "`max-drop` must be a number in [0, 100]; got 101"),
        ("[floors]\nmin-agreement = nan", "`min-agreement` must be a number in [0, 1]; got nan"),
        ("[floors]\nmin-sqnr = true", "`min-sqnr` must be a number at least 0; got True"),
        ("seed = 1.5", "`seed` must be an integer"),
        ("seed = -1", "`seed` must be a number in [0, "),
        ("threads = 0", "`threads` must be a number at least 1; got 0"),
        ("threads = true", "`threads` must be a number at least 1; got True"),
        ('goal = "speed"', "`goal` must be one of both, latency, bytes; got 'speed'"),
        ('verify = "yes"', "`verify` must be true or false; got 'yes'"),
        ("calib = 3", "`calib` must be a path or module:function; got 3"),
        ("passes = 3", "`passes` must be text or an array of tables; got 3"),
        ("passes = []", "The pipeline is empty"),
        ("[[passes]]\nskip = []", "needs a name"),
        ('passes = "simplfy"', "Did you mean `simplify`?"),
        ('[[passes]]\nname = "simplify"\nskp = []', "no option `skp`. Did you mean `skip`?"),
        ('[[passes]]\nname = "simplify"\nskip = ["x"]', "names `x`, which is none of its passes"),
        ("[input-shapes]\nx = [1, 0]", "shape of input `x` must be a list of positive integers"),
        ("[input-shapes]\nx = 3", "shape of input `x` must be a list of positive integers"),
    ],
)
def test_bad_recipe_gets_its_own_message(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(text)
    assert part in str(caught.value)


def test_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("sede = 1")
    with pytest.raises(UsageError, match=r"Recipe `.*run.toml`: A recipe has no key `sede`"):
        load_recipe(path)


def test_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(tmp_path / "none.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_recipe(path)


def test_goals_are_those_of_the_policy() -> None:
    assert tuple(goal.value for goal in Goal) == GOALS


# of one run: where it writes, what it shows; the pipeline and its proof need none of them
OF_ONE_RUN = {
    *("cache", "explain", "junit", "model_card", "models", "named_output", "out_dir", "overwrite"),
    *("provenance", "recipe", "report", "trace", "verify_with"),
}


def test_every_option_that_a_pipeline_needs_is_a_documented_key() -> None:
    options = {str(option.name) for option in compress.params} - OF_ONE_RUN - {"quiet", "verbose"}
    other_words = {"evaluation": "eval"}
    keys = {item.name for item in fields(Recipe)} - {"data"}
    assert {other_words.get(name, name) for name in options - set(SETTINGS)} == keys
    table = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for name in keys:
        assert f"`{name.replace('_', '-')}" in table.replace("floors.", "")
