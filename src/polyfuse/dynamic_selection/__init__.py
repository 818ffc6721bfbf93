"""Choose or weigh members sample by sample, by what they got right on the nearest held-out rows."""

from polyfuse.dynamic_selection.selection import DynamicSelection

__all__ = ["DynamicSelection"]
