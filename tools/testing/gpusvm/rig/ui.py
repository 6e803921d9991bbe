# SPDX-License-Identifier: GPL-2.0
"""What the user sees: steps with elapsed time, and failures with their cause and log."""

import contextlib
import os
import re
import subprocess
import sys
import time

START = time.monotonic()
# Seconds for an interrupted command to clean up.
PATIENCE = 10
TTY = sys.stdout.isatty()


class Failed(Exception):
    """A step did not succeed. The text is the cause; `log` names the file with the details."""

    def __init__(self, cause, log=None):
        super().__init__(cause)
        self.log = log


class Abandoned(KeyboardInterrupt):
    """An interruption that a command did not heed in time: it is killed with everything else."""


def host_path(path):
    """The name that a path of the build root has outside of it."""
    cache = os.environ.get("HOST_CACHE")
    for inside, below in (("/cache/", ""), ("/build/", "build/"), ("/src/", "tree/")):
        if cache and str(path).startswith(inside):
            return f"{cache}/{below}{str(path)[len(inside):]}"
    return str(path)


def say(text):
    """One line of progress, with the seconds since the start."""
    end = "\033[K\n" if TTY else "\n"
    print(f"[{time.monotonic() - START:5.0f} s] {text}", end=end, flush=True)


def status(text):
    """A line that the next one overwrites; nothing where the output is not a terminal."""
    if TTY:
        print(f"[{time.monotonic() - START:5.0f} s] {text}\033[K", end="\r", flush=True)


class Beat:
    """Calls for a status line now and then: every half second on a terminal, else every 30 s."""

    def __init__(self):
        self.last = time.monotonic()

    def show(self, text):
        now = time.monotonic()
        if now - self.last >= (0.5 if TTY else 30):
            self.last = now
            status(text) if TTY else say(text)


@contextlib.contextmanager
def step(text):
    """A step of the work: says when it begins and how long it took."""
    begin = time.monotonic()
    say(f"{text} ...")
    yield
    took = time.monotonic() - begin
    if took >= 1:
        say(f"{text}: done in {took:.0f} s")


def tail(path, lines=25):
    """The end of a log, for a message."""
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).rstrip()
    except OSError:
        return ""


def causes(path, lines=25):
    """The lines of a build log that say why it stopped; its end where none does."""
    try:
        with open(path, errors="replace") as file:
            text = file.read()
    except OSError:
        return ""
    first = re.search(r"^.*(\berror\b|Error \d|undefined symbol|warning:).*$", text, re.M)
    if not first:
        return tail(path, lines)
    return "\n".join(text[first.start():].splitlines()[:lines])


def run(command, log, expect=0, name=None, **kwargs):
    """Runs a command with its output in `log`, showing how many of `expect` lines came so far."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    name = name or command[0]
    beat, lines = Beat(), 0
    with open(log, "w") as out:
        out.write("$ " + " ".join(map(str, command)) + "\n")
        out.flush()
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, errors="replace", **kwargs)
        except OSError as error:
            raise Failed(f"{name} failed:\n{command[0]}: {error.strerror}", log) from error
        try:
            for line in child.stdout:
                out.write(line)
                out.flush()
                lines += 1
                far = f"{min(99, 100 * lines // expect)} %, " if expect else ""
                beat.show(f"  {name}: {far}{line.strip()[:70]}")
            code = child.wait()
        except KeyboardInterrupt:
            # When this process ends, all others are killed: let make remove half-made files first.
            end(child)
            raise
    if code:
        raise Failed(f"{name} failed:\n{causes(log)}", log)
    return lines


def end(child):
    """Ends a command that was interrupted."""
    child.terminate()
    try:
        child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        raise Abandoned() from late


def output(command, **kwargs):
    """The standard output of a short command that must succeed."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              check=False, **kwargs)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
