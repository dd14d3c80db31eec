"""docs/openapi.yaml against a running gateway: routes, methods, parameters, statuses and what answers hold."""

import base64
import hashlib
import hmac
import http.client
import json
import re
import subprocess
import tempfile
import time
import unittest
import urllib.parse
from collections import defaultdict

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from support import FANFARE, ROOT, address_in, free_port, line_with, load, until

SECRET = "0123456789abcdef0123456789abcdef"
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}
ADMIN = {"/livez", "/readyz", "/metrics"}
# For people: the demo page and the console.
PAGES = {"/", "/console", "/console/feed"}
# In a URL they are refused: logs would keep them.
REFUSED = {"token", "jwt"}
# Of one subject in half a minute, docs/protocol.md.
TICKETS_AT_ONCE = 300
# Few enough for one request head, and one answer's.
NAMES_AT_ONCE = 8
# What no request here brings about: a body that stays away for 30 s, and a process that hangs.
NOT_PROVOKED = {
    ("/events/{channel}", "POST", 408),
    # tests/it/redis.rs has a Redis without functions.
    ("/events/{channel}", "POST", 501),
    ("/livez", "GET", 503),
}


def token(**claims):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    claims = {"exp": int(time.time()) + 600, **claims}
    signed = f"{part(json.dumps({'alg': 'HS256'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


def bearer(subject="someone", **grants):
    return {"Authorization": f"Bearer {token(sub=subject, fanfare=grants)}"}


