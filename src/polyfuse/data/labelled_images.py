"""Images with their strings in `labels.csv`: captchas, number plates, any alphabet and length."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from polyfuse.data.base import DIGITS, Splits
from polyfuse.data.faults import Faults, rows_of
from polyfuse.data.image_files import TAR, ImageFiles
from polyfuse.data.listing import Listed, dealt_splits, matched, padded, path_of
from polyfuse.data.looks import CACHE, look
from polyfuse.data.streamed import opened
from polyfuse.errors import DataError, printable

LABELS = "labels.csv"
COLUMNS = ("file_name", "file_code")
NAMED = COLUMNS[:1]  # of a test split that nobody has labelled


def labelled_images(
    *,
    root: str,
    alphabet: str = DIGITS,
    longest: int = 6,
    size: Sequence[int] = (64, 128),
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    cache: int = CACHE,
    exclude: str | None = None,
    report: str | None = None,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Splits:
    """Read images and the strings that `labels.csv` has for them.

    The folder holds `labels.csv`, with the columns `file_name,file_code`, and the images beside it,
    or in a folder `images`, or in `images.tar`. It may instead hold such folders `train` and, where
    you have them, `val` and `test`; the `labels.csv` of `test` may lack the column `file_code`.

    Splits that are not there are dealt out of all images, or of `train`: by a hash of the seed and
    an image's name, so that images which join or leave move no others between the splits.

    Args:
        root: the folder.
        alphabet: all characters that occur, upper and lower case apart; class k is character k, and
            the blank class comes after the last.
        longest: characters at most; positions of the labels.
        size: height and width that images are resized to.
        train: images of the training split; None is all that the others leave.
        val: of the validation split, where it is dealt; None is a fifth.
        test: of the test split, where it is dealt; None is a fifth.
        seed: deals.
        workers: threads that decode; None is as many as there are cores, at most 8.
        cache: megabytes of decoded images that each process keeps.
        exclude: a list of files to leave out, as `report` writes it.
        report: where a list of all faults is written, should there be any.
        notify: called with (images read, images in all).

    Returns:
        Three `StreamedImages`; labels `(n, longest)`, `len(alphabet)` where there is no character.

    Raises:
        DataError: files that are missing, another header, more images asked for than there are;
            everything that is wrong with the images and their strings, all at once.

    Example:
        >>> labelled_images(root="/no/such/folder")
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no '/no/such/folder/labels.csv' and no folder ...
    """
    shown = look(size, "whole", 0.0, workers, cache, longest)
    _check_alphabet(alphabet)
    source, faults = ImageFiles(Path(root)), Faults(Path(root), exclude, report)
    given = {part: _listed(source, part, alphabet, longest, faults) for part in _parts(source.root)}
    counts = {"train": train, "val": val, "test": test}
    splits = dealt_splits(given, counts, seed, faults)
    return opened(source, splits, shown, faults, alphabet=alphabet, notify=notify)


def _parts(root: Path) -> list[str]:
    """Return the folders that are splits, or "" where the root itself has all images."""
    if (root / LABELS).exists():
        return [""]
    parts = [part for part in Splits._fields if (root / part).is_dir()]
    if "train" not in parts:
        raise DataError(
            f"there is no '{printable(root)}/{LABELS}' and no folder 'train' with one; write it, "
            f"with the columns {','.join(COLUMNS)}"
        )
    return parts


def _listed(source: ImageFiles, part: str, alphabet: str, longest: int, faults: Faults) -> Listed:
    """Return the images of one folder with their labels; note what is wrong."""
    header, rows = rows_of(
        source.root / part / LABELS, [COLUMNS, NAMED] if part == "test" else [COLUMNS]
    )
    place = _place(source, part)
    names, labels = [row[0] for row in rows], None
    files = [path_of(place, name) for name in names]
    if len(header) > 1:
        number = {character: k for k, character in enumerate(alphabet)}
        strings = []
        for file, (_, code) in zip(files, rows, strict=True):
            said = _code_fault(code, number, longest)
            if said:
                faults.add(file, *said)
            strings.append([] if said else [number[character] for character in code])
        labels = padded(strings, longest, len(alphabet))
    return Listed(files, names, labels).taken(matched(source, place, names, faults))


def _place(source: ImageFiles, part: str) -> str:
    """Return where a part's images are: `images`, `images.tar`, or beside the labels."""
    inner, root = path_of(part, "images"), source.root
    if not (root / inner).is_dir() and not (root / (inner + TAR)).exists():
        return part
    place, beside = source.place(inner), source.names(part)
    if beside:
        raise DataError(
            f"'{printable(root / part)}' has images beside '{LABELS}', such as "
            f"'{printable(beside[0])}', and '{printable(place)}'; put all in one place"
        )
    return place


def _code_fault(code: str, number: dict[str, int], longest: int) -> tuple[str, str] | None:
    if not 1 <= len(code) <= longest:
        return "number of characters", f"{len(code)}; there must be 1 to {longest}"
    odd = sorted(set(code) - number.keys())
    return ("character", f"not in the alphabet: {' '.join(odd)}") if odd else None


def _check_alphabet(alphabet: str) -> None:
    twice = sorted(c for c, count in Counter(alphabet).items() if count > 1)
    faults = [f"alphabet: '{printable(c)}' is in it twice; keep one" for c in twice]
    if not alphabet.isprintable() or not alphabet or len(alphabet) > 10_000:
        faults.append("alphabet: give 1 to 10,000 characters that can be shown")
    if faults:
        raise DataError("\n".join(faults))
