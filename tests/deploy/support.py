"""What the checks of the deployment files share."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FANFARE = Path(os.environ.get("FANFARE", ROOT / "target/debug/fanfare"))
# Beside this Python: the wheels bring kubectl, hadolint, gixy and nginx.
TOOLS = Path(sys.executable).parent
# Every deadline is for a machine that is busy.
DEADLINE_SECONDS = 60


def free_port(addresses=("127.0.0.1",)):
    """A port that was free a moment ago at all addresses, and that no connection takes by chance: it lies below the
    range that Linux chooses from (32,768 and up)."""
    while True:
        port = random.randrange(10_000, 32_768)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for address in addresses:
                sockets.enter_context(socket.create_server((address, port)))
            return port


def run(*command, check=True, **options):
    """The output of a command, both streams; fails with it."""
    # Where Debian has nginx.
    environment = options.pop("env", os.environ)
    environment = {**environment, "PATH": f"{TOOLS}:{os.environ['PATH']}:/usr/sbin"}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_SECONDS,
        **options,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}")
    return done.stdout


def line_with(process, stream, text):
    """The next line that holds a text; fails when it does not come."""
    late = threading.Timer(DEADLINE_SECONDS, process.kill)
    late.start()
    try:
        for line in stream:
            if text in line:
                return line
        raise AssertionError(f"{process.args} ended before it said {text!r}")
    finally:
        late.cancel()


def until(condition, seconds=DEADLINE_SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the deadline"
        time.sleep(0.01)


def address_in(line, name):
    """Of a line of the gateway's log."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", line)
    return re.search(rf"\b{name}=([\d.:]+)", plain).group(1)


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def load_all(path):
    return list(yaml.safe_load_all((ROOT / path).read_text()))


def environment_file(path):
    """NAME=value lines, as systemd, compose and kustomize read them."""
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def effective(variables, nginx=None):
    """The settings that a gateway with these variables has, by `fanfare check`; fails when it would not
    start. Secrets are files of another machine: some of this one stand in."""
    with tempfile.TemporaryDirectory() as folder:
        secrets = {
            "FANFARE_REDIS_URL_FILE": "redis://:secret@redis.example:6379\n",
            "FANFARE_JWT_SECRET_FILE": "0123456789abcdef0123456789abcdef\n",
            "FANFARE_JWT_PUBLIC_KEY_FILE": None,
        }
        given = dict(variables)
        # This machine's descriptor limit may be lower than that of the place.
        most = given.pop("FANFARE_MAX_CONNECTIONS", None)
        for name in given:
            if not name.endswith("_FILE"):
                continue
            file = Path(folder, name)
            if secrets[name] is None:
                key = Path(folder, "key")
                run("openssl", "genpkey", "-algorithm", "ed25519", "-out", key)
                run("openssl", "pkey", "-in", key, "-pubout", "-out", file)
            else:
                file.write_text(secrets[name])
            given[name] = str(file)
        arguments = ["--nginx", nginx] if nginx else []
        output = run(FANFARE, "check", *arguments, env={**given, "HOME": folder})
    lines = [line for line in output.splitlines() if line.startswith("FANFARE_")]
    settings = dict(line.split("=", 1) for line in lines)
    return settings if most is None else {**settings, "FANFARE_MAX_CONNECTIONS": most}


def seconds(text):
    """`1m 5s`, `500ms`, `30s`, `75`"""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "": 1}
    parts = re.findall(r"(\d+)\s*(ms|s|m|h|)", str(text))
    assert parts, text
    return sum(int(number) * units[unit] for number, unit in parts)


def quantity(text):
    """`512Mi`, `512M` of compose, `12k`, `500m`"""
    units = {"m": 1e-3, "k": 1e3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "M": 2**20, "G": 2**30}
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * (units[unit] if unit else 1)


def drain_seconds(settings):
    """How long a stop may take, the two seconds for the last bytes included."""
    delay, period = settings["FANFARE_DRAIN_DELAY"], settings["FANFARE_DRAIN_PERIOD"]
    return seconds(delay) + seconds(period) + 2


def port(address):
    return int(address.rsplit(":", 1)[1])


def memory_bytes(settings):
    """What a gateway needs when it is full: recent events, and each stream with the kernel's part
    (docs/scaling.md). Clients that are slow come on top."""
    return (64 << 20) + int(settings["FANFARE_MAX_CONNECTIONS"]) * 6 * 1024


def overlay(text):
    """What kustomize makes of a kustomization that stands in a folder beside the overlays."""
    # Inside the repository, so that it may name the components by relative paths.
    folder = Path(tempfile.mkdtemp(dir=ROOT / "k8s/overlays", prefix=".test-"))
    try:
        (folder / "kustomization.yaml").write_text(text)
        return kustomize(folder)
    finally:
        shutil.rmtree(folder)


def kustomize(folder):
    rendered = run("kubectl", "kustomize", folder)
    return [resource for resource in yaml.safe_load_all(rendered) if resource]
