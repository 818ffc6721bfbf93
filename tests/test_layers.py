"""The house rules, read from the source: imports go down, one door a package, one writer."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# From the bottom up. A file imports from lower floors only; in a folder, also from its base.py,
# and the folder's __init__.py from its files. A folder's name stands for all that is in it.
FLOORS = [
    ["errors"],
    ["boosting", "budget", "checksums", "determinism", "dtypes", "parameters"],
    ["fitting"],
    ["running_losses", "leaks", "swag"],
    ["charts", "combine", "losses", "schedules", "statedict", "tables", "models", "optimizers"],
    ["subspaces"],
    ["diversity", "uncertainty"],
    ["batchnorm", "averaging.base"],
    ["averaging.rules", "averaging.structure", "averaging.shadows"],
    ["averaging.finite", "averaging.offload", "averaging.tracks"],
    ["averaging.alarms", "averaging.states", "averaging.subject"],
    ["averaging.swapping"],
    ["averaging.averages"],
    ["averaging.averaged_model"],
    ["averaging"],
    ["merge.base"],
    ["merge"],
    ["classical", "environment", "solvers"],
    ["durable.base"],
    ["durable.folders", "durable.journals", "durable.staging"],
    ["sequences.base"],
    ["sequences.ballots", "sequences.decoding", "sequences.priors", "sequences.text"],
    ["sequences.correcting"],
    ["sequences", "durable", "terminal", "stochastic"],
    ["remembered"],
    ["digests"],
    ["checkpoints.base"],
    ["checkpoints.archive", "checkpoints.pickle_values", "checkpoints.headers"],
    ["checkpoints.pickle_machine", "checkpoints.views", "checkpoints.boxes"],
    ["checkpoints.pickles"],
    ["checkpoints.torch_zip", "checkpoints.safetensors"],
    ["checkpoints.layouts.base", "checkpoints.nested", "checkpoints.dcp_metadata"],
    ["checkpoints.layouts.torch_file", "checkpoints.layouts.safetensors_file"],
    ["metrics", "checkpoints", "checkpoints.layouts", "records", "selection", "predictions.base"],
    ["predictions.files", "predictions.tables", "predictions.spaces"],
    ["predictions.npy_files", "predictions.csv_files", "predictions.tasks"],
    ["predictions.joining", "predictions.coding", "predictions.entries"],
    ["predictions.writer"],
    ["predictions.npz_files", "predictions.parquet_files", "predictions.torch_tensors"],
    ["predictions.reading", "predictions.alignment", "predictions.store"],
    ["predictions"],
    ["submissions.base"],
    ["submissions.reading", "submissions.contents", "submissions.reference"],
    ["submissions.agreement", "submissions.votes"],
    ["submissions.checking"],
    ["submissions.voting"],
    ["submissions"],
    ["calibration.base", "dynamic_selection.competence", "dynamic_selection.neighbours"],
    ["calibration.curves", "calibration.scaling"],
    ["cross_fitting", "dynamic_selection", "decoding.base"],
    ["decoding.steps", "decoding.decoder"],
    ["decoding.documents"],
    ["decoding"],
    ["calibration", "greedy_selection", "label_errors", "simplex", "thresholds"],
    ["stacking.features", "stacking.folds", "stacking.linear", "stacking.networks"],
    ["stacking.skops_files", "stacking.rows"],
    ["stacking.meta_models"],
    ["stacking.documents", "stacking.layers"],
    ["stacking.stacker"],
    ["stacking.blender"],
    ["stacking"],
    ["fitted_json.checks", "fitted_json.values"],
    ["fitted_json.kinds"],
    ["fitted_json"],
    ["tasks"],
    ["runners.base"],
    ["runners.processes"],
    ["runners"],
    ["data.base"],
    ["data.ahead", "data.arrays", "data.images", "data.statistics"],
    ["data.image_files", "data.faults", "data.looks"],
    ["data.listing"],
    ["data.streamed"],
    ["data.street_numbers.base", "data.street_numbers.hdf5_objects"],
    ["data.street_numbers.digit_struct"],
    ["data.street_numbers"],
    ["data", "scoreboard", "significance"],
    ["data.annotations", "data.drawing"],
    ["failures", "labels", "members"],
    ["boosted", "population", "inference", "start", "advice", "remote"],
    ["ensemble.base"],
    ["ensemble.calibrators", "ensemble.means", "ensemble.members", "ensemble.outputs"],
    ["ensemble.offload", "ensemble.rules", "ensemble.vmapped"],
    ["ensemble.choosing", "ensemble.gathering", "ensemble.looping"],
    ["ensemble"],
    ["tta.base", "tta.box_fusion", "tta.running"],
    [
        "tta.coordinates",
        "tta.callables",
        "tta.moves",
        "tta.outputs",
        "tta.pixels",
        "tta.places",
        "tta.sizes",
    ],
    ["tta.merging", "tta.batching", "tta.crops", "tta.lists", "tta.tasks"],
    ["tta.choosing", "tta.mergers"],
    ["tta.guard", "tta.module"],
    ["tta"],
    ["population_views.base", "population_views.store"],
    ["population_views.merging"],
    ["population_views.choosing"],
    ["population_views"],
    ["row_scores", "population_lengths"],
    ["out_of_fold", "ladder"],
    ["inspection.base"],
    ["inspection.contents", "inspection.distances"],
    ["fit.adversarial", "fit.tracked"],
    ["fit.base"],
    ["fit.devices", "fit.fabric", "fit.progress", "fit.sampling", "fit.stacked"],
    ["fit.logging", "fit.stacked_optimizer"],
    ["fit.training"],
    ["fit.lockstep"],
    ["compare", "fit", "inspection", "checkpoint_sets", "streaming.base"],
    ["combining.base", "combining.naming"],
    ["combining.layout", "combining.reading", "combining.fits", "combining.calibrated"],
    ["combining.documents", "combining.methods", "combining.judging", "combining.submissions"],
    ["combining.saved", "combining.given", "combining.making"],
    ["combining.folder", "combining.summing_up"],
    ["combining.combination"],
    ["combining"],
    ["streaming.treatments", "streaming.provenance", "streaming.compute"],
    ["streaming.plan", "streaming.outputs", "streaming.plain_mean"],
    ["streaming.execution"],
    ["streaming"],
    ["verification"],
    ["weights"],
    ["training.base"],
    ["training.rounds", "training.rows"],
    ["training.joint", "training.together"],
    ["training.one_run"],
    ["soups", "training", "synthesis", "foreign", "foreign_weights"],
    ["fitted_fusions"],
    ["population_fits", "population_decoding.base", "corrections"],
    ["population_decoding.steps", "population_decoding.reading"],
    ["population_decoding.making"],
    ["population_decoding"],
    ["recipes", "recipes.source", "recipes.shipped", "recipes.soups"],
    ["recipes.components", "recipes.fits"],
    ["recipes.decoding", "recipes.views"],
    ["recipes.schema"],
    ["recipes.folder"],
    ["recipes.run"],
    ["recipes.refresh"],
    ["integrations", "adding", "combining_runs"],
    ["cli.base"],
    ["cli.combining_runs", "cli.combining_strings"],
    ["cli.fusing", "cli.synthesis", "cli.combining", "cli.adding"],
    ["cli.runs"],
    ["cli.data"],
    ["cli"],
    [""],  # the contents page
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = {
    ".".join(path.relative_to(SOURCE / "polyfuse").with_suffix("").parts)
    .removesuffix("__init__")
    .removesuffix("."): path
    for path in sorted((SOURCE / "polyfuse").rglob("*.py"))
}
SHARED = {"torch", "numpy"}


@cache
def tree(name):
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def floor(name):
    """Return the floor of a file: its own, or that of the folder it lies in."""
    return FLOOR[name] if name in FLOOR else FLOOR[name.rpartition(".")[0]]


def imported(node):
    """Return the full names that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def own_imports(name):
    """Return the files of polyfuse that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(name)):
        for full in imported(node):
            if full.partition(".")[0] == "polyfuse":
                target = full.partition(".")[2]
                found.add(target if target in FILES else target.rpartition(".")[0])
    return found


def may_import(name, target):
    """Tell whether the house rules let a file import another one."""
    if floor(target) < floor(name):
        return True
    if target == name or floor(target) > floor(name):
        return False
    folder = target.rpartition(".")[0]
    base = target == f"{folder}.base" and name.rpartition(".")[0] == folder
    return bool(folder) and (base or name == folder)


def test_every_file_is_on_a_floor_and_every_floor_is_there():
    assert [
        name for name in FILES if name not in FLOOR and name.rpartition(".")[0] not in FLOOR
    ] == []
    assert [name for name in FLOOR if name not in FILES] == []
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_imports_go_down():
    arrows = [(name, target) for name in FILES for target in sorted(own_imports(name))]
    assert [arrow for arrow in arrows if not may_import(*arrow)] == []


@pytest.mark.parametrize(
    ("name", "target", "allowed"),
    [
        ("fit", "errors", True),
        ("errors", "fit", False),
        ("losses", "models", False),
        ("data.arrays", "data.base", True),
        ("data.base", "data.arrays", False),
        ("data.arrays", "data.augment", False),
        ("data", "data.arrays", True),
        ("data.arrays", "data", False),
        ("runners.local", "data.base", False),
        ("fit", "data", True),
        ("fit", "", False),
    ],
)
def test_the_rule_itself(name, target, allowed):
    assert may_import(name, target) == allowed


def test_there_is_no_circle():
    left = {name: own_imports(name) - {name} for name in FILES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


def without_type_checking(node):
    """Yield all nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from without_type_checking(child)


