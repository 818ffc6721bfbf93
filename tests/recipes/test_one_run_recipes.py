"""Several members of one run by recipe: trained, compared, resumed, applied to new inputs."""

import numpy as np
import pytest

from polyfuse import Arrays
from polyfuse.errors import DataError
from polyfuse.recipes.run import run
from tiny_run import digests, held_out_images, make_recipe

MORE = """\
averaging: {ema: {decay: 0.8}}
soups: [uniform_soup]
"""


def recipe_of(folder, training, epochs=4):
    recipe = make_recipe(folder)
    text = recipe.read_text().replace("{name: kfold, folds: 2}", training)
    text = text.replace("epochs: 2", f"epochs: {epochs}").replace(
        "hidden: 8", "hidden: 8, dropout: 0.3"
    )
    recipe.write_text(text.replace("quick: {fit.epochs: 1}", "") + MORE)
    return recipe


def decided(population, row):
    """Return the classes of the test split that the folder keeps for a row."""
    if row["kind"] == "member":
        having = population.averaged(row["average"]) if "average" in row else population
        (member,) = (m for m in having.members if m.index in row["members"])
        return member.predictions("test").argmax(-1)
    said = population.said(row["name"], "test")
    return said if said.dtype.kind in "iu" else said.argmax(-1)


@pytest.mark.parametrize(
    ("training", "members", "averaged"),
    [
        ("{name: snapshot, cycles: 2}", 2, [1]),
        ("{name: mc_dropout, samples: 3}", 3, [0, 1, 2]),
    ],
    ids=["snapshot", "mc_dropout"],
)
def test_from_recipe_to_answers(training, members, averaged, tmp_path):
    recipe, root = recipe_of(tmp_path, training), tmp_path / "RUN"
    done = run(recipe, out=root, workers=1)
    assert len(done.population.members) == members
    names = [row["name"] for row in done.scoreboard.rows]
    assert {"mean_probability", "uniform_soup", "mean_probability, ema"} <= {*names}
    assert done.scoreboard.row("mean_probability, ema")["members"] == averaged
    new = Arrays(held_out_images() / np.float32(255))
    for row in done.scoreboard.rows:
        answers = [int(answer) for _, answer in done.predict(new, fusion=row["name"])]
        assert answers == decided(done.population, row).tolist()
    before = digests(root)
    run(recipe, out=root, workers=1)
    assert digests(root) == before


def test_a_recipe_whose_cycles_do_not_divide_its_epochs_is_refused_before_training(tmp_path):
    recipe = recipe_of(tmp_path, "{name: snapshot, cycles: 3}")
    with pytest.raises(DataError, match="type cycles: 2 or 4, or epochs: 3 or 6"):
        run(recipe, out=tmp_path / "RUN", workers=1)
    assert not [*tmp_path.glob("RUN/members/*")]
