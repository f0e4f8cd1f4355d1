#!/usr/bin/env python3
"""Checks what the files of a deployment promise (compose*.yml, prometheus.yml, deploy/): run from the repository.

Every process of ours is scraped, every role is there, nothing is published beyond this machine, no secret stands in a
file, images have versions, and dashboards ask for metrics that exist, in a way that does not count them twice.
Needs PyYAML, docker-compose and promtool.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROFILES = [[], ["eventstore"], ["observability"], ["eventstore", "observability"]]
faults = []


def check(fine, what):
    if not fine and what not in faults:
        faults.append(what)


def compose(file, profiles):
    """A file as Compose understands it: anchors, defaults and all."""
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    command = ["docker-compose", "-f", str(ROOT / file), *flags, "config"]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, f"{file} with profiles {profiles}: {done.stderr.strip()}")
    return yaml.safe_load(done.stdout) if done.returncode == 0 else {"services": {}}


def serves(service):
    """The roles of a service that is a process of ours, else nothing."""
    command = service.get("command") or []
    if not service.get("image", "").startswith("beampipe-core") or command[:1] != ["serve"]:
        return set()
    roles = command[command.index("--role") + 1] if "--role" in command else "api,scheduler,worker"
    return set(roles.split(","))


def targets(file):
    jobs = yaml.safe_load((ROOT / file).read_text())["scrape_configs"]
    return {job["job_name"]: [t for group in job["static_configs"] for t in group["targets"]] for job in jobs}


def check_scrapes(file, services, prometheus):
    ours = {name: serves(service) for name, service in services.items() if serves(service)}
    scraped = targets(prometheus)
    check(sorted(scraped["beampipe"]) == sorted(f"{name}:9090" for name in ours),
          f"{prometheus}: job beampipe is not the processes of {file}: {sorted(ours)}")
    answering = [name for name, roles in ours.items() if "api" in roles]
    check(sorted(scraped["beampipe-api"]) == sorted(f"{name}:8080" for name in answering),
          f"{prometheus}: job beampipe-api is not the API processes of {file}: {sorted(answering)}")
    return ours


def check_service(file, name, service):
    where = f"{file}: {name}"
    for port in service.get("ports", []):
        shown = port if isinstance(port, str) else f"{port.get('host_ip')}:{port.get('published')}"
        check(shown.startswith("127.0.0.1:"), f"{where} publishes {shown} beyond this machine")
    image = service.get("image", "")
    check(re.search(r":v?\d+(\.\d+)+", image) is not None, f"{where}: image {image!r} has no full version")
    for key, value in (service.get("environment") or {}).items():
        secret = re.search(r"PASSWORD|SECRET|KEY|TOKEN", key)
        reference = key.endswith("_FILE") or "/run/secrets/" in str(value)
        check(not secret or reference, f"{where}: {key} is a secret in the file")
        check(not re.search(r"://[^/@\s]*:[^/@\s]*@", str(value)), f"{where}: {key} has a password in an address")
    if serves(service):
        check(service.get("read_only") is True and service.get("cap_drop") == ["ALL"], f"{where} may do more than it needs")
        stop = service.get("stop_grace_period", "10s")
        check(stop in ("60s", "1m", "1m0s"), f"{where}: {stop} is too short to hand jobs back")


def check_files(document, file):
    for name, secret in document.get("secrets", {}).items():
        check("file" in secret, f"{file}: secret {name} is not a file")
    for name, service in document["services"].items():
        for volume in service.get("volumes", []):
            source = (volume.split(":")[0] if isinstance(volume, str) else volume.get("source", ""))
            if source.startswith(str(ROOT)) and not source.startswith(str(ROOT / ".state")):
                check(pathlib.Path(source).exists(), f"{file}: {name} mounts {source}, which is not there")
    state = [v.split(":")[0] for s in document["services"].values() if serves(s)
             for v in s.get("volumes", []) if v.split(":")[1] == "/var/lib/beampipe"]
    check(len(state) == len(set(state)), f"{file}: two processes share a state directory: {state}")


def families():
    """Which metrics there are: of a process, and folded from the log."""
    page = (ROOT / "docs/reference/metrics.md").read_text()
    own, folded = page.split("## Folded from the log")
    names = re.compile(r"^\| `(beampipe_\w+)`", re.M)
    return set(names.findall(own)), set(names.findall(folded))


def check_dashboards():
    own, folded = families()
    recorded = set(re.findall(r"record: (\S+)", (ROOT / "prometheus.rules.yml").read_text()))
    expressions = []
    for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        board = json.loads(file.read_text())
        ids = [panel["id"] for panel in board["panels"]]
        check(len(ids) == len(set(ids)), f"{file.name}: two panels have one id")
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                where, asked = f"{file.name}: {panel['title']}", target["expr"]
                expressions.append(asked)
                for name in re.findall(r"\bbeampipe_\w+", asked):
                    family = re.sub(r"_(bucket|sum|count)$", "", name)
                    check(family in own | folded, f"{where}: there is no metric {name}")
                    once = re.search(r"max without \(instance, job\) \((\w+\()?" + name, asked)
                    check(family not in folded or once, f"{where}: {name} is exported by every process: take the max")
                    mine = re.search(name + r'\{[^}]*job="beampipe"', asked)
                    check(family not in own or mine, f'{where}: {name} is seen by two jobs: ask for job="beampipe"')
                for name in re.findall(r"\bbeampipe:[\w:]+", asked):
                    check(name in recorded, f"{where}: nothing records {name}")
    check(len(expressions) > 20, "the dashboard asks for too little")
    rules = [{"record": f"panel:{number}", "expr": asked} for number, asked in enumerate(expressions)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
        check(done.returncode == 0, f"a panel's expression cannot be read: {done.stdout}{done.stderr}")
    return len(expressions)


def check_alike():
    """The Prometheus of one process differs from that of several in its targets, and has no Alertmanager beside it."""
    several, single = (yaml.safe_load((ROOT / file).read_text()) for file in ("prometheus.yml", "deploy/single/prometheus.yml"))
    several.pop("alerting")
    for document in (several, single):
        for job in document["scrape_configs"]:
            job.pop("static_configs")
    check(several == single, "deploy/single/prometheus.yml differs from prometheus.yml in more than its targets")


def check_units():
    """Every environment file of a unit names settings that Compose or the configuration knows, and a listener of its own."""
    listeners = {}
    for file in sorted((ROOT / "deploy/systemd").glob("*.env")):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        values = dict(line.split("=", 1) for line in lines)
        check("BEAMPIPE_ROLES" in values, f"{file.name} names no role")
        check(not any(word in key for key in values for word in ("PASSWORD", "SECRET")), f"{file.name} has a secret in it")
        if file.stem != "all":
            listeners.setdefault(values.get("BEAMPIPE_METRICS__LISTEN"), []).append(file.name)
    check(all(len(files) == 1 for files in listeners.values()), f"listeners that two units share: {listeners}")


def main():
    roles, services = set(), 0
    for profiles in PROFILES:
        document = compose("compose.yml", profiles)
        services = max(services, len(document["services"]))
        ours = check_scrapes("compose.yml", document["services"], "prometheus.yml")
        roles |= set().union(*ours.values()) if ours else set()
        for name, service in document["services"].items():
            check_service("compose.yml", name, service)
        check_files(document, "compose.yml")
        for role, least in (("api", 2), ("scheduler", 2), ("worker", 2)):
            count = sum(role in one for one in ours.values())
            check(count >= least, f"compose.yml has {count} processes with role {role}, not {least}")
    single = compose("compose.single.yml", [])
    check_scrapes("compose.single.yml", single["services"], "deploy/single/prometheus.yml")
    for name, service in single["services"].items():
        check_service("compose.single.yml", name, service)
    check_files(single, "compose.single.yml")
    expressions = check_dashboards()
    check_alike()
    check_units()
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{services} services, roles {sorted(roles)}, {expressions} expressions of panels, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
