"""Starts the keeper from this file's path, with Python's isolated mode and without ``site``.

So nothing but the standard library and this package can be imported, whatever the environment or the current directory
says; the package is found because its folder is put last on the path here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from jobforge_mcp.embedded.keeper import main

    sys.exit(main(sys.argv[1:]))
