"""Run a page as a reader would: its bash and python blocks, in order, in an empty folder.

Usage: python scripts/run_tutorial.py PAGE.md. Python blocks share one namespace; the commands of this interpreter's
environment come first on the path. Stops at the first block that fails, with its text; exit status 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def main(page: Path) -> int:
    """Run a page; 0, or 1 where a block fails."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if not blocks:
        print(f"{page} has no bash or python block.", file=sys.stderr)
        return 1
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for language, code in blocks:
            print(f"--- {language}\n{code.rstrip()}\n---", flush=True)
            began = time.monotonic()
            if language == "python":
                exec(compile(code, str(page), "exec"), names)
            elif subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=False).returncode:
                print(f"{page}: this block failed.", file=sys.stderr)
                return 1
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
        os.chdir("/")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve()))
