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
# What the kernel has and programs have not; and the types of the test harness, which checkpatch
# takes for multiplications.
NOT_IN_PROGRAMS = "VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO,EMBEDDED_FUNCTION_NAME,SPACING," \
                  "COMPLEX_MACRO"
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


def rust():
    """The kernel's Rust: programs in tools/ have cargo's checks."""
    return [path for path in paths(".rs") if not path.startswith("tools/")]


def rustfmt():
    files = [f"{SRC}/{path}" for path in rust()]
    return check("rustfmt", ["rustfmt", "--check", "-l", "--edition", "2021", "--config-path",
                             f"{SRC}/.rustfmt.toml", "--config", "skip_children=true,"
                             "unstable_features=true", *files],
                 env={**os.environ, "RUSTC_BOOTSTRAP": "1"})


def crates():
    """The objects of the Rust crates with code of ours: the kernel crate and the drivers."""
    found = ["rust/kernel.o"]
    for path in paths("Makefile"):
        folder, text = os.path.dirname(path), read(f"{SRC}/{path}").decode()
        for name in re.findall(r"^obj-\$\(CONFIG_\w+\) \+= (\w+)\.o", text, re.M):
            if os.path.exists(f"{SRC}/{folder}/{name}.rs"):
                found.append(f"{folder}/{name}.o")
    return found


def compile_command(one, crate):
    """How kbuild compiles a crate, as it wrote it down; without the steps after the compiler."""
    folder, name = os.path.split(crate)
    kept = read(f"{one.build}/{folder}/.{name}.cmd").decode()
    return re.match(r"savedcmd_\S+ := *(.*?) *(;.*)?$", kept, re.M)[1]


def checker(command, compiler, outputs):
    """The same compilation by a checker that leaves no object where kbuild would find it."""
    command = re.sub(r" --(emit|out-dir|remap-path-scope)[= ]\S+", "", command)
    command = re.sub(r"( |^)rustc ", rf"\1{compiler} ", command, count=1)
    return ["sh", "-c", f"{command} {outputs}"]


def build_crates(plan):
    """The crates as they are in the test kernel: nothing to do after `make test`."""
    one = plan.kernels["test"]
    kernel.configure(one)
    folders = dict.fromkeys(f"{os.path.dirname(crate)}/" for crate in crates())
    with kernel.whole(one):
        ui.run(make(one, "prepare", *folders), f"{LOGS}/lint-prepare.log", name="prepare")
    return one


def blocks(log):
    """What rustc and rustdoc complain about: (message, file, line)."""
    text = read(log).decode(errors="replace")
    return re.findall(r"^((?:warning|error)(?:\[\w+\])?: .*)\n +--> "
                      r"(?:\.\./)*(?:/src/)?([^:\n]+):(\d+)", text, re.M)


def complaints(name, commands, cwd):
    """What checkers say about our files; also how one fails that says nothing about them."""
    found, why, ours = [], "", set(rust())
    for number, command in enumerate(commands):
        log = f"{LOGS}/lint-{name}{number or ''}.log"
        try:
            ui.run(command, log, name=name, cwd=cwd,
                   env={**os.environ, "RUSTC_BOOTSTRAP": "1", "CLIPPY_CONF_DIR": SRC})
        except ui.Failed as failed:
            why = why or str(failed).splitlines()[1]
        found += [block for block in blocks(log) if block[1] in ours]
        if why or found:
            break
    if found:
        message, path, line = found[0]
        why = f"{path}:{line}: {message}" + (f" (and {len(found) - 1} more)" if found[1:] else "")
    return Result(f"lint/{name}", FAIL if why else PASS, why), log


def clippy(one):
    commands = [checker(compile_command(one, crate), "clippy-driver",
                        f"--emit=metadata=/tmp/{os.path.basename(crate)}.rmeta")
                for crate in crates()]
    return complaints("clippy", commands, one.build)


def rustdoc(one):
    """The kernel crate's documentation, for its warnings."""
    command = checker(compile_command(one, "rust/kernel.o"), "rustdoc", "--output /tmp/rustdoc")
    return complaints("rustdoc", [command], one.build)


def unsafe():
    """Unsafe code only where the design allows it."""
    allowed = re.compile(r"rust/kernel/(sync/rwsem\.rs|mm/|dma/|kunit/|drm/gpusvm/)|/ffi\.rs$")
    found = []
    for path in rust():
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
    groups = {"files": [], "trace": [], "programs": []}
    for path in files:
        kind = "programs" if path.startswith("tools/") else "trace" if "trace" in path else "files"
        groups[kind].append(path)
    ignored = {"files": [], "trace": ["--ignore", NOT_IN_TRACE],
               "programs": ["--ignore", NOT_IN_PROGRAMS]}
    for name, some in groups.items():
        if some:
            yield check(f"checkpatch-{name}", [*CHECKPATCH, *ignored[name], "--file",
                                               *(f"{SRC}/{path}" for path in some)],
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
                one = build_crates(plan)
            results += checker()
    return results
