"""Several processes, one decision: process 0 decides, the others do the collective work that it asks for.

A search scores one candidate after the other, and what it found decides which comes next. Each score is a collective
operation: every process generates its share of the completions. If each process searched by itself, a difference in the
last bit of one score could make one of them score a candidate that the others do not, and all would wait for ever. So
process 0 alone decides; it broadcasts to the others what to call, and the result.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from nextrl.judge.paired_search import Refused

T = TypeVar("T")
R = TypeVar("R")

_DONE, _FAILED = "done", "failed"


class Ranks:
    """The processes of a run, as its accelerator knows them.

    Attributes:
        rank: this process, from 0.
        world: how many there are.
        leader: whether this is the process that decides and writes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.rank, self.world = int(accelerator.process_index), int(accelerator.num_processes)
        self.leader = self.rank == 0
        self._accelerator = accelerator

    def once(self, decide: Callable[..., T], *tools: Callable[..., Any]) -> T:
        """`decide(*tools)` on process 0, its result on all; whenever it calls a tool, every process calls it.

        Args:
            decide: run on process 0 only; its result must pickle.
            tools: functions that are collective operations, with arguments that pickle. A `Refused` that one raises
                is for process 0 to handle.

        Raises:
            RuntimeError: on the other processes, where `decide` failed on process 0.
        """
        if self.world == 1:
            return decide(*tools)
        return self._lead(decide, tools) if self.leader else self._follow(tools)

    def _lead(self, decide: Callable[..., T], tools: Sequence[Callable[..., Any]]) -> T:
        inside = False  # whether the others are inside a tool, waiting for this process there

        def announced(index: int) -> Callable[..., Any]:
            # A tool may say things about itself (`GroupedScore.group`): they come along.
            @functools.wraps(tools[index])
            def call(*arguments: Any) -> Any:
                nonlocal inside
                _tell((index, arguments))
                inside = True
                try:
                    result = tools[index](*arguments)
                except Refused:
                    inside = False
                    raise
                inside = False
                return result

            return call

        last: tuple[Any, Any] = (_FAILED, None)
        try:
            result = decide(*(announced(index) for index in range(len(tools))))
            last = (_DONE, result)
        finally:
            # Where a tool failed here alone nobody would hear it: this process would wait for ever, and its error would
            # not be seen. It ends instead, and its launcher ends the others.
            if not inside:
                _tell(last)
        return result

    def _follow(self, tools: Sequence[Callable[..., Any]]) -> Any:
        while True:
            what, content = _tell(None)
            if what == _DONE:
                return content
            if what == _FAILED:
                raise RuntimeError("process 0 failed while it decided on a leap: see its own message")
            with suppress(Refused):
                tools[what](*content)

    def same(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Process 0's tensors on all processes, to the bit."""
        return tensors if self.world == 1 else {name: broadcast(t.clone()) for name, t in tensors.items()}

    def share(self, rows: Sequence[R]) -> Sequence[R]:
        """This process's part of `rows`: equally many on each, in order, the first ones again to fill the last."""
        each = -(-len(rows) // self.world)
        return [rows[i % len(rows)] for i in range(self.rank * each, (self.rank + 1) * each)]

    def tell(self, message: Any) -> Any:
        """Process 0's message, on every process."""
        return message if self.world == 1 else _tell(message)

    def gather(self, part: R) -> list[R]:
        """What every process has to say, in the order of the processes, on each of them."""
        return [part] if self.world == 1 else list(gather_object([part]))

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it, the same answer on all."""
        return any(self.gather(wish))

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()


def launched() -> Ranks:
    """The processes among which a launcher (`accelerate launch`, torchrun) started this one; one without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(SimpleNamespace(process_index=0, num_processes=1, wait_for_everyone=lambda: None))
    return Ranks(PartialState(cpu=not torch.cuda.is_available()))


def _tell(message: Any) -> Any:
    """Process 0's message, on every process."""
    return broadcast_object_list([message])[0]
