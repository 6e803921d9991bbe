# SPDX-License-Identifier: GPL-2.0
"""The plan: which kernels there are, which boots `make test` makes. It is read from plan.conf."""

import configparser
import os

from rig.ui import Failed

HERE = "/repo/tools/testing"


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
        self.limit = section.getint("limit", 300)
        self.memory = section.get("memory", "2G")
        self.cpus = section.getint("cpus", 2)
        self.target = section.get("target", name)
        self.test = section.getboolean("test", True)
        self.after = section.get("after", "")
        self.show = section.getboolean("show", False)


class Plan:
    """All of plan.conf."""

    def __init__(self, path=os.path.join(HERE, "gpusvm/plan.conf")):
        conf = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        if not conf.read(path):
            raise Failed(f"{path} cannot be read")
        self.kernels, self.boots = {}, {}
        for title in conf.sections():
            kind, _, name = title.partition(" ")
            if kind == "kernel":
                self.kernels[name] = Kernel(name, conf[title])
            elif kind == "boot":
                self.boots[name] = Boot(name, conf[title])
            else:
                raise Failed(f"{path}: [{title}] is neither a kernel nor a boot")

    def of_test(self, arch):
        """The boots that `make test` makes on an architecture."""
        boots = [boot for boot in self.boots.values()
                 if boot.test and self.kernels[boot.kernel].arch == arch]
        if not boots:
            raise Failed(f"there is nothing to test on {arch}")
        return boots

    def of_target(self, target):
        """The boots that `make <target>` makes."""
        return [boot for boot in self.boots.values() if boot.target == target]
