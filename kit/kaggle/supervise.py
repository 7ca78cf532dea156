"""A command of the kit as a child process: summed while it runs, asked to stop in time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kit.base import KitError, handle_signals
from kit.kaggle.sums import Checksums

GRACE = 600.0
"""Seconds to write a checkpoint in after SIGTERM: at most a step or a validation is finished
before."""
_TICK = 2.0
# The ends of a command that was asked to stop: its own, and those of one that had hardly begun.
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)


class Supervisor:
    """Runs the kit's commands one after another, until a time at which all should have ended.

    Parameters
    ----------
    home
        Where the bundle is unpacked: kit/ and kernels/.
    folder
        To run them in.
    sums
        Kept up to date meanwhile.
    """

    def __init__(self, home: Path, folder: Path, sums: Checksums) -> None:
        self.home = home
        self.folder = folder
        self.sums = sums

    def run(self, name: str, options: Sequence[str], *, until: float) -> bool:
        """Run a command, and ask it to stop with SIGTERM when it is time, or this process is.

        Parameters
        ----------
        until
            As `time.monotonic` counts.

        Returns
        -------
        bool
            Whether it came to its end.

        Raises
        ------
        KitError
            If it fails.
        """
        command = [sys.executable, str(self.home / "kernels" / f"{name}.py"), *options]
        print("$", *command, flush=True)
        with subprocess.Popen(command, cwd=self.folder, env=self._environment()) as process:
            asked = self._wait(process, until)
        self.sums.update()
        if process.returncode == 0:
            return True
        if asked and process.returncode in _STOPPED:
            return False
        raise KitError(f"{name} ended with status {process.returncode}; see its message above")

    def _wait(self, process: "subprocess.Popen[bytes]", until: float) -> bool:
        """Wait for a process; return whether it was asked to stop."""
        asked: list[float] = []

        def ask(_: int) -> None:
            asked.append(time.monotonic())
            process.terminate()

        with handle_signals(ask, signal.SIGTERM, signal.SIGINT):
            while process.poll() is None:
                if not asked and time.monotonic() >= until:
                    ask(signal.SIGTERM)
                elif asked and time.monotonic() >= asked[0] + GRACE:
                    process.kill()
                try:
                    process.wait(_TICK)
                except subprocess.TimeoutExpired:
                    self.sums.update()
        return bool(asked)

    def _environment(self) -> dict[str, str]:
        """Return this process's, with the bundle before all else on the path."""
        return os.environ | {
            "PYTHONPATH": str(self.home),
            "PYTHONUNBUFFERED": "1",
            # A log keeps every drawing of a progress bar.
            "TQDM_MININTERVAL": "60",
        }
