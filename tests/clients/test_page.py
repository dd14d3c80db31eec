"""docs/clients.md names the versions that its programs run with."""

import json
import re
import unittest
import xml.etree.ElementTree as ElementTree

from snippets import PAGE, ROOT

HERE = ROOT / "tests/clients"
# Of the tests alone.
UNNAMED = {"jsdom", "slf4j-nop"}


def pinned():
    """What a reader has to install, as the page writes it."""
    for line in (HERE / "python/requirements.txt").read_text().splitlines():
        if "==" in line:
            yield line
    for name, version in json.loads((HERE / "node/package.json").read_text())["dependencies"].items():
        yield f"{name}@{version}"
    for name, version in re.findall(r"^\t(\S+) (v\S+)$", (HERE / "go/go.mod").read_text(), re.MULTILINE):
        yield f"{name}@{version}"
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    for dependency in ElementTree.parse(HERE / "java/pom.xml").findall("m:dependencies/m:dependency", space):
        yield ":".join(dependency.find(f"m:{part}", space).text for part in ("groupId", "artifactId", "version"))
    cargo = (HERE / "rust/Cargo.toml").read_text().split("[dependencies]")[1]
    for name, version in re.findall(r'^(\S+) = (?:{ version = )?"([^"]+)"', cargo, re.MULTILINE):
        yield f"{name}@{version}"


class Page(unittest.TestCase):
    def test_it_says_what_to_install(self):
        page = PAGE.read_text()
        versions = [one for one in pinned() if not any(name in one for name in UNNAMED)]
        self.assertGreater(len(versions), 18)
        missing = [one for one in versions if not re.search(rf"{re.escape(one)}[` ]", page)]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
