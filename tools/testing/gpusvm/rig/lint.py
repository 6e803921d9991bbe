# SPDX-License-Identifier: GPL-2.0
"""make lint: every check is one result, and looks at the overlay's own files only."""

import os
import re
import subprocess

from rig import kernel, ui
from rig.kernel import LOGS, SRC, make
from rig.ktap import FAIL, PASS, Result
from rig.overlay import Overlay, read, write

REPO = "/repo"
# What a patch in a mail must have and a hook in a repository has not.
NOT_IN_HOOKS = "COMMIT_MESSAGE,MISSING_SIGN_OFF,FILE_PATH_CHANGES,NOT_UNIFIED_DIFF"
# 100 columns as rustfmt; the help of a test's own option may be short.
CHECKPATCH = [f"{SRC}/scripts/checkpatch.pl", "--no-tree", f"--root={SRC}", "--terse", "--quiet",
              "--no-signoff", "--show-types", "--max-line-length=100"]


def paths(*endings):
    """The overlay's files with one of these endings."""
    return sorted(path for path in Overlay(REPO, SRC).sources()
                  if path.endswith(endings) or os.path.basename(path) in endings)


def check(name, command, bad=None, **kwargs):
    """Runs a checker; it failed if it says so or if a line of its output matches `bad`."""
    log = f"{LOGS}/lint-{name}.log"
    os.makedirs(LOGS, exist_ok=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, check=False, **kwargs)
    with open(log, "w") as file:
        file.write(done.stdout)
    lines = [line for line in done.stdout.splitlines() if bad and re.search(bad, line)]
    why = (lines or done.stdout.strip().splitlines() or [""])[0 if lines else -1]
    if done.returncode or lines:
        if len(lines) > 1:
            why += f" (and {len(lines) - 1} more)"
        return Result(f"lint/{name}", FAIL, why), log
    return Result(f"lint/{name}", PASS), log


def rustfmt():
    files = [f"{SRC}/{path}" for path in paths(".rs")]
    return check("rustfmt", ["rustfmt", "--check", "-l", "--edition", "2021", "--config-path",
                             f"{SRC}/.rustfmt.toml", "--config", "skip_children=true,"
                             "unstable_features=true", *files],
                 env={**os.environ, "RUSTC_BOOTSTRAP": "1"})


def crates():
    """The object folders with Rust of ours: the kernel crate and the drivers."""
    drivers = {os.path.dirname(path) for path in paths(".rs") if path.startswith("drivers/")}
    return ["rust/", *(f"{path}/" for path in sorted(drivers)
                       if os.path.exists(f"{SRC}/{path}/Makefile"))]


def lint_kernel(plan):
    """A tree of its own, so that the checkers' objects are not mixed with the real ones."""
    one = plan.kernels["lint"]
    kernel.configure(one)
    ui.run(make(one, "prepare"), f"{LOGS}/lint-prepare.log", name="prepare")
    return one


def clippy(one):
    # Objects that are there already would not be looked at again.
    for path in ("rust/kernel.o", "rust/libkernel.rmeta"):
        if os.path.exists(f"{one.build}/{path}"):
            os.unlink(f"{one.build}/{path}")
    subprocess.run(["find", f"{one.build}/drivers", "-name", "*.o", "-delete"], check=False)
    return check("clippy", make(one, "-s", "CLIPPY=1", *crates()), bad=r"^(warning|error)\b")


def rustdoc(one):
    """Warnings about our files; the kernel has some of its own."""
    log = f"{LOGS}/lint-rustdoc.log"
    try:
        ui.run(make(one, "rustdoc"), log, name="rustdoc")
    except ui.Failed as failed:
        return Result("lint/rustdoc", FAIL, str(failed).splitlines()[-1]), log
    ours = set(paths(".rs"))
    text = read(log).decode(errors="replace")
    found = [match for match in re.findall(r"^warning: .*\n +--> (?:\.\./)*(?:/src/)?([^:\n]+):\d+",
                                           text, re.M) if match in ours]
    if found:
        return Result("lint/rustdoc", FAIL, f"{len(found)} warnings, first in {found[0]}"), log
    return Result("lint/rustdoc", PASS), log


def unsafe():
    """Unsafe code only where the design allows it."""
    allowed = re.compile(r"rust/kernel/(sync/rwsem\.rs|mm/|dma/|kunit/|drm/gpusvm/)|/ffi\.rs$")
    found = []
    for path in paths(".rs"):
        for number, line in enumerate(read(f"{SRC}/{path}").decode().splitlines(), 1):
            code = line.split("//")[0]
            if re.search(r"\bunsafe\b(?!_)", code) and not allowed.search(path):
                found.append(f"{path}:{number}: {line.strip()}")
    log = f"{LOGS}/lint-unsafe.log"
    write(log, "\n".join(found).encode(), 0o644)
    return Result("lint/unsafe", FAIL if found else PASS, found[0] if found else ""), log


def checkpatch():
    """Hooks as patches, C and Kconfig as files."""
    hooks = [path for path in Overlay(REPO, SRC).patches()]
    yield check("checkpatch-hooks", [*CHECKPATCH, "--ignore", NOT_IN_HOOKS, *hooks],
                bad=r"(ERROR|WARNING|CHECK):")
    files = [f"{SRC}/{path}" for path in paths(".c", ".h", "Kconfig", "Kconfig.gpusvm", "Makefile")]
    yield check("checkpatch-files", [*CHECKPATCH, "--file", *files], bad=r"(ERROR|WARNING|CHECK):")


def scripts():
    shell = [f"{REPO}/{path}" for path in paths(".sh")] + [f"{REPO}/.ci/run",
                                                            f"{REPO}/tools/testing/gpusvm/guest/init"]
    yield check("shell", ["sh", "-c", 'for f; do sh -n "$f" || exit 1; done', "sh", *shell])
    python = [f"{REPO}/{path}" for path in paths(".py")]
    code = "import ast, sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)"
    yield check("python", ["python3", "-W", "error", "-c", code, *python])


def lint(plan):
    """All checks, one after the other."""
    results = []
    one = None
    for name, checker in (("rustfmt", lambda: [rustfmt()]), ("unsafe", lambda: [unsafe()]),
                          ("checkpatch", checkpatch), ("scripts", scripts),
                          ("clippy", lambda: [clippy(one)]), ("rustdoc", lambda: [rustdoc(one)])):
        with ui.step(f"lint: {name}"):
            if name == "clippy":
                one = lint_kernel(plan)
            results += checker()
    return results
