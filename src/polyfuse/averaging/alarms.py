"""What is said, and done, about NaN and infinity in weights and in their averages."""

import warnings
from collections.abc import Mapping

from polyfuse.averaging.finite import Lookout, not_finite
from polyfuse.averaging.structure import some
from polyfuse.averaging.tracks import Track
from polyfuse.errors import TrainingError, printable


class Alarm:
    """Looks at weights and averages, and complains as it was told to.

    Args:
        policy: "error", "warn", or "ignore", which does not look.
    """

    def __init__(self, policy: str) -> None:
        """Nothing was seen yet."""
        self._policy = policy

    def lets_pass(self, lookout: Lookout, tracks: Mapping[str, Track], step: int) -> bool:
        """Tell whether an update may take the weights in.

        Raises:
            TrainingError: NaN or infinity; the parameters are named.
        """
        if self._policy == "ignore" or lookout.all_well():
            return True
        hurt = [name for name, track in tracks.items() if _bad(track)]
        late = f"; {some(hurt)} took it in before, go back to a saved state" if hurt else ""
        self._complain(
            f"NaN or infinity in the weights {some(lookout.found())} at step {step:,}; averages "
            f"leave out this update{late}; lower the learning rate, or clip gradients"
        )
        return False

    def check(self, name: str, track: Track) -> None:
        """Look at an average before it is given away.

        Raises:
            TrainingError: it holds NaN or infinity.
        """
        if self._policy != "ignore" and (found := _bad(track)):
            self._complain(
                f"the average '{printable(name)}' holds NaN or infinity in {some(found)}, as the "
                "weights did in one of the last updates; go back to a saved state of the averages"
            )

    def _complain(self, message: str) -> None:
        if self._policy == "error":
            raise TrainingError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)


def _bad(track: Track) -> list[str]:
    """Return the names of an average's tensors that hold anything but numbers."""
    rows = track.rows() if track.updates else []
    return sorted({name for row in rows for name in not_finite(row)})
