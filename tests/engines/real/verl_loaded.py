"""Loaded by every process of a verl run (`VERL_USE_EXTERNAL_MODULES`): writes down which modules of nextrl it has."""

import os
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(os.environ["VERL_LOADED"])


def watch() -> None:
    """Until the process is killed, which is how Ray ends it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    while True:
        names = sorted(name for name in list(sys.modules) if name.split(".")[0] == "nextrl")
        (FOLDER / f"{os.getpid()}.txt").write_text("\n".join(names))
        time.sleep(1.0)


threading.Thread(target=watch, daemon=True).start()
