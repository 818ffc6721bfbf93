"""Fusions of boosting get the weights in the members' records, in runs and on new inputs."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from polyfuse.boosted import boosted, takes_weights
from polyfuse.combine import boosted_sum, boosted_vote, mean_logit
from polyfuse.errors import DataError, RecipeError
from polyfuse.members import FIRST_ADDED, Member
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse
from tiny_run import digests, held_out_images, make_recipe

run = partial(module.run, workers=1)


def members(*weights):
    records = ({"index": i, **({} if w is None else {"weight": w})} for i, w in enumerate(weights))
    return [Member(Path("RUN"), record) for record in records]


def test_weights_are_those_of_the_records():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    for combiner in (boosted_sum, boosted_vote, partial(boosted_sum, space="logit")):
        fusion, heard = boosted("it", combiner, members(0.5, 2.0, 0.0))
        assert [member.index for member in heard] == [0, 1, 2]
        np.testing.assert_array_equal(fusion(logits), combiner(logits, weights=[0.5, 2.0, 0.0]))


def test_other_fusions_and_weights_that_are_given_are_left_alone():
    given = partial(boosted_sum, weights=[1, 2])
    for fusion in (mean_logit, given, lambda z: z[0]):
        assert not takes_weights(fusion)
        assert boosted("it", fusion, members(None, None))[0] is fusion


def test_members_that_were_added_are_no_part_of_it():
    added = Member(Path("RUN"), {"index": FIRST_ADDED, "strategy": "foreign", "name": "theirs"})
    fusion, heard = boosted("it", boosted_sum, [*members(1.0, 2.0), added])
    assert [member.index for member in heard] == [0, 1]
    assert fusion.keywords == {"weights": [1.0, 2.0]}
    with pytest.raises(DataError, match="and members that were added have none"):
        boosted("boosted_sum", boosted_sum, [added])


def test_members_without_weights_are_named():
    with pytest.raises(DataError, match=r"^boosted_vote takes .* member 1, member 2 have none: "):
        boosted("boosted_vote", boosted_vote, members(1.0, None, None))
    with pytest.raises(DataError, match="member 4 and 2 more have none"):
        boosted("boosted_vote", boosted_vote, members(*[None] * 7))


# Recipes ----------------------------------------------------------------------------------------


def recipe_of(folder, strategy, fusions, **options):
    """A recipe of a second that boosts."""
    recipe = make_recipe(folder)
    told = ", ".join(f"{key}: {value}" for key, value in options.items())
    text = recipe.read_text()
    text = text.replace("{name: kfold, folds: 2}", f"{{name: {strategy}, {told}}}")
    text = text.replace("epochs: 2", "epochs: 3")
    text = text.replace("fusions: [mean_probability, hard_vote]", f"fusions: [{fusions}]")
    recipe.write_text(text)
    return recipe


CASES = {
    "gradient_boosting": ("boosted_sum", {"rounds": 3, "shrinkage": 0.5}),
    "samme": ("boosted_vote", {"rounds": 2}),
    "soft_boosting": ("boosted_sum", {"members": 2}),
}


@pytest.mark.parametrize("strategy", CASES)
def test_a_recipe_that_boosts_from_end_to_end(strategy, tmp_path):
    name, options = CASES[strategy]
    recipe = recipe_of(tmp_path, strategy, f"{name}, mean_probability", **options)
    found = run(recipe, out=tmp_path / "RUN")
    population, board = found.population, found.scoreboard
    kept = board.row(name)["members"]
    assert kept == [member.index for member in population.for_fusions.members]
    weights = [population.members[i].record["weight"] for i in kept]
    combiner = {"boosted_sum": boosted_sum, "boosted_vote": boosted_vote}[name]
    expected = combiner(population.stack("test")[kept], weights=weights)
    np.testing.assert_allclose(population.said(name, "test"), expected, rtol=1e-5)
    # On new inputs likewise, wherever the folder lies.
    np.save(tmp_path / "new.npy", held_out_images())
    moved = Run((tmp_path / "RUN").rename(tmp_path / "MOVED"))
    said = [answer for _, answer in moved.predict(tmp_path / "new.npy", fusion=name)]
    assert said == [str(c) for c in expected.argmax(-1)]
    # And once more, nothing is done again.
    before = digests(moved.path)
    run(recipe, out=moved.path)
    assert digests(moved.path) == before


def test_the_submission_is_the_boosted_sums_where_it_is_best(tmp_path):
    recipe = recipe_of(tmp_path, "gradient_boosting", "boosted_sum", rounds=4, shrinkage=1.0)
    found = run(recipe, out=tmp_path / "RUN")
    assert found.scoreboard.best == "boosted_sum"
    head, *lines = (tmp_path / "RUN" / "submission.csv").read_text().splitlines()
    assert head == "file_name,file_code"
    read = found.population.said("boosted_sum", "test").argmax(-1)
    assert [line.split(",")[1] for line in lines] == [str(c) for c in read]


def test_weights_may_stand_in_the_recipe(tmp_path):
    recipe = recipe_of(
        tmp_path, "kfold", "{name: boosted_sum, weights: [1.0, 0.5]}, mean_probability", folds=2
    )
    found = run(recipe, out=tmp_path / "RUN")
    total = np.tensordot([1.0, 0.5], found.population.stack("val"), 1)
    answer = found.population.said("boosted_sum", "val")
    np.testing.assert_allclose(answer, special.softmax(total, -1), rtol=1e-5)


def text_of(strategy, fusions):
    return (
        "{name: mine, data: street_digits, model: character_cnn, "
        f"training: {strategy}, fusions: [{fusions}]}}"
    )


def test_a_recipe_whose_members_have_no_weights_is_refused_before_any_training():
    with pytest.raises(RecipeError, match=r"boosted_sum and boosted_vote takes? the weights that"):
        check(parse(text_of("kfold", "boosted_sum, boosted_vote"), "mine.yaml"))
    check(parse(text_of("gradient_boosting", "boosted_sum"), "mine.yaml"))
    check(parse(text_of("kfold", "mean_probability"), "mine.yaml"))


@pytest.mark.parametrize("strategy", CASES)
def test_a_recipe_without_fusions_gets_the_one_that_boosting_ends_with(strategy):
    text = text_of(strategy, "").replace(", fusions: []", "")
    assert [*check(parse(text, "mine.yaml")).for_task("classification").fusions] == [
        CASES[strategy][0]
    ]


def test_averaged_weights_are_fused_with_the_same_weights(tmp_path):
    recipe = recipe_of(tmp_path, "gradient_boosting", "boosted_sum", rounds=2, shrinkage=0.5)
    recipe.write_text(recipe.read_text() + "averaging: {ema: {decay: 0.5}}\n")
    found = run(recipe, out=tmp_path / "RUN")
    averaged = found.population.averaged("ema")
    weights = [member.record["weight"] for member in averaged.members]
    expected = boosted_sum(averaged.stack("val"), weights=weights)
    answer = found.population.said("boosted_sum, ema", "val")
    np.testing.assert_allclose(answer, expected, rtol=1e-5)
