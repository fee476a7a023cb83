"""The crossing in a process of its own: CrossingProcess is used as a Crossing is.

SMARTS gives the same episode for the same seed only with PYTHONHASHSEED=0, which must be set before
Python starts. And several simulators run at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from typing import Any

PATIENCE = 10  # seconds that a simulator has to end by itself


class CrossingProcess:
    """A Crossing (crossing.py), made from settings in a process that ends with this one.

    ChildProcessError if the simulator cannot start, or fails.
    """

    FACTS = "possible_agents", "observation_spaces", "action_spaces", "metadata", "pixels"

    def __init__(self, **settings: Any) -> None:
        self.pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env=os.environ | {"PYTHONHASHSEED": "0"},
            pass_fds=[theirs.fileno()],
            # Ctrl-C goes to all processes of a session, and would end SUMO before the run saves.
            start_new_session=True,
        )
        theirs.close()
        self.agents: list[str] = []
        atexit.register(self.close)
        self.facts: dict[str, Any] = self.ask("start", settings)
        self.possible_agents = self.facts["possible_agents"]
        self.metadata, self.pixels = self.facts["metadata"], self.facts["pixels"]

    def observation_space(self, agent: str) -> Any:
        return self.facts["observation_spaces"][agent]

    def action_space(self, agent: str) -> Any:
        return self.facts["action_spaces"][agent]

    def ask(self, *request: Any) -> Any:
        """Call a method of the crossing."""
        with contextlib.suppress(BrokenPipeError):  # receive says why
            self.pipe.send(request)
        return self.receive()

    def send(self, actions: dict[str, Any]) -> None:
        """The first half of step: the simulator computes until receive is called."""
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(("step", actions))

    def receive(self) -> Any:
        """The second half of step."""
        try:
            error, answer, self.agents = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            code = self.process.wait()
            raise ChildProcessError(
                f"the simulator's process ended with exit code {code}"
            ) from None
        if error:
            raise ChildProcessError(error)
        return answer

    def reset(self, seed: int | None = None) -> Any:
        return self.ask("reset", seed)

    def step(self, actions: dict[str, Any]) -> Any:
        self.send(actions)
        return self.receive()

    def render(self) -> Any:
        return self.ask("render")

    def metrics(self) -> dict[str, float]:
        return self.ask("metrics")

    def close(self) -> None:
        """End the process; it is killed, with SUMO, if it does not end by itself."""
        atexit.unregister(self.close)
        self.pipe.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def serve(pipe: Connection) -> None:
    """Make a crossing and call its methods as asked, until the other end of the pipe is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run saves first, and then closes the pipe
    env: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, *arguments = pipe.recv()
            try:
                if method == "start":
                    from crossing import Crossing

                    env = Crossing(**arguments[0])
                    answer: Any = {name: getattr(env, name) for name in CrossingProcess.FACTS}
                else:
                    answer = getattr(env, method)(*arguments)
                pipe.send(("", answer, env.agents))
            except (ImportError, RuntimeError) as error:  # packages are missing, SMARTS has failed
                pipe.send((str(error), None, []))
    if env:
        env.close()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
