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
NOT_IN_HOOKS = ("COMMIT_MESSAGE,MISSING_SIGN_OFF,FILE_PATH_CHANGES,NOT_UNIFIED_DIFF,"
                "EMBEDDED_FILENAME")
# What the tracing macros are and demand.
NOT_IN_TRACE = "COMPLEX_MACRO,EXPORT_SYMBOL"
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
    """An object tree of its own for the checkers, begun as a copy of the test kernel's."""
    one, test = plan.kernels["lint"], plan.kernels["test"]
    if os.path.exists(f"{test.build}/vmlinux"):
        os.makedirs(one.build, exist_ok=True)
        ui.output(["rsync", "-a", "--delete", "--exclude=vmlinux*", "--exclude=.tmp_*",
                   "--exclude=/arch/x86/boot", f"{test.build}/", f"{one.build}/"])
    kernel.configure(one)
    ui.run(make(one, "prepare"), f"{LOGS}/lint-prepare.log", name="prepare")
    # Objects that are there already would not be looked at again.
    for folder in crates():
        name = "kernel.o" if folder == "rust/" else "*.o"
        subprocess.run(["find", f"{one.build}/{folder}", "-name", name, "-delete"],
                       stderr=subprocess.DEVNULL, check=False)
    return one


def blocks(log):
    """What rustc and rustdoc complain about: (message, file, line)."""
    text = read(log).decode(errors="replace")
    return re.findall(r"^((?:warning|error)(?:\[\w+\])?: .*)\n +--> "
                      r"(?:\.\./)*(?:/src/)?([^:\n]+):(\d+)", text, re.M)


def compiler(name, command, only=None):
    """A compiler that checks: its complaints about our files, or its failure."""
    log = f"{LOGS}/lint-{name}.log"
    why = ""
    try:
        ui.run(command, log, name=name)
    except ui.Failed as failed:
        why = str(failed).splitlines()[1]
    found = [block for block in blocks(log) if only is None or block[1] in only]
    if found:
        message, path, line = found[0]
        why = f"{path}:{line}: {message}" + (f" (and {len(found) - 1} more)" if found[1:] else "")
    return Result(f"lint/{name}", FAIL if why else PASS, why), log


def clippy(one):
    return compiler("clippy", make(one, "CLIPPY=1", *crates()))


def rustdoc(one):
    """Complaints about our files; the kernel has some of its own."""
    return compiler("rustdoc", make(one, "rustdoc"), set(paths(".rs")))


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
    files = paths(".c", ".h", "Kconfig", "Kconfig.gpusvm", "Makefile")
    trace = [path for path in files if "trace" in path]
    for name, some, but in (("files", set(files) - set(trace), []),
                            ("trace", trace, ["--ignore", NOT_IN_TRACE])):
        if some:
            yield check(f"checkpatch-{name}", [*CHECKPATCH, *but, "--file",
                                               *(f"{SRC}/{path}" for path in sorted(some))],
                        bad=r"(ERROR|WARNING|CHECK):")


def scripts():
    shell = [f"{REPO}/{path}" for path in (".ci/run", "tools/testing/gpusvm/guest/init",
                                           *paths(".sh"))]
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
