from __future__ import annotations

from tests.sql.conftest import queue

__all__ = ["queue"]
