"""nextrl in Axolotl: a plugin that adds the callback. Put this file on PYTHONPATH, and two keys in your config:

    plugins:
      - axolotl_nextrl.NextrlPlugin
    nextrl:            # arguments of nextrl.LeapCallback; may be left out
      every: 10

It works where Axolotl trains by GRPO (`rl: grpo`) with a LoRA adapter. What was run: docs/integrations.md.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

import nextrl


class NextrlArgs(BaseModel):
    """What Axolotl's config may hold beside its own keys."""

    nextrl: dict[str, Any] | None = None


class NextrlPlugin(BasePlugin):
    """Adds a `LeapCallback` that knows its trainer."""

    def get_input_args(self) -> str:
        return "axolotl_nextrl.NextrlArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        return [nextrl.LeapCallback(trainer=trainer, **(cfg.nextrl or {}))]
