"""What was fitted as JSON and back: exact, without pickle, and safe to read from strangers."""

from polyfuse.fitted_json.documents import from_document, to_document
from polyfuse.fitted_json.kinds import KINDS, Kind
from polyfuse.fitted_json.values import StoredFunction

__all__ = ["KINDS", "Kind", "StoredFunction", "from_document", "to_document"]
