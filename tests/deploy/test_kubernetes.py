"""k8s/: what kustomize makes of it is valid, restricted, and of one piece with the program."""

import ctypes
import os
import re
import subprocess
import tempfile
import unittest
from contextlib import contextmanager
from pathlib import Path

import kubernetes_validate
import yaml

from support import (
    FANFARE,
    ROOT,
    address_in,
    drain_seconds,
    effective,
    kustomize,
    line_with,
    load,
    memory_bytes,
    overlay,
    port,
    quantity,
    run,
    until,
)

# The oldest that has the preStop sleep switched on, and the newest that the schemas know.
VERSIONS = ["1.30", "1.37"]
# Definitions of these come with their operators, not with Kubernetes: they are checked by hand below.
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}
# That the standard, and every kubelet, takes (Kubernetes 1.30).
SAFE_SYSCTLS = {"net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ip_unprivileged_port_start"}
# Made by the operator of the cluster, as overlays/prod/kustomization.yaml says.
SECRETS = {"fanfare", "fanfare-tls"}


def alternative(*components):
    """The production overlay with other components."""
    text = (ROOT / "k8s/overlays/prod/kustomization.yaml").read_text()
    production = yaml.safe_load(text)
    production["components"] = [f"../../components/{component}" for component in components]
    # A patch is read from the kustomization's own folder or below: this one goes inline.
    patch = (ROOT / "k8s/overlays/prod/secrets.yaml").read_text()
    production["patches"] = [{"patch": patch}]
    return overlay(yaml.safe_dump(production))


def of(resources, kind):
    return [resource for resource in resources if resource["kind"] == kind]


