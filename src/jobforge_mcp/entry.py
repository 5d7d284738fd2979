"""The console scripts ``jobforge`` and ``jobforge-mcp``.

Without any argument this is what an MCP client starts once per chat: the bridge, which imports nothing but the standard
library. Everything else is the command line's. Nothing may be imported here before that is decided.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Pump bytes to the local node when nothing was asked for; else run the command line."""
    if not sys.argv[1:]:
        if _uses_node():
            from jobforge_mcp.local import bridge

            return bridge.main()
        sys.argv.append("serve")
    from jobforge_mcp import cli

    return cli.main() or 0


def _uses_node() -> bool:
    """Tell whether stdio goes through the local node: it does unless that is switched off or there are no Unix sockets."""
    if sys.platform == "win32":
        return False
    asked = os.environ.get("JOBFORGE_NODE")
    if not asked:
        from jobforge_mcp.local import place

        asked = place.read_settings_file().get("node")
    return asked != "off"


if __name__ == "__main__":
    sys.exit(main())
