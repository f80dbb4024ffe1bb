"""Processes that compute their share of every batch's gradient.

On CPUs structures are easier to divide than the operations of one structure, most of which are too
short to be worth waking a thread. The main process keeps everything that makes up a run: optimiser,
averages, files. Helpers hold the data and a copy of the potential. Weights go out and gradients
come back through a file that all of them map into memory; what to do goes through sockets.

A helper is an interpreter of its own, started with ``python -m clebsch.training.helpers``: a fork
would inherit threads, and what ``multiprocessing`` spawns imports the caller's script again.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from clebsch.errors import ClebschError
from clebsch.training.config import LossConfig
from clebsch.training.gradient import Indices, add_gradient
from clebsch.training.lesson import Lesson
from clebsch.training.loss import LossSums
from clebsch.training.optimizer import trained_parameters

#: Seconds that a helper gets to end by itself.
_PATIENCE = 5.0


@dataclass(frozen=True)
class _Task:
    """What helpers need to know.

    Attributes:
        lessons: copies; trained parameters are replaced by those in the file.
        loss: weights and forms.
        path: of the file with the weights and then each helper's gradient.
        n_helpers: how many there are.
        threads: for each.
    """

    lessons: Sequence[Lesson]
    loss: LossConfig
    path: Path
    n_helpers: int
    threads: int


class Helpers:
    """Helper processes, running while the context lasts.

    Args:
        number: how many; none is fine.
        lessons: what batches are made of, and whose gradients they compute, on the CPU.
        loss: weights and forms.
        threads: of each helper.
    """

    def __init__(
        self, number: int, lessons: Sequence[Lesson], loss: LossConfig, threads: int
    ) -> None:
        self.number = number
        self._lessons, self._loss = lessons, loss
        self._threads = threads
        self._parameters = trained_parameters(*(lesson.potential for lesson in lessons))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._asked: list[int] = []
        self._weights: dict[str, Tensor] = {}
        self._gradients: list[dict[str, Tensor]] = []

    def __enter__(self) -> Helpers:
        """Start the processes, and wait until they have loaded."""
        if self.number:
            try:
                with tempfile.TemporaryDirectory(prefix="clebsch-") as folder:
                    self._start(Path(folder) / "weights")
            except BaseException:
                self._end()
                raise
        return self

    def _start(self, path: Path) -> None:
        shared = _shared_memory(path, self._parameters, self.number)
        self._weights, *self._gradients = (_views(row, self._parameters) for row in shared)
        task = pickle.dumps(
            _Task(self._lessons, self._loss, path, self.number, self._threads),
            protocol=pickle.HIGHEST_PROTOCOL,
        )
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            # the same packages as here, and not those of the working folder first (-P)
            "PYTHONPATH": os.pathsep.join(os.path.abspath(place or ".") for place in sys.path),
        }
        for _ in range(self.number):
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
            # a session of its own: Ctrl-C is for the main process, which ends the others
            with _signals_blocked():
                process = subprocess.Popen(
                    command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
                )
            self._processes.append(process)
            theirs.close()
            self._connections.append(Connection(ours.detach()))
        for number in range(self.number):
            self._send(number, pickle.dumps(number))
            self._send(number, task)
        for number in range(self.number):
            self._answer(number)  # it has opened the file, whose name may go

    def _send(self, number: int, message: bytes) -> None:
        try:
            self._connections[number].send_bytes(message)
        except OSError:
            self._answer(number)  # says why nobody listens

    def begin(self, parts: Sequence[Indices], batch: Indices) -> None:
        """Have each helper compute the gradient of its part of a batch with the present weights.

        Raises:
            ClebschError: a helper has ended.
        """
        self._asked = [number for number, part in enumerate(parts) if any(part)]
        if not self._asked:
            return
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._weights[name].copy_(parameter)
        for number in self._asked:
            self._send(number, pickle.dumps((parts[number], batch)))

    def finish(self) -> list[LossSums]:
        """Add their gradients to ``.grad``, always in the same order; returns their loss sums.

        Raises:
            ClebschError: a helper has ended.
            Exception: whatever was raised in a helper.
        """
        answers = {number: self._answer(number) for number in self._asked}
        total = [LossSums() for _ in self._lessons]
        for number, answer in answers.items():
            if isinstance(answer, Exception):
                raise answer
            sums, names = answer
            total = [so_far + more for so_far, more in zip(total, sums, strict=True)]
            for name in names:
                parameter, gradient = self._parameters[name], self._gradients[number][name]
                if parameter.grad is None:
                    parameter.grad = gradient.clone()
                else:
                    parameter.grad += gradient
        return total

    def _answer(self, number: int) -> Any:
        try:
            return pickle.loads(self._connections[number].recv_bytes())
        except (EOFError, OSError):
            code = self._processes[number].wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise ClebschError(
                f"a helper process of the training was ended {how}; if memory ran out, set fewer "
                "processes in the configuration"
            ) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them all."""
        self._end()

    def _end(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._connections, self._asked = [], [], []


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait, and never reach a process that is started within.

    Slurm and systemd send SIGTERM to all processes of a job. The main process then saves, for which
    it needs its helpers; they end when it does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shared_memory(path: Path, parameters: Mapping[str, Tensor], n_helpers: int) -> Tensor:
    """[1 + n_helpers, elements] in a file: the weights, then each helper's gradient."""
    size = sum(p.numel() for p in parameters.values())
    dtype = next(iter(parameters.values())).dtype
    rows = 1 + n_helpers
    if not path.exists():  # holes in the file would turn a full disk into a signal, later
        path.write_bytes(bytes(rows * size * dtype.itemsize))
    return torch.from_file(str(path), shared=True, size=rows * size, dtype=dtype).view(rows, size)


def _views(row: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts of ``row`` in the shapes of the parameters."""
    parts = row.split([p.numel() for p in parameters.values()])
    pairs = zip(parameters.items(), parts, strict=True)
    return {name: part.view(p.shape) for (name, p), part in pairs}


def serve(connection: Connection) -> None:
    """What a helper does: receive a task, then compute gradients until the connection closes.

    Raises:
        EOFError: the main process has closed the connection.
    """
    number: int = pickle.loads(connection.recv_bytes())
    task: _Task = pickle.loads(connection.recv_bytes())
    torch.set_num_threads(task.threads)
    parameters = trained_parameters(*(lesson.potential for lesson in task.lessons))
    shared = _shared_memory(task.path, parameters, task.n_helpers)
    gradients = _views(shared[1 + number], parameters)
    for name, view in _views(shared[0], parameters).items():
        parameters[name].data = view
    connection.send_bytes(pickle.dumps(None))
    while True:
        part, batch = pickle.loads(connection.recv_bytes())
        answer: Any
        try:
            for parameter in parameters.values():
                parameter.grad = None
            sums = add_gradient(task.lessons, part, batch, task.loss)
            found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            for name, gradient in found.items():
                gradients[name].copy_(gradient)
            answer = (sums, list(found))
        except Exception as error:
            error.add_note(f"In a helper process of the training:\n{traceback.format_exc()}")
            answer = error
        connection.send_bytes(_pickled(answer))


def _pickled(answer: Any) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception:  # an error that cannot travel
        return pickle.dumps(RuntimeError(repr(answer)))


if __name__ == "__main__":
    # The main process ends by closing its side, whatever is under way here.
    with suppress(EOFError, OSError), Connection(int(sys.argv[1])) as _connection:
        serve(_connection)
