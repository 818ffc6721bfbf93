"""Test-time augmentation: views of an input, their ways back, and one answer of all of them.

Views are small values with exact inverses; `VIEWS` are their factories by the names that recipes
use, each of which returns a view or a list of them. `TTA` is a model with its views.
"""

from collections.abc import Callable
from typing import Any

from polyfuse.tta.base import Identity as Identity
from polyfuse.tta.base import View as View
from polyfuse.tta.base import as_views as as_views
from polyfuse.tta.callables import Random as Random
from polyfuse.tta.callables import random_views as random_views
from polyfuse.tta.crops import Crop as Crop
from polyfuse.tta.crops import five_crop as five_crop
from polyfuse.tta.crops import multi_crop as multi_crop
from polyfuse.tta.crops import ten_crop as ten_crop
from polyfuse.tta.lists import dihedral as dihedral
from polyfuse.tta.lists import flips as flips
from polyfuse.tta.lists import product as product
from polyfuse.tta.lists import shifts as shifts
from polyfuse.tta.merging import merge_views as merge_views
from polyfuse.tta.module import TTA as TTA
from polyfuse.tta.moves import Flip as Flip
from polyfuse.tta.moves import Shift as Shift
from polyfuse.tta.moves import Turn as Turn
from polyfuse.tta.pixels import Add as Add
from polyfuse.tta.pixels import Multiply as Multiply
from polyfuse.tta.sizes import Letterbox as Letterbox
from polyfuse.tta.sizes import Resize as Resize
from polyfuse.tta.sizes import Scale as Scale
from polyfuse.tta.tasks import TASKS as TASKS
from polyfuse.tta.tasks import Boxes as Boxes
from polyfuse.tta.tasks import Classes as Classes
from polyfuse.tta.tasks import Detections as Detections
from polyfuse.tta.tasks import Keypoints as Keypoints
from polyfuse.tta.tasks import Masks as Masks
from polyfuse.tta.tasks import Numbers as Numbers
from polyfuse.tta.tasks import Task as Task

VIEWS: dict[str, Callable[..., Any]] = {
    "identity": Identity,
    "flip": Flip,
    "turn": Turn,
    "shift": Shift,
    "scale": Scale,
    "resize": Resize,
    "letterbox": Letterbox,
    "crop": Crop,
    "add": Add,
    "multiply": Multiply,
    "random": random_views,
    "flips": flips,
    "dihedral": dihedral,
    "shifts": shifts,
    "five_crop": five_crop,
    "ten_crop": ten_crop,
    "multi_crop": multi_crop,
}
