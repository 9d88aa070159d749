"""A labelled dictionary made ready to be browsed: sorted and filtered by any figure, and searched by words."""

from autointerp.browsing.building import build_columns, open_columns
from autointerp.browsing.columns import DictionaryColumns
from autointerp.browsing.querying import Cursor, RowPage, RowQuery, query_rows

__all__ = [
    "Cursor",
    "DictionaryColumns",
    "RowPage",
    "RowQuery",
    "build_columns",
    "open_columns",
    "query_rows",
]