def named(resources, kind, name):
    found = [one for one in of(resources, kind) if one["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def pods(resources):
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in of(resources, "Deployment")]


def selected(resources, labels):
    return [
        template["spec"]
        for _, template in pods(resources)
        if labels.items() <= template["metadata"]["labels"].items()
    ]


def ports(spec):
    return {one["name"]: one["containerPort"] for c in spec["containers"] for one in c["ports"]}


@contextmanager
def stopped_thread(thread):
    """One thread of a child stands still (ptrace(2))."""
    seize, interrupt, detach, any_thread = 0x4206, 0x4207, 17, 0x40000000
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long

    def ask(request):
        if ptrace(request, thread, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    ask(seize)
    ask(interrupt)
    os.waitpid(thread, any_thread)
    try:
        yield
    finally:
        ask(detach)


class Every:
    """What holds in every build; `resources` is made once a class."""

    def test_it_is_valid(self):
        resources = self.resources
        for resource in resources:
            if resource["kind"] in CUSTOM:
                continue
            for version in VERSIONS:
                kubernetes_validate.validate(resource, version, strict=True)

    def test_everything_is_in_the_namespace(self):
        resources = self.resources
        for resource in resources:
            if resource["kind"] == "Namespace":
                enforced = resource["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
                self.assertEqual(enforced, "restricted")
            else:
                self.assertEqual(resource["metadata"]["namespace"], "fanfare", resource["kind"])

    def test_pods_keep_to_the_restricted_pod_security_standard(self):
        """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
        volumes = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"}
        volumes |= {"persistentVolumeClaim"}
        resources = self.resources
        for name, template in pods(resources):
            spec = template["spec"]
            annotations = template["metadata"].get("annotations", {})
            self.assertFalse([a for a in annotations if "apparmor" in a], name)
            for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertFalse(spec.get(forbidden, False), f"{name}: {forbidden}")
            for volume in spec.get("volumes", []):
                self.assertLessEqual(set(volume) - {"name"}, volumes, name)
            whole = spec["securityContext"]
            self.assertLessEqual({one["name"] for one in whole.get("sysctls", [])}, SAFE_SYSCTLS, name)
            for container in spec["containers"] + spec.get("initContainers", []):
                own = container["securityContext"]
                both = {**whole, **own}
                self.assertIs(both["runAsNonRoot"], True, name)
                self.assertGreater(both["runAsUser"], 0, name)
                self.assertEqual(both["seccompProfile"]["type"], "RuntimeDefault", name)
                self.assertIs(own["allowPrivilegeEscalation"], False, name)
                self.assertEqual(own["capabilities"], {"drop": ["ALL"]}, name)
                self.assertFalse(own.get("privileged", False), name)
                for forbidden in ("procMount", "seLinuxOptions", "windowsOptions"):
                    self.assertNotIn(forbidden, both, name)
                self.assertFalse([p for p in container["ports"] if "hostPort" in p], name)
                # More than the standard asks for.
                self.assertIs(own["readOnlyRootFilesystem"], True, name)
                self.assertIs(spec["automountServiceAccountToken"], False, name)
                self.assertIn("memory", container["resources"]["limits"], name)
                self.assertIn("cpu", container["resources"]["requests"], name)

    def test_images_are_pinned(self):
        resources = self.resources
        for _, template in pods(resources):
            for container in template["spec"]["containers"]:
                image = container["image"]
                tag = image.rsplit("/", 1)[-1].partition(":")[2]
                self.assertTrue(tag and tag != "latest", image)
                # The version of the program is the tag of its image.
                if "fanfare" in image:
                    self.assertEqual(tag, run("cargo", "pkgid", cwd=ROOT).strip()[-len(tag):])

    def test_what_is_referred_to_exists(self):
        resources = self.resources
        config_maps = {one["metadata"]["name"] for one in of(resources, "ConfigMap")}
        for _, template in pods(resources):
            spec = template["spec"]
            if "serviceAccountName" in spec:
                account = named(resources, "ServiceAccount", spec["serviceAccountName"])
                self.assertIs(account["automountServiceAccountToken"], False)
            mounted = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", [])}
            self.assertEqual(mounted, {volume["name"] for volume in spec.get("volumes", [])})
            sources = [
                source
                for volume in spec.get("volumes", [])
                for source in volume.get("projected", {}).get("sources", [volume])
            ]
            for source in sources:
                if "configMap" in source:
                    self.assertIn(source["configMap"]["name"], config_maps)
                if "secret" in source:
                    secret = source["secret"]
                    self.assertIn(secret.get("name", secret.get("secretName")), SECRETS)
            for container in spec["containers"]:
                for reference in container.get("envFrom", []):
                    self.assertIn(reference["configMapRef"]["name"], config_maps)
                for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                    target = container.get(probe, {}).get("httpGet", {}).get("port")
                    self.assertTrue(target is None or target in ports(spec), target)

    def test_selectors_find_pods_and_ports_have_names(self):
        resources = self.resources
        for service in of(resources, "Service"):
            found = selected(resources, service["spec"]["selector"])
            self.assertEqual(len(found), 1, service["metadata"]["name"])
            for one in service["spec"]["ports"]:
                self.assertIn(one["targetPort"], ports(found[0]))
                # A headless service has no ports of its own to translate.
                if service["spec"].get("clusterIP") == "None":
                    self.assertEqual(one["port"], ports(found[0])[one["targetPort"]])
        for budget in of(resources, "PodDisruptionBudget"):
            self.assertTrue(selected(resources, budget["spec"]["selector"]["matchLabels"]))
        for policy in of(resources, "NetworkPolicy"):
            found = selected(resources, policy["spec"]["podSelector"]["matchLabels"])
            self.assertEqual(len(found), 1, policy["metadata"]["name"])
            for rule in policy["spec"]["ingress"]:
                for one in rule["ports"]:
                    self.assertIn(one["port"], ports(found[0]))
        for deployment in of(resources, "Deployment"):
            spec = deployment["spec"]
            labels = spec["template"]["metadata"]["labels"]
            self.assertLessEqual(spec["selector"]["matchLabels"].items(), labels.items())
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                self.assertTrue(selected(resources, spread["labelSelector"]["matchLabels"]))
        scalers = of(resources, "HorizontalPodAutoscaler")
        for scaler in scalers:
            target = named(resources, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
            # Applied anew, the number would be undone.
            self.assertNotIn("replicas", target["spec"])

    def gateway(self, resources):
        """The gateway's pod, and the settings it comes to."""
        (spec,) = selected(resources, {"app.kubernetes.io/component": "gateway"})
        (container,) = spec["containers"]
        name = container["envFrom"][0]["configMapRef"]["name"]
        given = named(resources, "ConfigMap", name)["data"]
        for variable, value in given.items():
            if variable.endswith("_FILE"):
                mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
                self.assertIn(str(Path(value).parent), mounts)
        return spec, container, effective(given)

    def test_names_can_be_looked_up_wherever_the_name_server_is(self):
        """With NodeLocal DNSCache it is in the node's network, which no selector finds."""
        asking = [
            policy["spec"].get("egress")
            for policy in of(self.resources, "NetworkPolicy")
            if "Egress" in policy["spec"]["policyTypes"]
        ]
        for rules in filter(None, asking):
            anywhere = [one for rule in rules if "to" not in rule for one in rule["ports"]]
            for protocol in ("UDP", "TCP"):
                self.assertIn({"port": 53, "protocol": protocol}, anywhere)

    def test_pods_are_replaced_one_after_the_other(self):
        """A pod that leaves counts no more; only minReadySeconds keeps the next waiting."""
        for deployment in of(self.resources, "Deployment"):
            spec = deployment["spec"]
            if "minReadySeconds" not in spec:
                self.assertEqual(spec["replicas"], 1, deployment["metadata"]["name"])
                continue
            self.assertEqual(spec["strategy"]["rollingUpdate"], {"maxUnavailable": 0, "maxSurge": 1})
            pod = spec["template"]["spec"]
            if deployment["metadata"]["name"] == "fanfare":
                _, container, settings = self.gateway(self.resources)
                leaves = container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_seconds(settings)
            else:
                # nginx ends when its streams do, and is killed then.
                leaves = pod["terminationGracePeriodSeconds"]
            self.assertGreaterEqual(spec["minReadySeconds"], leaves)
            self.assertGreater(spec.get("progressDeadlineSeconds", 600), 2 * spec["minReadySeconds"])

    def test_who_is_not_ready_gets_no_streams_but_where_a_controller_would_answer_503(self):
        by_controller = of(self.resources, "Ingress") + of(self.resources, "HTTPRoute")
        for service in of(self.resources, "Service"):
            expected = bool(by_controller) and service["metadata"]["name"] == "fanfare"
            self.assertEqual(service["spec"].get("publishNotReadyAddresses", False), expected)

    def test_the_gateway_starts_with_what_it_is_given(self):
        resources = self.resources
        spec, container, settings = self.gateway(resources)
        self.assertEqual(
            ports(spec),
            {"http": port(settings["FANFARE_LISTEN"]), "admin": port(settings["FANFARE_ADMIN_LISTEN"])},
        )
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        # And the time it takes to be told and to end.
        self.assertGreaterEqual(
            spec["terminationGracePeriodSeconds"], pause + drain_seconds(settings) + 3
        )
        limit = quantity(container["resources"]["limits"]["memory"])
        self.assertGreater(limit, 1.5 * memory_bytes(settings))
        for scaler in of(resources, "HorizontalPodAutoscaler"):
            if scaler["metadata"]["name"] == "fanfare":
                target = scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
                most = int(settings["FANFARE_MAX_CONNECTIONS"])
                self.assertEqual(quantity(target), 0.6 * most)


class Dev(Every, unittest.TestCase):
    resources = kustomize(ROOT / "k8s/overlays/dev")


class Prod(Every, unittest.TestCase):
    resources = kustomize(ROOT / "k8s/overlays/prod")


class IngressAndKeda(Every, unittest.TestCase):
    resources = alternative("ingress", "autoscaling-keda", "monitoring")


class GatewayApi(Every, unittest.TestCase):
    resources = alternative("gateway-api", "autoscaling-hpa")


class Pieces(unittest.TestCase):
    """What is particular to a component."""

    def test_the_two_autoscalers_agree(self):
        adapter = load("k8s/components/autoscaling-hpa/adapter-rules.yaml")["rules"][0]
        hpa = named(Prod.resources, "HorizontalPodAutoscaler", "fanfare")["spec"]
        keda = named(IngressAndKeda.resources, "ScaledObject", "fanfare")["spec"]
        self.assertEqual(adapter["name"]["as"], hpa["metrics"][0]["pods"]["metric"]["name"])
        inside = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self.assertEqual(inside, hpa["behavior"])
        self.assertEqual(keda["minReplicaCount"], hpa["minReplicas"])
        self.assertEqual(keda["maxReplicaCount"], hpa["maxReplicas"])
        self.assertEqual(keda["scaleTargetRef"]["name"], hpa["scaleTargetRef"]["name"])
        connections, cpu = keda["triggers"]
        target = hpa["metrics"][0]["pods"]["target"]["averageValue"]
        self.assertEqual(float(connections["metadata"]["threshold"]), quantity(target))
        utilization = hpa["metrics"][1]["resource"]["target"]["averageUtilization"]
        self.assertEqual(int(cpu["metadata"]["value"]), utilization)

    def test_the_rules_are_those_of_deploy_prometheus(self):
        made = run(ROOT / "deploy/prometheus/as-kubernetes")
        file = ROOT / "k8s/components/monitoring/prometheusrule.yaml"
        self.assertEqual(file.read_text(), made, "deploy/prometheus/as-kubernetes > it")
        rule = named(Prod.resources, "PrometheusRule", "fanfare")
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as groups:
            yaml.safe_dump(rule["spec"], groups)
            groups.flush()
            run("promtool", "check", "rules", groups.name)

    def test_custom_resources_name_what_is_there(self):
        for name in ("fanfare", "nginx"):
            monitor = named(Prod.resources, "ServiceMonitor", name)
            spec = monitor["spec"]
            (service,) = [
                one
                for one in of(Prod.resources, "Service")
                if spec["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
            ]
            self.assertEqual(service["metadata"]["labels"][spec["jobLabel"]], name)
            (endpoint,) = spec["endpoints"]
            (port,) = [one for one in service["spec"]["ports"] if one["name"] == endpoint["port"]]
            # And what is asked may be reached from where Prometheus is.
            pod = service["spec"]["selector"]["app.kubernetes.io/name"]
            policy = named(Prod.resources, "NetworkPolicy", pod)["spec"]
            (rule,) = [
                rule
                for rule in policy["ingress"]
                for source in rule.get("from", [])
                if source.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                == "monitoring"
            ]
            self.assertEqual(rule["ports"], [{"port": port["targetPort"]}])
            # What kube-prometheus-stack looks for.
            self.assertIn("release", monitor["metadata"]["labels"])
        self.assertIn("release", named(Prod.resources, "PrometheusRule", "fanfare")["metadata"]["labels"])
        for file in ("k8s/components/monitoring/kustomization.yaml", "docs/kubernetes.md"):
            self.assertIn("release: kube-prometheus-stack", (ROOT / file).read_text())

        resources = GatewayApi.resources
        for rule in named(resources, "HTTPRoute", "fanfare")["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                target = named(resources, "Service", backend["name"])
                self.assertIn(backend["port"], [one["port"] for one in target["spec"]["ports"]])
            # A stream has no end.
            self.assertEqual(rule["timeouts"], {"request": "0s", "backendRequest": "0s"})

    def test_nginx_listens_where_its_pods_say(self):
        (spec,) = selected(Prod.resources, {"app.kubernetes.io/name": "nginx"})
        site = ROOT / "k8s/components/nginx/site"
        for file, name in [("public.conf", "https"), ("inside.conf", "inside")]:
            listens = re.findall(r"^listen (?:\[::\]:)?(\d+)", (site / file).read_text(), re.M)
            # IPv4, and IPv6.
            self.assertEqual(listens, 2 * [str(ports(spec)[name])], file)
        # Who gets there is said by the NetworkPolicy alone.
        self.assertNotRegex((site / "inside.conf").read_text(), r"(?m)^\s*(allow|deny) ")

    def test_the_ingress_is_set_as_nginx_is(self):
        (ingress,) = of(IngressAndKeda.resources, "Ingress")
        annotations = {
            name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()
        }
        # Where nginx.conf says nothing, nginx' default; and what stands there for this place alone.
        other = {"proxy-request-buffering": "on", "load-balance": "ewma", "ssl-redirect": "true"}
        other["proxy-next-upstream"] = "error timeout"
        text = (ROOT / "nginx/nginx.conf").read_text()
        for name, value in annotations.items():
            if name in other:
                self.assertEqual(value, other[name], name)
                continue
            directive = {"proxy-body-size": "client_max_body_size"}.get(name, name.replace("-", "_"))
            # Among others: tickets and publishing have values of their own.
            values = re.findall(rf"^ +{directive} (.*);$", text, re.M)
            self.assertIn(f"{value}s" if name.endswith("-timeout") else value, values, name)
        for name, value in [("read", 45), ("send", 45), ("connect", 1)]:
            self.assertEqual(annotations[f"proxy-{name}-timeout"], str(value))

    def test_the_guide_to_larger_replicas_begins_with_what_is_shipped(self):
        guide = (ROOT / "docs/scaling.md").read_text().split("## The replica")[1].split("\n## ")[0]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in guide.splitlines() if "|" in line]
        told = {row[0]: row[2:] for row in rows[2:]}
        spec, container, settings = Prod().gateway(Prod.resources)
        scaler = named(Prod.resources, "HorizontalPodAutoscaler", "fanfare")["spec"]
        resources = container["resources"]
        shipped = {
            "`FANFARE_SHARDS`": settings["FANFARE_SHARDS"],
            "`FANFARE_MAX_CONNECTIONS`": f"{int(settings['FANFARE_MAX_CONNECTIONS']):,}",
            "`cpu` request": resources["requests"]["cpu"],
            "`memory` request, limit": f"{resources['requests']['memory']}, {resources['limits']['memory']}",
            "target of streams per replica": scaler["metrics"][0]["pods"]["target"]["averageValue"],
            "max replicas": str(scaler["maxReplicas"]),
        }
        self.assertEqual({name: told[name][0] for name in shipped}, shipped)
        # And what it leads to fits together as what is shipped does.
        larger = {name: values[1] for name, values in told.items()}
        most = larger["`FANFARE_MAX_CONNECTIONS`"].replace(",", "")
        limit = quantity(larger["`memory` request, limit"].split(", ")[1])
        self.assertGreater(limit, 1.5 * memory_bytes({"FANFARE_MAX_CONNECTIONS": most}))
        self.assertEqual(quantity(larger["target of streams per replica"]), 0.6 * int(most))

    def test_keda_is_new_enough_for_what_it_is_told(self):
        fallback = named(IngressAndKeda.resources, "ScaledObject", "fanfare")["spec"]["fallback"]
        if "behavior" in fallback:
            for file in ("k8s/components/autoscaling-keda/kustomization.yaml", "docs/kubernetes.md"):
                self.assertIn("KEDA 2.17", (ROOT / file).read_text(), file)

    def test_a_replica_whose_shard_hangs_is_killed(self):
        """One thread is stopped, as a debugger does it; the others go on. The liveness probe says so."""
        (spec,) = selected(Prod.resources, {"app.kubernetes.io/component": "gateway"})
        path = spec["containers"][0]["livenessProbe"]["httpGet"]["path"]
        # A service manager that waits for a second, so that the test does not take half a minute.
        variables = {
            "FANFARE_LISTEN": "127.0.0.1:0",
            "FANFARE_ADMIN_LISTEN": "127.0.0.1:0",
            "FANFARE_SHARDS": "2",
            "WATCHDOG_USEC": "1000000",
        }
        gateway = subprocess.Popen([FANFARE], env=variables, stderr=subprocess.PIPE, text=True)
        try:
            admin = address_in(line_with(gateway, gateway.stderr, "listening"), "admin")
            status = lambda: run("curl", "-so/dev/null", "-w%{http_code}", f"http://{admin}{path}")
            tasks = Path(f"/proc/{gateway.pid}/task")
            shard = lambda: [one for one in tasks.iterdir() if Path(one, "comm").read_text() == "shard-1\n"]
            # A thread names itself, a moment after it was started.
            until(shard)
            self.assertEqual(status(), "200")
            with stopped_thread(int(shard()[0].name)):
                until(lambda: status() == "503")
            until(lambda: status() == "200")
        finally:
            gateway.kill()
            gateway.communicate()

    def test_every_path_that_is_asked_is_there(self):
        everything = Prod.resources + IngressAndKeda.resources + GatewayApi.resources
        (spec,) = selected(Prod.resources, {"app.kubernetes.io/component": "gateway"})
        container = spec["containers"][0]
        probes = [container[name]["httpGet"] for name in container if name.endswith("Probe")]
        self.assertEqual({probe["port"] for probe in probes}, {"admin"})
        monitor = named(Prod.resources, "ServiceMonitor", "fanfare")["spec"]["endpoints"][0]
        admin = {probe["path"] for probe in probes} | {monitor["path"]}
        routes = [rule for one in of(everything, "HTTPRoute") for rule in one["spec"]["rules"]]
        public = {match["path"]["value"] for rule in routes for match in rule["matches"]}
        for ingress in of(everything, "Ingress"):
            paths = {path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]}
            self.assertEqual(paths, public)
        nginx = (ROOT / "nginx/nginx.conf").read_text().split("only internal services reach")[0]
        locations = set(re.findall(r"location (?:= )?(/\w+)", nginx))
        self.assertEqual(locations, public)

        listen = {"FANFARE_LISTEN": "127.0.0.1:0", "FANFARE_ADMIN_LISTEN": "127.0.0.1:0"}
        key = {"FANFARE_JWT_SECRET": "0123456789abcdef0123456789abcdef"}
        gateway = subprocess.Popen([FANFARE], env=listen | key, stderr=subprocess.PIPE, text=True)
        try:
            line = line_with(gateway, gateway.stderr, "listening")

            def status(listener, path):
                url = f"http://{address_in(line, listener)}{path}"
                # No grant, or no body; but the path is known.
                return int(run("curl", "-so/dev/null", "-w%{http_code}", "-XPOST", url, check=False))

            for path in admin:
                run("curl", "--fail", "-s", f"http://{address_in(line, 'admin')}{path}")
            self.assertEqual(status("data", "/nowhere"), 404)
            for path in public:
                self.assertNotEqual(status("data", path), 404, path)
        finally:
            gateway.kill()
            gateway.communicate()

    def test_configuration_comes_from_the_files_that_others_use(self):
        resources = Prod.resources
        for prefix, key, file in [
            ("nginx-", "nginx.conf", "nginx/nginx.conf"),
            ("fanfare-dashboard", "fanfare.json", "deploy/grafana/dashboards/fanfare.json"),
        ]:
            held = [
                one["data"][key]
                for one in of(resources, "ConfigMap")
                if one["metadata"]["name"].startswith(prefix) and key in one["data"]
            ]
            self.assertEqual(held, [(ROOT / file).read_text()])


if __name__ == "__main__":
    unittest.main()
