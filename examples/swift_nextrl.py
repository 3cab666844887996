"""nextrl in ms-swift: a callback under a name, for `--external_plugins` and `--callbacks`:

    swift rlhf --rlhf_type grpo --external_plugins swift_nextrl.py --callbacks nextrl ...

Arguments come from the environment: NEXTRL='{"every": 20}'. ms-swift 4.6 grades completions by code of its own where
nextrl needs TRL's, and is refused with one line when training begins: docs/integrations.md.
"""

from __future__ import annotations

import json
import os
from typing import Any

from swift.callbacks import callbacks_map

import nextrl


class NextrlCallback(nextrl.LeapCallback):
    """A `LeapCallback` that is built as ms-swift builds its callbacks."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(trainer=trainer, **json.loads(os.environ.get("NEXTRL", "{}")))


callbacks_map["nextrl"] = NextrlCallback
