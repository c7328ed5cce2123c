"""A browser for tests of pages: Debian's package chromium, or another one of its kind."""

from __future__ import annotations

import shutil

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
