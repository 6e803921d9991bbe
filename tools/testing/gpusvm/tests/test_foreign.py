# SPDX-License-Identifier: GPL-2.0
"""Programs of others: their sources come from the archives of the build root."""

import os
import tempfile
import unittest
from unittest import mock

from rig import foreign, ui
from rig.plan import Foreign


class Source(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.enterContext(mock.patch.object(foreign, "SOURCES", self.folder))

    def program(self, digest):
        return Foreign("suite", {"make": "tools/suite", "source": f"package 1.2+ds-3 {digest}"})

    def test_list_of_archives(self):
        self.assertEqual(foreign.source_list("# deb a\ndeb [x=y] there suite main\n"),
                         "# deb a\ndeb-src [x=y] there suite main\n")

    def test_kept_archive_is_used_if_it_is_the_one(self):
        os.makedirs(f"{self.folder}/suite")
        path = f"{self.folder}/suite/package_1.2+ds.orig.tar.xz"
        with open(path, "w") as file:
            file.write("content")
        self.assertEqual(foreign.fetch(self.program(foreign.digest(path))), path)
        with mock.patch.object(foreign.ui, "run", side_effect=ui.Failed("asked the archive")), \
                mock.patch.object(foreign.ui, "say"), self.assertRaisesRegex(ui.Failed, "asked"):
            foreign.fetch(self.program("0" * 64))

    def test_missing_packages(self):
        self.assertEqual(foreign.missing(["python3", "no-such-package"]), ["no-such-package"])


if __name__ == "__main__":
    unittest.main()