def test_a_third_party_package_is_imported_in_one_file():
    doors = {}
    for name in FILES:
        for node in without_type_checking(tree(name)):
            for package in {full.partition(".")[0] for full in imported(node)}:
                doors.setdefault(package, set()).add(name)
    own = {*sys.stdlib_module_names, *SHARED, "polyfuse", "__future__"}
    foreign = {package: sorted(names) for package, names in doors.items() if package not in own}
    assert {"sklearn", "lightning_fabric", "safetensors"} <= foreign.keys()
    assert {package: names for package, names in foreign.items() if len(names) > 1} == {}


def says_its_job(name):
    first = (ast.get_docstring(tree(name)) or "").partition("\n")[0]
    return FILES[name].read_text(encoding="utf-8").startswith('"""') and len(first.split()) >= 4


def test_a_file_says_its_job_in_its_first_line_and_stays_small():
    assert [name for name in FILES if not says_its_job(name)] == []
    assert [name for name, path in FILES.items() if path.read_bytes().count(b"\n") > 400] == []


def test_a_file_is_named_after_its_job():
    vague = {"utils", "util", "common", "helpers", "misc"}
    assert [name for name in FILES if vague & set(name.split("."))] == []


SHAPED = {"touch", "mkdir", "rmdir", "unlink", "rename", "symlink_to", "hardlink_to", "write_text"}
SHAPED |= {"write_bytes", "chmod", "save_file", "save_model", "tofile", "memmap"}
SHAPED |= {"mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"}
OF_OS = SHAPED | {"makedirs", "removedirs", "renames", "replace", "remove", "link", "symlink"}
OF_OS |= {"truncate", "ftruncate", "write", "pwrite", "mkfifo"}
OF_ARRAYS = {"save", "savez", "savez_compressed", "savetxt"}
HARMLESS = {"disk_usage", "which", "get_terminal_size"}
CREATING = ("O_CREAT", "O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC")


