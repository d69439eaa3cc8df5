"""Names of schemas, one for each test's store."""

from __future__ import annotations

import itertools

NUMBERS = itertools.count()
