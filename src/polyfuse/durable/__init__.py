"""The only folder that writes: what appears is whole, on disk, under its final name, or not there.

Order of a write: temporary name beside the target, reserve the space, write in a loop, fsync,
rename, fsync of the folder. A power cut at any moment leaves the old version or the new one.
Nothing else in polyfuse opens a file for writing; a test holds this.
"""

from polyfuse.durable.base import JSON_LIMIT, Buffer, sync_folder, temporary_name
from polyfuse.durable.drafts import Draft, draft
from polyfuse.durable.files import read_bytes, read_json, remove, write_bytes, write_json
from polyfuse.durable.folders import (
    locked,
    make_folder,
    new_folder,
    remove_folder,
    remove_leftovers,
)

__all__ = [
    "JSON_LIMIT",
    "Buffer",
    "Draft",
    "draft",
    "locked",
    "make_folder",
    "new_folder",
    "read_bytes",
    "read_json",
    "remove",
    "remove_folder",
    "remove_leftovers",
    "sync_folder",
    "temporary_name",
    "write_bytes",
    "write_json",
]
