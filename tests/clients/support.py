"""Processes that the tests of docs/clients.md need: Redis, gateways, a proxy that cuts connections, and the programs."""

import asyncio
import json
import os
import re
import socket
import struct
import tempfile
from pathlib import Path

import redis.asyncio

from snippets import GATEWAY_PORT, REDIS_HOST, REDIS_PORT, ROOT, command

FANFARE = Path(os.environ.get("FANFARE", ROOT / "target/debug/fanfare"))
# Long enough for anything that works, on a machine that is busy: a client that met a full replica waits up to
# 45 s.
DEADLINE_SECONDS = 120
# A program prints an event of 1 MB as one line.
LINE_BYTES = 4 << 20


def rights(user):
    """The rights that docs/protocol.md gives a user."""
    text = (ROOT / "docs/protocol.md").read_text()
    return re.search(rf"^ACL SETUSER {user} on >password (.*)$", text, re.MULTILINE).group(1).split()


async def until(what, condition):
    """Looks again and again until the condition holds."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}") from None


class Child:
    """A process that does not outlive the test."""

    async def start(self, *arguments, **options):
        self.process = await asyncio.create_subprocess_exec(*arguments, limit=LINE_BYTES, **options)

    async def stop(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Redis(Child):
    """A server at the address of the programs. Its default user has the least rights of a publisher."""

    async def __aenter__(self):
        self.directory = tempfile.TemporaryDirectory()
        options = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", self.directory.name]
        await self.start(
            "redis-server", "--port", str(REDIS_PORT), "--bind", REDIS_HOST, *options, stdout=asyncio.subprocess.DEVNULL
        )
        starting = redis.asyncio.Redis(host=REDIS_HOST, port=REDIS_PORT)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                assert self.process.returncode is None, f"redis-server has exited: is {REDIS_HOST}:{REDIS_PORT} taken?"
                try:
                    await starting.acl_setuser("test", enabled=True, passwords=["+test"], commands=["+@all"], keys=["*"], channels=["*"])
                    break
                except redis.ConnectionError:
                    await asyncio.sleep(0.05)
        await starting.aclose()
        self.client = redis.asyncio.Redis(host=REDIS_HOST, port=REDIS_PORT, username="test", password="test")
        await self.client.execute_command("ACL", "SETUSER", "gateway", "on", ">password", *rights("gateway"))
        return self

    async def restrict(self, channel):
        """The default user may publish to this channel and do nothing else."""
        least = [re.sub(r"sse:(\$key\.)?a\b", rf"sse:\1{channel}", right) for right in rights("shop")]
        await self.client.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", *least)

    async def keep(self, channel, data, *options):
        return await self.client.fcall("fanfare_publish", 1, f"sse:{channel}", data, *options)

    async def publish(self, channel, data):
        assert await self.client.publish(f"sse:{channel}", data) > 0, f"no gateway is subscribed to {channel}"

    async def __aexit__(self, *_):
        await self.client.aclose()
        await self.stop()
        self.directory.cleanup()


class Gateway(Child):
    """A gateway on a free port; `address` is its data listener."""

    async def __aenter__(self):
        return self

    async def run(self, **variables):
        environment = {
            "PATH": os.environ["PATH"],
            "FANFARE_LISTEN": "127.0.0.1:0",
            "FANFARE_ADMIN_LISTEN": "127.0.0.1:0",
            "FANFARE_REDIS_URL": f"redis://gateway:password@{REDIS_HOST}:{REDIS_PORT}",
            "FANFARE_DRAIN_DELAY": "0s",
            "FANFARE_DRAIN_PERIOD": "0s",
            "FANFARE_LOG_FORMAT": "json",
            **variables,
        }
        await self.start(FANFARE, env=environment, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                line = await self.process.stderr.readline()
                assert line, "the gateway has ended"
                entry = json.loads(line)
                if entry["message"] == "listening":
                    break
        host, port = entry["data"].split(":")
        self.address = (host, int(port))
        # What nobody reads would stop it.
        self.log = asyncio.create_task(self.process.stderr.read())
        await self.ready(entry["admin"])
        return self

    async def ready(self, admin):
        host, port = admin.split(":")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
                if answer.startswith(b"HTTP/1.1 200 "):
                    return
                await asyncio.sleep(0.05)

    async def drain(self):
        """Ends its streams in order, and itself."""
        self.process.terminate()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.process.wait()

    async def __aexit__(self, *_):
        await self.stop()


class Connection:
    """One connection of a client through the proxy, and what it has received."""

    def __init__(self, client):
        self.client = client
        self.received = bytearray()
        self.is_over = False

    @property
    def is_open(self):
        """The stream is active: the first `$cursor` has passed."""
        return b"event: $cursor\n" in self.received

    @property
    def heartbeats(self):
        return self.received.count(b"event: $cursor\n")

    def reset(self):
        self.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.transport.abort()

    def end(self):
        """The last chunk of the body is never sent."""
        self.client.close()


class Proxy:
    """Between a program and a gateway. `target` is where new connections go; None holds them."""

    def __init__(self, host):
        self.host = host
        self.target = None
        self.connections = []
        self.tasks = set()
        self.is_over = False

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.connected, self.host, GATEWAY_PORT)
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.is_over = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def last(self):
        return self.connections[-1]

    async def connected(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        while self.target is None and not self.is_over:
            await asyncio.sleep(0.02)
        if self.is_over or reader.at_eof():
            return  # the client did not wait
        connection = Connection(writer)
        try:
            from_gateway, to_gateway = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self.connections.append(connection)

        async def upstream():
            while data := await reader.read(65536):
                to_gateway.write(data)

        sending = asyncio.create_task(upstream())
        self.tasks.add(sending)
        try:
            while data := await from_gateway.read(65536):
                connection.received += data
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass  # one of the two has gone, or the test is over
        finally:
            connection.is_over = True
            sending.cancel()
            writer.close()
            to_gateway.transport.abort()


class Running(Child):
    """A program of the page, and the lines it prints."""

    def __init__(self, program):
        self.program = program
        self.lines = []

    async def __aenter__(self):
        arguments, folder = command(self.program)
        environment = {**os.environ, "PAGE_URL": f"http://{self.program.host}:{GATEWAY_PORT}/"}
        await self.start(
            *arguments,
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.reading = asyncio.create_task(self.read())
        return self

    async def read(self):
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode())

    def numbers(self):
        """The numbers of the events it has printed; each event's text must be whole."""
        found = [(re.search(r'"n": (\d+),', line), line) for line in self.lines]
        for match, line in found:
            assert match is None or "héllo ✓" in line, f"{self.program.file} has printed {line[:200]!r}"
        return [int(match.group(1)) for match, _ in found if match]

    def tail(self):
        return "".join(line[:300].rstrip("\n") + "\n" for line in self.lines[-20:])

    async def __aexit__(self, *_):
        await self.stop()
        await self.reading
