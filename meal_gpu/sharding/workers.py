"""Dask's workers as holders of parts, which are asked about what they hold."""

import queue
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line
from ..timing import Progress
from . import cluster

if TYPE_CHECKING:
    from .cluster import Client

KEPT = "All finished rounds are kept: go on with meal-gpu run --resume."


class Broadcast:
    """Bytes that every worker has; sent again where the last copy was lost with its worker."""

    def __init__(self, client: "Client", data: bytes) -> None:
        self.client, self.data, self.held = client, data, None

    def future(self) -> Any:
        held: Any = self.held
        for left in reversed(range(cluster.LIVES)):
            if held is not None and held.status == "finished":
                break
            try:
                [held] = self.client.scatter([self.data], broadcast=True, hash=False)
                self.held = held
            except (OSError, TimeoutError):  # a worker has died, and the scheduler may not know yet
                if not left or self.client.status != "running":
                    raise
                time.sleep(cluster.TICK_S)
        return held


class Workers:
    """Workers that hold parts of something, and are asked about these; see `ask`.

    ``share_memory``: they live on this machine and share what it has. ``share_gpu``: each has a GPU of this machine,
    the first the one that this process is on.
    """

    def __init__(self, place: AbstractContextManager["Client"], share_memory: bool = False,
                 share_gpu: bool = False) -> None:
        self.share_memory, self.share_gpu, self._exit = share_memory, share_gpu, ExitStack()
        self.client = self._exit.enter_context(place)
        self._topic, self._heard = f"meal-gpu-{uuid.uuid4().hex}", dict[Any, tuple[str, int]]()
        self._homes: dict[Any, str] = {}
        try:
            self.client.subscribe_topic(self._topic, self._listen)
            self._await_workers(cluster.CONNECT_S)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._addresses())

    @property
    def sharers(self) -> int:
        """Processes among which the memory is divided that this process has found free, itself included."""
        if self.share_gpu:  # parts are equal, so that the worker beside this process says what each can hold
            return 2
        return len(self) + 1 if self.share_memory else 1

    def close(self) -> None:
        self._exit.close()

    def broadcast(self, data: bytes) -> Broadcast:
        return Broadcast(self.client, data)

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function in every worker that can be reached: what they answer, by address. Errors are left out."""
        with suppress(Exception):
            answers: dict[str, Any] = self.client.run(function, *args, on_error="ignore")
            return answers
        return {}

    def ask(self, function: Callable[..., Any], asked: Sequence[tuple[Any, tuple[Any, ...]]], shared: Broadcast,
            progress: Progress, stage: str, total: int) -> list[Any]:
        """Call ``function(home, mine, part, *args, shared, progress)`` for every (part, args), where the part lives.

        A part stays with one worker. If that worker is lost, another is asked, and finds that it does not hold the
        part. ``home`` tells the worker whether it shall keep the part; ``mine`` are all parts that it shall keep.

        Returns the answers in the order asked. Raises `InputError` when the scheduler is lost, no worker is left, or a
        part's workers die `cluster.LIVES` times; and what the function raises.
        """
        distributed = cluster.dask("distributed", "dask")
        self._await_workers(cluster.WAIT_S)
        self._settle([part for part, _ in asked])
        self._heard.clear()
        answers: list[Any] = [None] * len(asked)
        lives = [cluster.LIVES] * len(asked)
        pending: dict[Any, int] = {}
        raised: BaseException | None = None
        mine = self._families()
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def submit(i: int) -> None:
            part, args = asked[i]
            home = self._homes[part]
            future = self.client.submit(
                _answer, self._topic, function, home, mine[home], part, args, shared.future(), workers=[home],
                allow_other_workers=True, key=f"{function.__name__}-{uuid.uuid4().hex}", pure=False)
            pending[future] = i
            future.add_done_callback(ended.put)

        try:
            for i in range(len(asked)):
                submit(i)
            seen = time.monotonic()
            while pending:
                try:
                    future = ended.get(timeout=cluster.TICK_S)
                except queue.Empty:
                    told = [done for at, done in self._heard.values() if at == stage]
                    if told:
                        progress(stage, min(sum(told), total), total)
                    if time.monotonic() - seen > cluster.CONNECT_S:
                        seen = time.monotonic()
                        self._await_workers(cluster.WAIT_S)
                    continue
                i = pending.pop(future)
                error = future.exception() if future.status == "error" else None
                if future.status == "finished":
                    answers[i] = future.result()
                elif error is not None and not isinstance(error, (distributed.KilledWorker, cluster.Unwanted)):
                    raised = error
                    raise error
                else:  # its worker is gone, and perhaps the last copy of what was shared with it
                    cluster.check_connected(self.client, KEPT)
                    lives[i] -= 1
                    if not lives[i]:
                        raise InputError(f"The workers that were given part {asked[i][0]} of the pool died "
                                         f"{cluster.LIVES} times; the system may have killed them for their memory: "
                                         f"lower data.budget_gb, or use fewer workers on a machine. {KEPT}")
                    self._await_workers(cluster.WAIT_S)
                    self._settle([part for part, _ in asked])
                    mine = self._families()
                    submit(i)
        except cluster.SchedulerLostError:
            pending = {}  # nobody can be told
            raise
        except Exception as error:
            if error is raised or isinstance(error, InputError):
                raise
            cluster.check_connected(self.client, KEPT)  # a client that is losing its scheduler raises many things
            if not isinstance(error, (OSError, CancelledError)):
                raise
            self._addresses()
            raise InputError(f"Dask's workers cannot be reached: {first_line(error)}. {KEPT}") from error
        finally:
            if pending and self.client.status == "running":
                with suppress(Exception):
                    self.client.cancel(list(pending), force=True)
        progress(stage, total, total)
        return answers

    def _listen(self, event: tuple[float, dict[str, Any]]) -> None:
        told = event[1]
        self._heard[told["part"]] = told["stage"], told["done"]

    def _addresses(self) -> list[str]:
        return cluster.workers_of(self.client, KEPT)

    def _await_workers(self, seconds: float) -> None:
        """Raise `InputError` where there is no worker, and none comes for so long."""
        give_up = time.monotonic() + seconds
        while not self._addresses():
            if time.monotonic() > give_up:
                raise InputError(f"The scheduler {self.client.scheduler.address} has no workers. Start some with: dask "
                                 f"worker ADDRESS --nthreads 1 --nworkers N. {KEPT}")
            time.sleep(cluster.TICK_S)

    def _families(self) -> dict[str, frozenset[Any]]:
        """By home, the parts that live there."""
        found: dict[str, set[Any]] = {}
        for part, home in self._homes.items():
            found.setdefault(home, set()).add(part)
        return {home: frozenset(parts) for home, parts in found.items()}

    def _settle(self, parts: Sequence[Any]) -> None:
        """Give every part a home: the one that it has, while that is there and holds no more than others do."""
        addresses = self._addresses()
        for part in parts:
            self._homes.setdefault(part, "")
        most = -(-len(self._homes) // max(len(addresses), 1))
        load = dict.fromkeys(addresses, 0)
        homeless = []
        for part, home in self._homes.items():
            if load.get(home, most) < most:
                load[home] += 1
            else:
                homeless.append(part)
        for part in homeless if addresses else ():
            emptiest = min(addresses, key=lambda address: load[address])
            self._homes[part], load[emptiest] = emptiest, load[emptiest] + 1


def _answer(topic: str, function: Callable[..., Any], home: str, mine: frozenset[Any], part: Any,
            args: tuple[Any, ...], shared: bytes) -> Any:
    """The task of `Workers.ask`, in a worker."""
    worker = cluster.dask("distributed", "dask").get_worker()
    progress = cluster.reporting(worker, topic, {"part": part})
    return function(worker.address == home, mine, part, *args, shared, progress)
