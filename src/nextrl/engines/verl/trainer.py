"""verl's synchronous trainer with leaps in place: `trainer.v1.trainer_mode=nextrl`.

Every name of verl's that is leant on here and in `worker` was read in verl 0.9.1 (`trainer/ppo/v1/trainer_base.py`,
`trainer_sync.py`, `workers/engine_workers.py`). A step of verl samples, computes log-probabilities and advantages, and
updates the actor. What is decided is decided right after that, while the batch is still there and the rollout servers
sleep; then verl saves, and delivers the weights that it finds in the actor. So a change costs no delivery of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
import transfer_queue
import verl
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils.debug import marked_timer
from verl.workers.utils.padding import response_from_nested

from nextrl.engines import decision_log
from nextrl.engines.judged_session import JudgedSession
from nextrl.engines.leap_session import LeapSession
from nextrl.engines.policies import Auto
from nextrl.engines.session import Session
from nextrl.engines.verl import state
from nextrl.engines.verl.forced_leaps import ForcedLeaps
from nextrl.engines.verl.latest_batch import CENTRED, Batch, batch_of
from nextrl.engines.verl.options import Options, check, comparable
from nextrl.engines.verl.remote import VerlRun
from nextrl.engines.verl.remote_adapter import Workers
from nextrl.engines.verl.worker import LeapWorker
from nextrl.judge.guard import Guard
from nextrl.say import say

log = logging.getLogger(__name__)

_COLUMNS = ("uid", "response_mask", "old_log_probs", "rollout_log_probs", "advantages", "rm_scores")
_ACTORS = (Role.ActorRollout, Role.ActorRolloutRef)


class LeapTrainer(PPOTrainerSync):
    """verl's synchronous trainer, under `auto` or with leaps at given steps."""

    def __init__(self, config: Any) -> None:
        """Refuse what cannot work before anything is started.

        Raises:
            InputError: see `options`.
        """
        self._options: Options = check(config, verl.__version__)
        # verl asks by this name which trainer's ways to take: those of the one that this is. It keeps the answer, so
        # that what the user wrote can stand there again, and is what loggers store.
        asked = config.trainer.v1.trainer_mode
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config=config)
        config.trainer.v1.trainer_mode = asked
        self._latest: KVBatchMeta | None = None
        self._trains = False

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in _ACTORS:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(LeapWorker)

    def on_init_end(self) -> None:
        """Begin a session, or take a resumed one up, and deliver the weights."""
        folder = Path(self.config.trainer.default_local_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        per_step = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        workers = Workers(self.actor_rollout_wg.nextrl)
        self._run = VerlRun(workers, self._log_probabilities, folder, self._last_step(), per_step)
        self._run.comparable = comparable(self.config.actor_rollout_ref.rollout)
        correction = self.config.algorithm.get("rollout_correction") or {}
        self._run.latest.exact = not correction.get("bypass_mode", False)
        self._session = self._begun()
        if self.global_steps:
            trainer = self.config.trainer
            asked = trainer.resume_from_path if trainer.resume_mode == "resume_path" else self._checkpoint()
            state.load(Path(asked).absolute(), self._run, self._session, self.global_steps)
        self._run.look_back(self._session.memory.start.state)
        super().on_init_end()

    def _begun(self) -> Session:
        """The session of a run that begins, or goes on, after the present step."""
        run: Any = self._run  # copies by name stand for tensors
        options, step = self._options, self.global_steps
        if options.leaps:
            return LeapSession(
                run, ForcedLeaps(options.leaps), Guard(), [], step,
                adapt_lr=options.adapt_lr, leaps=options.take_back, rollback=False,
            )  # fmt: skip
        return JudgedSession(
            run, Auto(options.dials), step, adapt_lr=options.adapt_lr, leaps=options.take_back
        )

    def _last_step(self) -> int:
        """Where verl ends the run: at `total_training_steps`, or before that after `total_epochs` passes (`fit`)."""
        trainer, asked = self.config.trainer, int(self.total_training_steps)
        ends = min(asked, int(self.steps_per_epoch * trainer.total_epochs))
        if ends < asked:
            say(
                log,
                "verl ends this run at step %d, after trainer.total_epochs=%d passes of %d steps, not at %d",
                ends,
                trainer.total_epochs,
                self.steps_per_epoch,
                asked,
            )
        return ends

    def _checkpoint(self) -> Path:
        """The folder of the present step's checkpoint."""
        return self._run.folder / f"global_step_{self.global_steps}"

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> Any:
        """verl's step, then what is decided on it."""
        if not self._trains:  # an evaluation alone (`trainer.val_only`) leaves the log of the run as it is
            decision_log.begin(self._run.folder, self._session.decisions, self.global_steps == 1)
            self._trains = True
        self._session.step_begins(self.global_steps - 1)
        self._run.step_begins()
        batch = super().step(metrics, timing_raw)
        with marked_timer("nextrl", timing_raw, color="yellow"):
            self._latest = batch
            self._run.stepped(self._read_batch(batch))
            self._session.step_ended(self.global_steps)
            if self.global_steps >= self._run.max_steps:
                self._session.train_ended()
            self._run.look_back(self._session.memory.start.state)
        metrics.update(self._run.metrics)
        return batch

    def _save_checkpoint(self) -> None:
        state.save(self._checkpoint(), self._run, self._session)
        super()._save_checkpoint()
        state.prune(self._run.folder, self.global_steps)

    def _read_batch(self, batch: Any) -> Batch:
        data = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=list(_COLUMNS)
        )
        uids = [str(uid) for uid in data.pop("uid").tolist()]
        padding = [tag.get("is_padding", False) for tag in batch.tags]
        centred = self.config.algorithm.adv_estimator in CENTRED
        return batch_of(data.to_padded_tensor(), uids, padding, centred)

    def _log_probabilities(self) -> Any:
        """(n, L) of the latest batch under the weights that the actor now has, as verl computes old_log_probs."""
        assert self._latest is not None
        batch = KVBatchMeta(
            partition_id=self._latest.partition_id, keys=list(self._latest.keys), tags=list(self._latest.tags)
        )
        batch.extra_info.update(
            {
                "calculate_entropy": False,
                "compute_loss": False,
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
            }
        )
        self.actor_rollout_wg.compute_log_prob(batch)
        data = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["log_probs", "response_mask"]
        )
        data["log_probs"] = response_from_nested(data["log_probs"], data["response_mask"])
        return data.to_padded_tensor()["log_probs"]
