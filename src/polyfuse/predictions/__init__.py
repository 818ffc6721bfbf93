"""Predictions on disk: files that people have, and a store that never trusts what it holds."""

from polyfuse.predictions.alignment import align as align
from polyfuse.predictions.base import SPACES as SPACES
from polyfuse.predictions.base import TASKS as TASKS
from polyfuse.predictions.base import LabelColumn as LabelColumn
from polyfuse.predictions.base import Predictions as Predictions
from polyfuse.predictions.base import fingerprint as fingerprint
from polyfuse.predictions.npy_files import KINDS as KINDS
from polyfuse.predictions.npy_files import map_array as map_array
from polyfuse.predictions.npy_files import parse as parse
from polyfuse.predictions.npy_files import read as read
from polyfuse.predictions.npy_files import write as write
from polyfuse.predictions.reading import read_labels as read_labels
from polyfuse.predictions.reading import read_predictions as read_predictions
from polyfuse.predictions.spaces import guess_space as guess_space
from polyfuse.predictions.store import PredictionStore as PredictionStore
from polyfuse.predictions.tasks import as_task as as_task
