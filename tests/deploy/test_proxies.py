"""deploy/proxies: each proxy with its shipped files, in front of real replicas that drain, die and hang up."""

import tempfile
import unittest
from collections import Counter

from proxies import BUSY, COMMANDS, ORIGIN, REPLICAS, Proxy, Replicas, Silent, Stream, at_once, request
from support import ROOT, until

NEW_STREAMS = 30
POSTS = 10
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "last-event-id",
}


class Failover(unittest.TestCase):
    def test_haproxy(self):
        self.holds("haproxy")

    def test_caddy(self):
        self.holds("caddy")

    def test_traefik(self):
        self.holds("traefik")

    def test_envoy(self):
        self.holds("envoy")

    def holds(self, name):
        with tempfile.TemporaryDirectory() as folder:
            # No heartbeat: what arrives was not pushed by one, and who leaves is not noticed by one.
            replicas = Replicas(folder, heartbeat="60m")
            self.addCleanup(replicas.stop)
            proxy = Proxy(name, folder, replicas)
            self.addCleanup(proxy.stop)
            try:
                until(proxy.is_up)
                self.passes_events_at_once(proxy)
                self.tells_that_a_client_left(proxy, replicas)
                self.answers_pages_of_other_origins(proxy)
                self.shows_the_outside_only_streams(proxy)
                self.survives_replicas(proxy, replicas)
            except AssertionError as error:
                raise AssertionError(proxy.log()) from error

    def passes_events_at_once(self, proxy):
        stream = proxy.stream("/events/at-once")
        stream.block()
        for data in ("first", "second"):
            # The second is published when the first has arrived, and nothing comes after it.
            self.assertEqual(proxy.publish("/events/at-once", data), 200)
            self.assertEqual(stream.event(), data)
        self.assertEqual(stream.headers["content-type"].split(";")[0], "text/event-stream")
        stream.close()

    def tells_that_a_client_left(self, proxy, replicas):
        until(lambda: replicas.streams() == 0)
        streams = [proxy.stream("/events/left") for _ in range(5)]
        for stream in streams:
            stream.block()
        self.assertEqual(replicas.streams(), 5)
        for stream in streams:
            stream.close()
        # Timeouts are 45 s: what ends sooner was noticed.
        until(lambda: replicas.streams() == 0, seconds=20)

    def answers_pages_of_other_origins(self, proxy):
        status, headers, _ = request("OPTIONS", proxy.public, "/events/a", headers=PREFLIGHT)
        self.assertIn(status, (200, 204))
        self.assertEqual(headers.get_all("access-control-allow-origin"), [ORIGIN])
        stream = proxy.stream("/events?channel=a", headers={"Origin": ORIGIN})
        self.assertEqual(stream.headers.get_all("access-control-allow-origin"), [ORIGIN])
        stream.close()

    def shows_the_outside_only_streams(self, proxy):
        for method, path in [("POST", "/events/a"), ("POST", "/revocations"), ("GET", "/metrics"), ("GET", "/")]:
            status = request(method, proxy.public, path, "x" if method == "POST" else None)[0]
            self.assertIn(status, (404, 405), f"{method} {path}")
        # What the gateway refuses is not hidden.
        self.assertEqual(request("GET", proxy.public, "/events/a%20b")[0], 400)

    def survives_replicas(self, proxy, replicas):
        first, second, third = REPLICAS
        # They keep the first one draining.
        held = [Stream(replicas.data_port, "/events/held", host=first) for _ in range(3)]
        replicas.drain(first)
        self.all_at_once(proxy, "drains")
        replicas.kill(second)
        self.all_at_once(proxy, "dead")
        # All of it was published where one replica is left.
        history = Stream(replicas.data_port, "/events/published?history=1000", host=third)
        until(lambda: replicas.metric(third, "fanfare_connections") > 0)
        # Caddy refuses some while it learns that a replica is dead.
        until(lambda: proxy.publish("/events/published", "the last") == 200)
        arrived = Counter(iter(history.event, "the last"))
        self.assertEqual({data for data, count in arrived.items() if count > 1}, set())
        self.assertLessEqual(self.published, set(arrived))
        for stream in [*held, history]:
            stream.close()

        replicas.kill(first)
        replicas.kill(third)
        answers = at_once(NEW_STREAMS, lambda _: request("GET", proxy.public, "/events/a", headers={"Origin": ORIGIN}))
        for status, headers, body in answers:
            self.assertEqual(status, 200)
            self.assertRegex(body, BUSY)
            self.assertEqual(headers["content-type"], "text/event-stream; charset=utf-8")
            self.assertEqual(headers["cache-control"], "no-store, no-transform")
            self.assertEqual(headers["vary"], "Origin")
            self.assertEqual(headers["access-control-allow-origin"], ORIGIN)
            self.assertEqual(headers["access-control-allow-credentials"], "true")
        # Each client draws its own time.
        self.assertGreater(len({body for _, _, body in answers}), NEW_STREAMS / 2)
        headers = request("GET", proxy.public, "/events/a", headers={"Origin": "https://other.example"})[1]
        self.assertNotIn("access-control-allow-origin", headers)
        body = request("GET", proxy.public, "/events?channel=a&control=comment")[2]
        self.assertRegex(body, r"\Aretry: [12]\d{4}\n: \$busy\n(: .*\n)?\n\Z")
        status, headers, _ = request("OPTIONS", proxy.public, "/events/a", headers=PREFLIGHT)
        self.assertEqual(status, 200)
        self.assertEqual(headers["access-control-allow-origin"], ORIGIN)
        self.assertIn("last-event-id", headers["access-control-allow-headers"].split(","))
        # A publisher is not told that all is well.
        self.assertGreaterEqual(proxy.publish("/events/published", "lost"), 500)

        replicas.start(second)
        until(proxy.is_up)

    published = frozenset()

    def all_at_once(self, proxy, case):
        """New streams and publishers while some replica does not take them."""

        def publish(number):
            data = f"{case} {number}"
            return data if proxy.publish("/events/published", data) == 200 else None

        def stream(_):
            stream = proxy.stream("/events/a")
            block = stream.block()
            self.assertEqual(stream.status, 200)
            self.assertRegex(block, r"\Aretry: \d+\n")
            stream.close()
            return "busy" if "$busy" in block else "stream"

        done = at_once(NEW_STREAMS + POSTS, lambda number: (publish if number < POSTS else stream)(number))
        self.published = self.published | {data for data in done[:POSTS] if data}
        outcomes = Counter(done[POSTS:])
        # One replica takes all; the others may be met more than once.
        self.assertGreater(outcomes["stream"], NEW_STREAMS / 2, outcomes)


