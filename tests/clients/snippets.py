"""The programs of docs/clients.md: fenced blocks with a file name behind the language.

Each program runs as it is printed, but for its addresses. Those become loopback addresses of its own, so that
compiled programs need no arguments and the checkouts of one machine do not meet.
"""

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/clients.md"
# Where the programs, what they need and what they are built into are.
BUILD = ROOT / "target/clients"

_BLOCK = re.compile(r"^```([a-z]+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GATEWAY = "127.0.0.1:8080/events/orders"
_REDIS_HOST = "127.0.0.1"
REDIS_PORT = 6379
# Programs that run in a page or on a phone.
PAGE_PROGRAMS = {"receive-fetch-event-source", "receive-react-native"}
GATEWAY_PORT = 8080


@dataclass(frozen=True)
class Program:
    language: str
    file: str
    text: str
    # Its own loopback address: of the proxy before the gateway, for a receiver.
    host: str

    @property
    def name(self):
        return self.file.rsplit(".", 1)[0]

    @property
    def receives(self):
        return "receive" in self.file.lower()

    @property
    def channel(self):
        """Publishers have the channel of the page, each receiver its own."""
        return self.name if self.receives else "orders"

    @property
    def runnable(self):
        """The text with its own addresses."""
        if self.receives:
            assert self.text.count(_GATEWAY) == 1, f"{self.file}: not one http://{_GATEWAY}"
            return self.text.replace(_GATEWAY, f"{self.host}:{GATEWAY_PORT}/events/{self.channel}")
        assert self.text.count(_REDIS_HOST) == 1, f"{self.file}: not one {_REDIS_HOST}"
        return self.text.replace(_REDIS_HOST, self.host)


def _host(number):
    one, two = hashlib.sha256(str(ROOT).encode()).digest()[:2]
    return f"127.{1 + one % 254}.{two}.{number}"


# All publishers publish to one Redis.
REDIS_HOST = _host(1)


def programs():
    found = []
    for number, (language, file, text) in enumerate(_BLOCK.findall(PAGE.read_text())):
        if not file:
            assert language in ("sh", "text", "console"), f"a block of {language} without a file name is not run"
            continue
        host = _host(10 + number) if "receive" in file.lower() else REDIS_HOST
        found.append(Program(language, file, text, host))
    return found


_FOLDER = {
    "js": lambda program: f"node/{program.file}",
    "python": lambda program: f"python/{program.file}",
    "rust": lambda program: f"rust/src/bin/{program.file}",
    # Each main package has a folder of its own.
    "go": lambda program: f"go/{program.name}/main.go",
    "java": lambda program: f"java/{program.file}",
}


def extract():
    wanted = {BUILD / _FOLDER[program.language](program): program.runnable for program in programs()}
    for pattern in ("go/*/main.go", "java/*.java", "rust/src/bin/*.rs"):
        for file in set(BUILD.glob(pattern)) - set(wanted):
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file that has not changed is not built again.
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def command(program):
    """What runs it, once tests/clients/prepare has built it."""
    match program.language:
        case "js":
            page = ["--import", "./page.mjs"] if program.name in PAGE_PROGRAMS else []
            return ["node", *page, program.file], BUILD / "node"
        case "python":
            return [sys.executable, program.file], BUILD / "python"
        case "rust":
            return [BUILD / "rust/target/debug" / program.name], BUILD
        case "go":
            return [BUILD / "go/bin" / program.name], BUILD
        case "java":
            path = (BUILD / "java/classpath.txt").read_text().strip()
            options = ["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Dfile.encoding=UTF-8"]
            return ["java", *options, "-cp", f"{BUILD}/java/classes:{path}", program.name], BUILD


if __name__ == "__main__":
    extract()