def opens_for_writing(call, owner):
    """Tell whether `open(...)`, `x.open(...)` or `os.open(...)` may write."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if owner == "os":
        return any(flag in ast.unparse(argument) for argument in arguments for flag in CREATING)
    texts = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes = [text for text in texts if text and set(text) <= set("rwaxbtU+")]
    unknown = owner is None and len(call.args) > 1 and not isinstance(call.args[1], ast.Constant)
    return unknown or any(set(mode) & set("wax+") for mode in modes)


def writes(call):
    """Tell whether a call writes to the disk by itself, not through durable.py."""
    function = call.func
    if isinstance(function, ast.Name):
        bare = SHAPED - {"memmap"} | {"copyfile", "rmtree", "makedirs"}
        return opens_for_writing(call, None) if function.id == "open" else function.id in bare
    if not isinstance(function, ast.Attribute):
        return False
    owner, name = ast.unparse(function.value), function.attr
    if owner == "durable":
        return False
    if name == "open":
        return opens_for_writing(call, owner)
    if owner == "os":
        return name in OF_OS
    if owner == "shutil":
        return name not in HARMLESS
    if owner in ("torch", "np", "numpy") and name in OF_ARRAYS:
        return True
    moved = name == "replace" and len(call.args) == 1 and not call.keywords  # Path.replace
    return name in SHAPED or (moved and owner != "dataclasses")


def is_durable(name):
    return name.partition(".")[0] == "durable"


def written_in(name):
    """Return the calls in a file that write to the disk."""
    calls = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    return [f"{name}, line {c.lineno}: {ast.unparse(c)}" for c in calls if writes(c)]


def test_nothing_but_durable_writes():
    assert [call for name in FILES if not is_durable(name) for call in written_in(name)] == []


def test_durable_itself_is_seen_writing():
    for name in ("durable.files", "durable.folders", "durable.staging"):
        assert len(written_in(name)) >= 3


WRITING = """\
open(p, 'w'); open(p, mode='ab'); open(p, 'x'); open(p, 'r+'); open(p, mode)
p.open('w'); io.open(p, 'wb'); gzip.open(p, 'wt')
os.open(p, os.O_RDWR | os.O_CREAT); os.replace(a, b); p.write_text('a')
p.write_bytes(b); torch.save(a, p); np.save(p, a); np.savez(p, a=a); p.touch()
safetensors.torch.save_file(a, p); save_file(a, p); shutil.move(a, b)
shutil.rmtree(p); p.mkdir(); p.rename(q); p.unlink(); p.replace(q); os.makedirs(p)
a.tofile(p); tempfile.mkstemp(); os.write(1, b)"""
READING = """\
open(p); open(p, 'rb'); p.open(); Population.open(p); os.open(p, os.O_RDONLY)
p.read_text(); durable.write_bytes(p, b); durable.make_folder(p)
text.replace('a', 'b'); replace(a, b=1); shutil.disk_usage(p)
safetensors.torch.save(a); run.save(p); names.remove(a); sys.stdout.write(a)
dataclasses.replace(a, b=1); zipfile.ZipFile(p); np.load(p)"""


@pytest.mark.parametrize("code", WRITING.replace("\n", "; ").split("; "))
def test_writing_is_seen(code):
    assert writes(ast.parse(code, mode="eval").body)


@pytest.mark.parametrize("code", READING.replace("\n", "; ").split("; "))
def test_reading_is_let_pass(code):
    assert not writes(ast.parse(code, mode="eval").body)
