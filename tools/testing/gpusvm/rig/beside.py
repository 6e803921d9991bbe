# SPDX-License-Identifier: GPL-2.0
"""A program that runs beside the virtual machine, such as one that is a device of it."""

import re
import subprocess
import time

from rig import ui

# Seconds for the program to make its sockets, for the machine to end when the program did, and for
# the program to end when it is asked to.
READY, GRACE, END = 60, 3, 20


class Beside:
    """The program: started before QEMU, asked to end after it (SIGTERM), judged by its status."""

    def __init__(self, command, log, folder):
        self.name, self.log, self.failure = command[0].rsplit("/", 1)[-1], log, None
        with open(log, "w") as out:
            try:
                self.child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL,
                                              stdout=out, stderr=subprocess.STDOUT)
            except OSError as error:
                raise ui.Failed(f"{command[0]} cannot be started: {error.strerror}") from error

    def said(self):
        """Its first complaint, or else its last words."""
        with open(self.log, errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        bad = [line for line in lines if re.search(r"\berror\b|panicked at", line, re.I)]
        return (bad or lines[-1:] or ["it said nothing"])[0]

    def lost(self, needed=None):
        """Whether it ended while `needed` (a process) still runs, which is a failure.

        Both may end within moments of each other, where the one is a device of the other.
        """
        if self.child.poll() is None:
            return False
        if needed:
            try:
                needed.wait(GRACE)
                return False
            except subprocess.TimeoutExpired:
                pass
        self.failure = (f"{self.name} ended with {self.child.returncode} while it was needed: "
                        f"{self.said()}")
        return True

    def wait_for(self, exists):
        """Waits until it is ready, which `exists` says; returns whether it is."""
        begin = time.monotonic()
        while not exists():
            if self.lost():
                return False
            if time.monotonic() - begin > READY:
                self.failure = f"{self.name} is not ready after {READY} s: {self.said()}"
                return False
            time.sleep(0.05)
        return True

    def stop(self):
        """Ends it; what was wrong with it is in `failure`."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            status = self.child.wait(END)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            self.failure = self.failure or f"{self.name} did not end within {END} s"
            return
        if status and not self.failure:
            self.failure = f"{self.name} ended with {status}: {self.said()}"
