"""An agent loop of verl's for tests, and a reward: what is sampled depends on the weights alone, and not on the run.

verl asks its rollout servers for completions in whatever order they are done, and all of them share one generator, so
that two runs of one command differ. Here each completion has a seed of its own, made of the prompt, of its place in the
group and of the step. Nothing here imports nextrl.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class SeededAgentLoop(SingleTurnAgentLoop):
    """verl's own loop, with a seed in each request."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """One completion."""
        what = [str(kwargs["raw_prompt"]), int(kwargs["session_id"]), int(kwargs["global_steps"])]
        seed = zlib.crc32(json.dumps(what).encode())
        return await super().run({**sampling_params, "seed": seed}, **kwargs)


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """1.0 where the completion ends in the answer's digit."""
    return float(solution_str.strip()[-1:] == ground_truth)