class Requests(unittest.TestCase):
    def test_what_may_have_been_carried_out_is_not_repeated(self):
        replicas = Silent()
        self.addCleanup(replicas.stop)
        with tempfile.TemporaryDirectory() as folder:
            proxies = [Proxy(name, folder, replicas) for name in COMMANDS]
            for proxy in proxies:
                self.addCleanup(proxy.stop)
            for proxy in proxies:
                with self.subTest(proxy.name):
                    self.repeats_streams_only(proxy, replicas)

    def repeats_streams_only(self, proxy, replicas):
        def sent(method, port, path):
            """What a request was answered with, and how many replicas have seen it."""
            before = len(replicas.requests)
            status, _, body = request(method, port, path, "x" if method == "POST" else None)
            seen = replicas.requests[before:]
            self.assertEqual(seen, [[method, path]] * len(seen))
            return status, body, len(seen)

        def is_tried_elsewhere():
            try:
                status, body, attempts = sent("GET", proxy.public, "/events/a")
            except OSError:
                return False
            # Traefik, before it has read its files.
            if status == 404:
                return False
            self.assertRegex(body, BUSY)
            return attempts > 1

        def is_sent_once(port, path):
            status, _, attempts = sent("POST", port, path)
            self.assertGreaterEqual(status, 500)
            self.assertLessEqual(attempts, 1)
            return attempts == 1

        # Caddy passes over a replica that has just failed.
        until(is_tried_elsewhere)
        until(lambda: is_sent_once(proxy.inside, "/events/a"))
        until(lambda: is_sent_once(proxy.public, "/tickets"))


class Timeouts(unittest.TestCase):
    def test_heartbeats_keep_a_stream_open(self):
        with tempfile.TemporaryDirectory() as folder:
            replicas = Replicas(folder, heartbeat="1s")
            self.addCleanup(replicas.stop)
            # The relation is that of 45 s and 15 s.
            proxies = [Proxy(name, folder, replicas, timeout="3s") for name in COMMANDS]
            for proxy in proxies:
                self.addCleanup(proxy.stop)
                until(proxy.is_up)
            streams = {proxy.name: proxy.stream("/events/quiet") for proxy in proxies}

            def heartbeats(number):
                name = list(streams)[number]
                # Longer than the timeout.
                return name, all(streams[name].block() for _ in range(6))

            self.assertEqual(dict(at_once(len(streams), heartbeats)), {name: True for name in streams})
            for stream in streams.values():
                stream.close()


class Files(unittest.TestCase):
    def test_each_folder_is_tested(self):
        folders = {path.name for path in (ROOT / "deploy/proxies").iterdir() if path.is_dir()}
        self.assertEqual(folders, set(COMMANDS))

    def test_haproxy_holds_no_event_back(self):
        """Nothing but a stopwatch would show it: 200 ms per event."""
        text = (ROOT / "deploy/proxies/haproxy/haproxy.cfg").read_text()
        self.assertRegex(text, r"(?m)^    option http-no-delay$")


if __name__ == "__main__":
    unittest.main()
