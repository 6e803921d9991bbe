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
        self.test = section.getboolean("test", True)


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
