# SPDX-License-Identifier: GPL-2.0
"""make docs: rustdoc of the kernel crate, and the overlay's own rst, as HTML."""

import os
import shutil

from rig import kernel, ui
from rig.kernel import LOGS, SRC, make
from rig.overlay import Overlay, write

OUT = "/cache/docs"
RUSTDOC = "Documentation/output/rust/rustdoc"
# Only what our own pages use: building all of Documentation takes far longer.
CONF = f"""import sys
sys.path.insert(0, "{SRC}/Documentation/sphinx")
project = "Rust GPU SVM"
extensions = []
master_doc = "index"
html_theme = "alabaster"
"""


def pages():
    return [path for path in Overlay("/repo", SRC).sources() if path.endswith(".rst")]


def rst(target):
    """Renders the overlay's rst; a warning is a failure."""
    work = f"{target}.src"
    shutil.rmtree(work, ignore_errors=True)
    names = []
    for path in pages():
        names.append(os.path.basename(path)[:-len(".rst")])
        os.makedirs(work, exist_ok=True)
        shutil.copy(f"{SRC}/{path}", work)
    if not names:
        return
    title = "Rust GPU shared virtual memory"
    toc = f"{title}\n{'=' * len(title)}\n\n.. toctree::\n\n" + "".join(f"   {n}\n" for n in names)
    write(f"{work}/index.rst", toc.encode(), 0o644)
    write(f"{work}/conf.py", CONF.encode(), 0o644)
    ui.run(["sphinx-build", "-q", "-W", "--keep-going", "-b", "html", work, target],
           f"{LOGS}/docs-rst.log", name="sphinx-build")
    shutil.rmtree(work)


def docs(plan):
    one = plan.kernels["test"]
    kernel.configure(one)
    os.makedirs(OUT, exist_ok=True)
    with ui.step("rustdoc of the kernel crate"), kernel.whole(one):
        ui.run(make(one, "prepare", "rustdoc"), f"{LOGS}/docs-rustdoc.log", name="rustdoc")
        shutil.rmtree(f"{OUT}/rustdoc", ignore_errors=True)
        shutil.copytree(f"{one.build}/{RUSTDOC}", f"{OUT}/rustdoc")
    with ui.step("the overlay's own pages"):
        rst(f"{OUT}/html")
    for page in ("rustdoc/kernel/index.html", "html/index.html"):
        if os.path.exists(f"{OUT}/{page}"):
            print(ui.host_path(f"{OUT}/{page}"))
    return 0
