# SPDX-License-Identifier: GPL-2.0
"""The plan: kernels, programs, and the boots that `make test` makes. It is read from plan.conf."""

import configparser
import os
import shlex

from rig.ui import Failed

HERE = "/repo/tools/testing"
DEVICES = {"iommu", "edu"}


class Kernel:
    """A kernel: a name and the config fragments it is made of."""

    def __init__(self, name, section):
        self.name = name
        self.arch = section.get("arch", "x86_64")
        self.configs = [os.path.join(HERE, path) for path in section["configs"].split()]
        self.build = f"/build/{name}"


class Boot:
    """One start of the virtual machine; the keys are explained in plan.conf."""

    def __init__(self, name, section):
        self.name = name
        self.kernel = section.get("kernel", "test")
        self.run = section.get("run", "").split()
        self.append = section.get("append", "").split()
        self.limit = section.getint("limit", 600)
        self.memory = section.get("memory", "2G")
        self.cpus = section.getint("cpus", 2)
        self.target = section.get("target", name)
        self.test = section.getboolean("test", True)
        self.after = section.get("after", "")
        self.show = section.getboolean("show", False)
        self.devices = section.get("devices", "iommu edu").split()
        if not set(self.devices) <= DEVICES:
            raise Failed(f"boot {name}: devices are: {' '.join(sorted(DEVICES))}")
        self.qemu = section.get("qemu", "")
        self.beside = section.get("beside", "")
        self.stage = section.get("stage", "")
        self.guest = section.get("guest", "").split()
        self.known = section.get("known", "")

    def slow(self, factor):
        """Gives the boot, and each program in it, more time."""
        self.limit *= factor
        self.append.append(f"gpusvm.slow={factor}")

    @property
    def interactive(self):
        """Whether somebody sits at the machine's terminal."""
        return any(name.endswith("shell") for name in self.run)


class Program:
    """A program of the repository that runs in the build root, made by cargo."""

    def __init__(self, name, section):
        self.name = name
        self.source = os.path.join("/repo", section["cargo"])
        self.env = dict(word.split("=", 1) for word in section.get("env", "").split())
        self.check = section.getboolean("check", True)
        self.target = f"/build/cargo/{name}"
        self.path = f"{self.target}/release/{name}"


class Foreign:
    """A program of others, built for the guest from a source package of Debian."""

    def __init__(self, name, section):
        self.name = name
        self.source = os.path.join("/repo", section["make"])
        self.package = section["source"].split()
        if len(self.package) != 3:
            raise Failed(f"foreign {name}: source is a package, its version and a SHA-256")
        self.packages = section.get("packages", "").split()
        # A new version is built beside the old one.
        self.tree = f"/build/foreign/{name}/{self.package[1]}"
        self.target = f"/build/foreign/{name}/build-{self.package[1]}"
        self.path = f"{self.target}/{name}"


def inherit(conf, title):
    """Gives a boot what the one says that it is like, which may be like another one."""
    section = conf[title]
    like = section.pop("like", None)
    if like is None:
        return
    if f"boot {like}" not in conf:
        raise Failed(f"[{title}]: there is no [boot {like}]")
    inherit(conf, f"boot {like}")
    for key, value in conf[f"boot {like}"].items():
        section.setdefault(key, value)


def words(text, **values):
    """The words of a key: quoted as for a shell, with {folder} and the like filled in."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return shlex.split(text)


class Plan:
    """All of plan.conf."""

    def __init__(self, path=os.path.join(HERE, "gpusvm/plan.conf")):
        conf = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        if not conf.read(path):
            raise Failed(f"{path} cannot be read")
        self.kernels, self.boots, self.programs, self.foreign = {}, {}, {}, {}
        for title in conf.sections():
            kind, _, name = title.partition(" ")
            if kind == "kernel":
                self.kernels[name] = Kernel(name, conf[title])
            elif kind == "boot":
                inherit(conf, title)
                self.boots[name] = Boot(name, conf[title])
            elif kind == "program":
                self.programs[name] = Program(name, conf[title])
            elif kind == "foreign":
                self.foreign[name] = Foreign(name, conf[title])
            else:
                raise Failed(f"{path}: [{title}] is no kernel, boot or program")
        for boot in self.boots.values():
            unknown = [name for name in boot.guest if name not in self.foreign]
            if unknown:
                raise Failed(f"{path}: boot {boot.name}: there is no [foreign {unknown[0]}]")

    def of_test(self, arch):
        """The boots that `make test` makes on an architecture."""
        boots = [boot for boot in self.boots.values()
                 if boot.test and self.kernels[boot.kernel].arch == arch]
        if not boots:
            raise Failed(f"there is nothing to test on {arch}")
        return boots

    def command(self, text, **values):
        """A command of a key: its program is one of the plan, the repository or the build root."""
        name, *rest = words(text, **values)
        if name in self.programs:
            name = self.programs[name].path
        elif "/" in name:
            name = os.path.join("/repo", name)
        return [name, *rest]

    def used(self, boot):
        """The programs that a boot uses."""
        first = [words.split()[0] for words in (boot.beside, boot.stage) if words]
        return [program for name, program in self.programs.items() if name in first] \
            + [self.foreign[name] for name in boot.guest]

    def of_target(self, target):
        """The boots that `make <target>` makes."""
        return [boot for boot in self.boots.values() if boot.target == target]
