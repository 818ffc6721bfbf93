"""Stacking and blending: meta-models that learn from predictions of rows no member trained on."""

from polyfuse.stacking.blender import Blender
from polyfuse.stacking.features import join_folds
from polyfuse.stacking.stacker import Stacker

__all__ = ["Blender", "Stacker", "join_folds"]