class Gateway:
    def __init__(self, **variables):
        listen = {"FANFARE_LISTEN": "127.0.0.1:0", "FANFARE_ADMIN_LISTEN": "127.0.0.1:0"}
        self.process = subprocess.Popen([FANFARE], env={**listen, **variables}, stderr=subprocess.PIPE, text=True)
        line = line_with(self.process, self.process.stderr, "listening")
        self.data, self.admin = address_in(line, "data"), address_in(line, "admin")

    def request(self, method, path, body=None, headers={}):
        """Status, headers, and the body; of a stream its first block."""
        address = self.admin if path.split("?")[0] in ADMIN | PAGES - {"/"} else self.data
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            read = answer.readline() if "event-stream" in answer.headers.get("content-type", "") else answer.read()
            return answer.status, answer.headers, read
        finally:
            connection.close()

    def draw_all_tickets(self, headers):
        """On one connection: a subject gets ten new ones in a second."""
        connection = http.client.HTTPConnection(self.data, timeout=60)
        for _ in range(100 * TICKETS_AT_ONCE):
            connection.request("POST", "/tickets", headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 429:
                return connection.close()
        raise AssertionError("tickets have no limit")

    def ready(self):
        return self.request("GET", "/readyz")[0] == 200

    def stop(self):
        self.process.kill()
        self.process.communicate()


class Redis:
    def __init__(self):
        self.port, self.folder = free_port(), tempfile.TemporaryDirectory()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder.name]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def command(self, *words):
        subprocess.run(["redis-cli", "-p", str(self.port), *words], check=True, stdout=subprocess.DEVNULL)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class OpenApi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.document = load("docs/openapi.yaml")
        # Everything may be read and published without a token.
        cls.public = Gateway()
        cls.addClassCleanup(cls.public.stop)
        until(cls.public.ready)

    def operations(self):
        for path, item in self.document["paths"].items():
            for method in METHODS & {name.upper() for name in item}:
                yield path, method, item[method.lower()]

    def resolve(self, part):
        """A part, or what its `$ref` stands for."""
        if "$ref" not in part:
            return part
        found = self.document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return found

    def query(self, operation):
        return {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}

    def example(self, parameter):
        schema = parameter["schema"]
        schema = self.resolve(schema.get("items", schema))
        return str(parameter.get("example", schema.get("example", "x")))

    def test_it_is_valid(self):
        OpenAPIV31SpecValidator(self.document).validate()

    def test_its_routes_and_methods_are_the_gateways(self):
        for path, item in self.document["paths"].items():
            for method in METHODS:
                status, headers, _ = self.public.request(method, path.format(channel="a"), "{}")
                with self.subTest(path=path, method=method):
                    self.assertEqual(status == 405, method.lower() not in item, status)
                    self.assertNotEqual(status, 404)
                    if status == 405:
                        allowed = {one.strip() for one in headers["allow"].split(",")} - {"HEAD"}
                        self.assertEqual(allowed, METHODS & {name.upper() for name in item})
        # Whatever looks like a path in the program's source.
        sources = "".join(file.read_text() for file in (ROOT / "src").rglob("*.rs"))
        candidates = set(re.findall(r'"(/[a-z0-9_./{}-]*)"', sources))
        self.assertLess(ADMIN, candidates)
        routes = {path for path in candidates if self.public.request("GET", path.format(channel="a"))[0] != 404}
        self.assertEqual({route.rstrip("/") for route in routes - PAGES}, set(self.document["paths"]))

    def test_every_parameter_of_a_stream_is_known_and_every_known_one_is_there(self):
        sources = [*(ROOT / "src").rglob("*.rs"), ROOT / "docs/protocol.md"]
        # A parameter's name is somewhere in the source: as a literal, or as what a name of a type becomes.
        words = {word for file in sources for word in re.findall(r"[A-Za-z][A-Za-z_-]*", file.read_text())}
        words |= {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower() for word in words}
        for path in ("/events/{channel}", "/events"):
            known = self.query(self.document["paths"][path]["get"])
            mandatory = "" if "{" in path else "channel=a&"
            for name, parameter in known.items():
                with self.subTest(path=path, known=name):
                    # A ticket cannot be invented, and one that was drawn elsewhere says no more.
                    refused = name == "ticket"
                    status, headers, _ = self.public.request(
                        "GET", f"{path.format(channel='a')}?{mandatory}{name}={urllib.parse.quote(self.example(parameter))}"
                    )
                    self.assertEqual(status, 401 if refused else 200)
                    self.assertNotIn("fanfare-ignored", headers)
            for name in REFUSED:
                self.assertEqual(self.public.request("GET", f"{path.format(channel='a')}?{mandatory}{name}=x")[0], 400)
            unknown = sorted(words - set(known) - REFUSED)
            for start in range(0, len(unknown), NAMES_AT_ONCE):
                batch = unknown[start : start + NAMES_AT_ONCE]
                query = "&".join(f"{word}=x" for word in batch)
                status, headers, _ = self.public.request("GET", f"{path.format(channel='a')}?{mandatory}{query}")
                ignored = {name.strip() for name in headers["fanfare-ignored"].split(",")}
                self.assertEqual((status, ignored), (200, set(batch)))

    def test_every_parameter_of_a_publisher_is_known_and_every_known_one_is_there(self):
        known = self.query(self.document["paths"]["/events/{channel}"]["post"])
        status, _, body = self.public.request("POST", "/events/a?unknown=x", "x")
        detail = json.loads(body)["detail"]
        self.assertEqual(status, 400)
        told = re.search(r"there are (.*)$", detail).group(1)
        self.assertEqual(set(re.split(r", | and ", told)), set(known))
        for name, parameter in known.items():
            with self.subTest(name):
                value = urllib.parse.quote(self.example(parameter))
                status, _, body = self.public.request("POST", f"/events/a?{name}={value}", "x")
                self.assertEqual(status, 200, body)
        for name in REFUSED:
            self.assertEqual(self.public.request("POST", f"/events/a?{name}=x", "x")[0], 400)

    def test_every_status_occurs_and_every_answer_is_as_described(self):
        redis = Redis()
        self.addCleanup(redis.stop)
        locked = Gateway(
            FANFARE_JWT_SECRET=SECRET,
            FANFARE_REDIS_URL=f"redis://127.0.0.1:{redis.port}",
            FANFARE_MAX_EVENT_BYTES="1KiB",
        )
        self.addCleanup(locked.stop)
        until(locked.ready)
        redis.command("SET", "sse:taken", "no history")
        everything = bearer(subscribe=["*"], publish=["*"], run=["*"], admin=True)
        nothing = bearer()
        json_type = {"content-type": "application/json"}
        seen = set()

        def check(status, method, path, one=None, body=None, headers={}, gateway=locked):
            """The answer to a request, which the document's `path` describes."""
            with self.subTest(status=status, method=method, path=path):
                found, answered, content = gateway.request(method, one or path, body, headers)
                self.assertEqual(found, status, content)
                described = self.document["paths"][path][method.lower()]["responses"]
                self.assertIn(str(status), described)
                response = self.resolve(described[str(status)])
                media_types = list(response.get("content", {}))
                self.assertEqual(answered.get_all("content-type", []), media_types)
                for name, header in response.get("headers", {}).items():
                    self.assertTrue(not header.get("required") or name in answered, name)
                if "json" in answered.get("content-type", ""):
                    (media,) = response["content"].values()
                    schema = {**media["schema"], "components": self.document["components"]}
                    Draft202012Validator(schema).validate(json.loads(content))
                seen.add((path, method, status))

        for path in ADMIN:
            check(200, "GET", path)
        for path, one in (("/events/{channel}", "/events/a?"), ("/events", "/events?channel=a")):
            check(200, "GET", path, one, headers=everything)
            check(400, "GET", path, f"{one}&channel=%20", headers=everything)
            check(401, "GET", path, one)
            check(403, "GET", path, one, headers=nothing)
        channel = "/events/{channel}"
        check(200, "POST", channel, "/events/a", "x", everything)
        _, _, ended = locked.request("POST", "/events/run?end=done", "x", everything)
        back = {**everything, "last-event-id": json.loads(ended)["id"]}
        for path, one in ((channel, "/events/run"), ("/events", "/events?channel=run")):
            check(204, "GET", path, one, headers=back)
        for _ in range(2):
            locked.request("POST", "/events/cut?history=1", "x", everything)
        for path, one in ((channel, "/events/cut?"), ("/events", "/events?channel=cut&")):
            check(410, "GET", path, f"{one}from=start&control=comment", headers=everything)
        check(409, "POST", channel, "/events/run", "x", everything)
        check(400, "POST", channel, "/events/a?retry=x", "x", everything)
        check(401, "POST", channel, "/events/a", "x")
        check(403, "POST", channel, "/events/a", "x", nothing)
        check(409, "POST", channel, "/events/taken", "x", everything)
        check(413, "POST", channel, "/events/a", "x" * 2048, everything)
        check(200, "POST", "/tickets", headers=everything)
        check(401, "POST", "/tickets")
        check(403, "POST", "/tickets", gateway=self.public)
        locked.draw_all_tickets(everything)
        check(429, "POST", "/tickets", headers=everything)
        asked = {"body": '{"jti":"5f1c","ttl":60}'}
        check(200, "POST", "/revocations", headers={**everything, **json_type}, **asked)
        check(400, "POST", "/revocations", body="{}", headers={**everything, **json_type})
        check(401, "POST", "/revocations", headers=json_type, **asked)
        check(403, "POST", "/revocations", headers={**nothing, **json_type}, **asked)
        check(413, "POST", "/revocations", body=" " * 9000, headers={**everything, **json_type})
        check(415, "POST", "/revocations", headers=everything, **asked)

        limited = Gateway(FANFARE_JWT_SECRET=SECRET, FANFARE_PUBLISH_RATE_PER_SUBJECT="1/h")
        self.addCleanup(limited.stop)
        check(200, "POST", channel, "/events/a", "x", everything, limited)
        check(429, "POST", channel, "/events/a", "x", everything, limited)

        redis.process.kill()
        until(lambda: not locked.ready())
        other = bearer(subscribe=["*"], publish=["*"], admin=True, subject="other")
        check(503, "GET", "/readyz")
        for path, one in (("/events/{channel}", "/events/a"), ("/events", "/events?channel=a")):
            check(200, "GET", path, one, headers=other)
            check(503, "GET", path, one, headers={**other, "Fanfare-Busy": "503"})
        check(503, "POST", channel, "/events/a", "x", other)
        check(503, "POST", "/tickets", headers=other)
        check(503, "POST", "/revocations", headers={**other, **json_type}, **asked)

        statuses = {
            (path, method, int(status))
            for path, method, operation in self.operations()
            for status in operation["responses"]
        }
        self.assertEqual(statuses - NOT_PROVOKED, seen)


if __name__ == "__main__":
    unittest.main()
