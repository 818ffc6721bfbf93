"""Lists of views: products, as of flips and quarter turns, and the lists that recipes name."""

from collections.abc import Iterable
from itertools import product as combinations

from polyfuse.tta.base import Identity, View, as_views, in_turn
from polyfuse.tta.moves import Flip, Shift, Turn


def product(*lists: View | Iterable[View]) -> list[View]:
    """Return every combination of one view of each list, in the order of the lists.

    Args:
        *lists: of views; a single view is a list of one.

    Raises:
        DataError: no view, two combinations of one name.

    Example:
        >>> [view.name for view in product([Identity(), Flip()], [Identity(), Turn(2)])]
        ['identity', 'turn-quarters=2', 'flip-horizontal', 'flip-horizontal+turn-quarters=2']
    """
    each = [as_views(views) for views in lists]
    return as_views([in_turn(parts) for parts in combinations(*each)])


def flips() -> list[View]:
    """Return the image, its mirror images left to right and up to down, and both at once.

    Example:
        >>> len(flips())
        4
    """
    return product([Identity(), Flip()], [Identity(), Flip("vertical")])


def dihedral() -> list[View]:
    """Return the eight ways to lay a square: quarter turns of the image and of its mirror image.

    Example:
        >>> len(dihedral())
        8
    """
    return product([Identity(), Flip()], [Identity(), Turn(1), Turn(2), Turn(3)])


def shifts(across: int = 1, down: int = 1, *, fill: float | None = None) -> list[View]:
    """Return the image, and the image moved to all eight sides.

    Args:
        across: pixels to the left and right; 0 for none.
        down: pixels up and down; 0 for none.
        fill: of what is laid bare; None repeats the edge.

    Example:
        >>> len(shifts(2, 1)), len(shifts(2, 0))
        (9, 3)
    """
    moved: list[View] = [Identity()]
    for y in sorted({-down, 0, down}):
        for x in sorted({-across, 0, across}):
            if x or y:
                moved.append(Shift(x, y, fill))
    return moved
