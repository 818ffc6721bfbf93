"""Object stores: no rename, and a death between any two uploads, or in the middle of one."""

import shutil
from functools import partial

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

import polyfuse
import tiny
from polyfuse import LocalRunner, Population, durable
from polyfuse.errors import MissingExtraError, RunError
from polyfuse.remote import Mirror, Mirrored
from tiny_run import digests, make_recipe


class Died(BaseException):
    """Not an Exception: like a kill, nothing inside may catch it."""


class Bucket(MemoryFileSystem):
    """A store without rename, whose client dies at a chosen upload."""

    protocol = "bucket"
    store = {}  # noqa: RUF012  # as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    dies_at, in_the_middle, uploads = None, False, 0

    def mv(self, *paths, **options):
        raise OSError("there is no rename here")

    move = rename = mv

    def pipe_file(self, path, value, **options):
        Bucket.uploads += 1
        if Bucket.uploads == Bucket.dies_at:
            if Bucket.in_the_middle:
                super().pipe_file(path, value[: len(value) // 2], **options)
            raise Died
        super().pipe_file(path, value, **options)


def key(name):
    """Return where the bucket keeps an object."""
    (found,) = [path for path in Bucket.store if path.endswith(f"/runs/1/{name}")]
    return found


def put(name, raw):
    """Write an object as a stranger does."""
    MemoryFileSystem.pipe_file(Bucket(), f"bucket://runs/1/{name}", raw)


@pytest.fixture
def bucket():
    """An empty bucket whose client lives."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    Bucket.dies_at, Bucket.uploads = None, 0
    return Mirror("bucket://runs/1")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A finished run of two folds, with a record of its recipe."""
    root = tmp_path_factory.mktemp("clean")
    tiny.train(root)
    durable.write_json(root / "run.json", {"recipe": {"name": "tiny"}})
    return root


@pytest.mark.parametrize("place", ["bucket", "memory", "file"])
def test_a_population_comes_back_as_it_was(clean, tmp_path, bucket, place):
    there = {"bucket": bucket.address, "memory": "memory://back", "file": f"file://{tmp_path}/up"}
    mirror = Mirror(there[place])
    assert mirror.push(clean) == ["labels", "members/000", "members/001"]
    assert mirror.push(clean) == []
    assert mirror.pull(tmp_path / "RUN") == ["labels", "members/000", "members/001"]
    assert mirror.pull(tmp_path / "RUN") == []
    assert tiny.hashes(tmp_path / "RUN") == tiny.hashes(clean)
    assert len(Population.open(tmp_path / "RUN").stack("val")) == 2


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_death_at_any_upload_leaves_whole_members_only(clean, tmp_path, bucket, in_the_middle):
    bucket.push(clean)
    uploads, whole = Bucket.uploads, tiny.hashes(clean)
    assert uploads > 20
    seen = set()
    for dies_at in range(1, uploads + 1):
        Bucket.store.clear()
        Bucket.dies_at, Bucket.in_the_middle, Bucket.uploads = dies_at, in_the_middle, 0
        with pytest.raises(Died):
            bucket.push(clean)
        Bucket.dies_at = None
        root = tmp_path / str(dies_at)
        parts = bucket.pull(root)
        seen.add(tuple(parts))
        if root.exists():  # what came is whole, and none of it is lost
            assert tiny.hashes(root).items() <= whole.items()
            assert len(Population.open(root).members) == sum("members" in part for part in parts)
        left = [p for p in ["labels", "members/000", "members/001"] if p not in parts]
        assert bucket.push(clean) == left  # the next one goes on
        bucket.pull(root)
        assert tiny.hashes(root) == whole
        shutil.rmtree(root)
    assert seen == {(), ("labels",), ("labels", "members/000")}


def test_two_attempts_with_other_bits_leave_one_of_them_whole(clean, tmp_path, bucket):
    # Not deterministic, as on another kind of processor. The second one has looked before the
    # first one's marker was there, and goes on with its upload after it.
    other = tmp_path / "other"
    data = tiny.splits()
    polyfuse.train(polyfuse.kfold(data.train, folds=2, seed=1), tiny.task(data), other)
    bucket.push(clean)
    markers = [name for name in Bucket.store if name.endswith("member.json")]
    for name in markers:
        del Bucket.store[name]
    bucket.push(other)
    bucket.pull(tmp_path / "RUN")
    there = tiny.hashes(tmp_path / "RUN")
    assert {k: v for k, v in there.items() if k.startswith("members")} == {
        k: v for k, v in tiny.hashes(other).items() if k.startswith("members")
    }


def test_who_comes_second_changes_nothing(clean, tmp_path, bucket):
    bucket.push(clean)
    before = {name: file.getvalue() for name, file in Bucket.store.items()}
    tiny.train(tmp_path, threads=2)  # members with other records
    assert bucket.push(tmp_path) == []
    assert {name: file.getvalue() for name, file in Bucket.store.items()} == before


@pytest.mark.parametrize("how", ["lost", "cut", "changed"])
def test_an_object_that_a_marker_vouches_for_and_is_not_so_is_told(clean, tmp_path, bucket, how):
    bucket.push(clean)
    (name,) = [n for n in Bucket.store if "members/001/" in n and n.endswith("model.safetensors")]
    raw = Bucket.store[name].getvalue()
    del Bucket.store[name]
    if how != "lost":
        put(name.partition("/runs/1/")[2], raw[:-1] if how == "cut" else raw[:-1] + b"!")
    fact = r"members/001/\w{64}/model.safetensors' is missing or was changed; delete everything "
    with pytest.raises(RunError, match=fact + "under members/001/ there"):
        bucket.pull(tmp_path)
    assert [m.index for m in Population.open(tmp_path).members] == [0]


@pytest.mark.parametrize(
    "marker", [b"", b"[1]", b'{"files": {"../../evil": {"bytes": 1, "sha256": "0"}}}', b"\xff"]
)
def test_a_marker_that_is_none_counts_for_nothing(clean, tmp_path, bucket, marker):
    bucket.push(clean)
    for name in ("labels/index.json", "members/000/member.json", "run.json"):
        put(name, marker)
    assert bucket.pull(tmp_path) == ["members/001"]
    assert {path.name for path in tmp_path.iterdir()} <= {"members", "run.json"}


@pytest.mark.parametrize("name", ["..", "three", "003x", ".hidden"])
def test_members_of_strange_names_are_none(clean, tmp_path, bucket, name):
    bucket.push(clean)
    put(f"members/{name}/member.json", Bucket.store[key("members/000/member.json")].getvalue())
    assert bucket.pull(tmp_path) == ["labels", "members/000", "members/001"]


def test_other_data_and_another_recipe_are_refused_before_anything_is_copied(
    clean, tmp_path, bucket
):
    bucket.push(clean)
    before = sorted(Bucket.store)
    tiny.train(tmp_path / "data", tiny.splits(seed=5))
    durable.make_folder(tmp_path / "recipe")
    durable.write_json(tmp_path / "recipe" / "run.json", {"recipe": {"name": "other"}})
    for folder, fact in [
        ("data", "its labels/index.json has another fingerprint"),
        ("recipe", "its run.json has another recipe"),
    ]:
        for act in (bucket.push, bucket.pull):
            with pytest.raises(RunError, match=f"holds another run: {fact}"):
                act(tmp_path / folder)
    assert sorted(Bucket.store) == before
    assert [p.name for p in (tmp_path / "recipe").iterdir()] == ["run.json"]


def test_a_damaged_member_is_not_copied(clean, tmp_path, bucket):
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "members" / "001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="was changed after it was committed"):
        bucket.push(tmp_path)
    assert not any("members/001/member.json" in name for name in Bucket.store)


def test_what_a_store_refuses_is_told(tmp_path, bucket, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(Bucket, "exists", refuse)
    monkeypatch.setattr(Bucket, "glob", refuse)
    with pytest.raises(RunError, match="'bucket://runs/1' refuses: PermissionError: 403 Forbidden"):
        bucket.pull(tmp_path)
    with pytest.raises(RunError, match="'nonsense://x' refuses: ValueError"):
        Mirror("nonsense://x").pull(tmp_path)


def test_a_package_that_an_address_needs_is_named(tmp_path, monkeypatch):
    known = {"class": "no.such.package.Files", "err": "Install nosuch to access nosuch"}
    monkeypatch.setitem(known_implementations, "nosuch", known)
    with pytest.raises(MissingExtraError, match="'nosuch://x' needs a package: Install nosuch"):
        Mirror("nosuch://x").pull(tmp_path)


# Training through a mirror ----------------------------------------------------------------------


class Node(LocalRunner):
    """A runner whose jobs see another RUN folder than this process."""

    def map(self, function, jobs, watch):
        inner = function.keywords["function"]
        there = self.workers_folder
        moved = partial(inner.func, **{**inner.keywords, "root": there})
        keywords = {**function.keywords, "function": moved, "root": there}
        return super().map(partial(function.func, **keywords), jobs, watch)


def test_workers_without_a_common_folder_make_the_same_members(clean, tmp_path, bucket):
    runner = Node()
    object.__setattr__(runner, "workers_folder", tmp_path / "node")
    data, root = tiny.splits(), tmp_path / "RUN"
    plan = polyfuse.kfold(data.train, folds=2)
    mirrored = Mirrored(runner, bucket, root)
    polyfuse.train(plan, tiny.task(data), root, runner=mirrored)
    want = {name: digest for name, digest in tiny.hashes(clean).items() if name != "run.json"}
    assert tiny.hashes(root) == want
    assert sorted(p.name for p in (tmp_path / "node" / "members").iterdir()) == ["000", "001"]
    # Lost here, and found there without training.
    shutil.rmtree(root / "members" / "001")
    told = []
    polyfuse.train(
        plan, tiny.task(data), root, runner=mirrored, watch=lambda *seen: told.append(seen)
    )
    assert [seen[3] for seen in told] == ["done"]
    assert tiny.hashes(root) == want


def test_a_recipe_goes_on_elsewhere_from_its_mirror(tmp_path, monkeypatch):
    recipe, address = make_recipe(tmp_path), f"file://{tmp_path}/bucket"
    polyfuse.run(recipe, out=tmp_path / "one", workers=1, mirror=address)
    monkeypatch.setattr("polyfuse.training.base.fit_member", None)  # whoever trains, fails
    polyfuse.run(recipe, out=tmp_path / "two", workers=1, mirror=address)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    with pytest.raises(RunError, match=r"holds another run: its run.json has another recipe"):
        polyfuse.run(recipe, out=tmp_path / "three", quick=True, workers=1, mirror=address)
