#!/usr/bin/env python3
"""Runs one partitioned graph in a DALiuGE of this job's own, and ends when the graph has.

Started by the job script in the session's directory, once or, by srun, as one task a node: the first task starts the Data
Island Manager, every task a Node Manager. Exit: 0 the session finished, 1 it failed, 2 it was cancelled, 3 it could not be
run, 143 the job was told to end. What is known of the session is in `session.json`, always complete: it is written beside
and renamed. Nothing that is started here outlives it.

Python 3.8 or later, its standard library, and DALiuGE 6.6 on PATH.
"""

import argparse
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

FINISHED, FAILED, CANCELLED, NOT_RUN, TOLD_TO_END = 0, 1, 2, 3, 143
WORDS = ["pristine", "building", "deploying", "running", "finished", "cancelled", "failed"]
LOOK_EVERY, WRITE_EVERY = 1.0, 3.0
# A manager needs some seconds to load; on a busy file system minutes.
START_WITHIN = float(os.environ.get("BEAMPIPE_START_WITHIN", "300"))
# A manager that is alive and does not answer for this long is taken for lost.
SILENT_FOR = 120.0
MOST_DROPS, MOST_ERRORS, MOST_LOGS, MOST_LINES, LONGEST_LINE = 20000, 200, 20, 50, 8000
# What is in the session's directory.
RESULT, TASKS, LOGS = "session.json", "tasks", "log"


class CouldNotRun(Exception):
    """The graph was not run to its end, and not because of the graph."""


class ToldToEnd(Exception):
    """SIGTERM: the job is cancelled, or its time is over."""


def on_signal(number, _frame):
    # Once: what follows is the orderly end, which must not be broken off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise ToldToEnd(signal.Signals(number).name)


def say(*words):
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), *words, flush=True)


def put(path, value):
    """Writes a file so that whoever reads it sees all of it or what was there before."""
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=1)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)


def tail(path, lines=20):
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            return [line[:LONGEST_LINE] for line in file.read().decode("utf-8", "replace").splitlines()[-lines:]]
    except OSError:
        return []


# --- Managers ---------------------------------------------------------------------------------------------------


def die_with_parent():
    """Between fork and exec: the kernel ends the manager when its launcher is gone, even by SIGKILL."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        pass


def adopt_orphans():
    """What a manager leaves behind becomes our child, so that it can be ended."""
    try:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    except (OSError, AttributeError):
        pass


def children():
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                if name.isdigit() and int(file.read().rpartition(") ")[2].split()[1]) == os.getpid():
                    found.append(int(name))
        except (OSError, ValueError, IndexError):
            pass
    return found


def end_children(patience=3.0):
    """Ends every process below this one, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + patience
        told = set()
        while time.monotonic() < until:
            left = children()
            if not left:
                return
            for pid in left:
                try:
                    if os.waitpid(pid, os.WNOHANG)[0] == 0 and pid not in told:
                        told.add(pid)
                        os.kill(pid, number)
                except OSError:
                    pass
            time.sleep(0.05)


def free_ports(host, count):
    """Ports that nobody has; somebody may take one before the manager does, so starting is repeated."""
    held = []
    try:
        for _ in range(count):
            held.append(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            held[-1].bind((host, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def call(url, body=None, kind="application/json", timeout=60.0):
    """Asks a manager; proxies of the environment are for the world outside."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as answer:
        return json.load(answer)


def start_manager(kind, host, bind, count, options, settings):
    """Starts `dlg nm` or `dlg dim` on free ports, waits until it answers; returns process and ports."""
    program = shutil.which("dlg") or os.path.join(os.path.dirname(sys.executable), "dlg")
    if not os.path.exists(program):
        raise CouldNotRun("there is no program `dlg`: modules, venv and environment_setup have to bring DALiuGE")
    name = f"{kind}.{settings.rank}"
    for attempt in range(3):
        ports = free_ports(bind, count)
        log = os.path.join(LOGS, f"{name}.out")
        command = [program, kind, "-H", bind, "-P", str(ports[0]), "-l", LOGS] + options(ports) + settings.verbose
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent)
        until = time.monotonic() + START_WITHIN
        while process.poll() is None:
            try:
                call(f"http://{address(host)}:{ports[0]}/api", timeout=5.0)
                if process.poll() is None:
                    return process, ports
            except (OSError, ValueError):
                pass
            if time.monotonic() > until:
                raise CouldNotRun(f"{name} does not answer after {START_WITHIN:.0f} s; the end of {log}: " + ending(log))
            time.sleep(0.2)
        say(f"{name} ended with {process.returncode} at its start, attempt {attempt + 1} of 3")
    raise CouldNotRun(f"{name} did not start; the end of {log}: " + ending(log))


def address(host):
    return f"[{host}]" if ":" in host else host


def ending(log):
    return " / ".join(tail(log, 5)) or "(empty)"


def start_node(host, bind, settings):
    threads = ["-t", str(settings.max_threads)] if settings.max_threads else []
    process, ports = start_manager(
        "nm", host, bind, 3,
        lambda ports: ["--event_port", str(ports[1]), "--rpc_port", str(ports[2])] + threads, settings)
    return process, ":".join([host] + [str(port) for port in ports])


# --- Several tasks ----------------------------------------------------------------------------------------------


def gather(settings, host):
    """First task: waits for all others, and takes their Node Managers. Their connections stay open while we live."""
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(1024)
    listener.settimeout(START_WITHIN)
    word = secrets.token_hex(16)
    os.makedirs(TASKS, mode=0o700, exist_ok=True)
    put(os.path.join(TASKS, "first.json"), {"host": host, "port": listener.getsockname()[1], "word": word})
    nodes, lines = {}, []
    while len(nodes) < settings.tasks - 1:
        try:
            line, _ = listener.accept()
        except OSError:
            missing = settings.tasks - 1 - len(nodes)
            raise CouldNotRun(f"{missing} of {settings.tasks} tasks did not come within {START_WITHIN:.0f} s") from None
        try:
            line.settimeout(30.0)
            said = json.loads(line.makefile("r", encoding="utf-8").readline(4096))
            if not secrets.compare_digest(str(said["word"]), word):
                raise ValueError("wrong word")
            nodes[int(said["rank"])] = said["node"]
            lines.append(line)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say("somebody who is no task of this job called:", error)
            line.close()
    return [str(nodes[rank]) for rank in sorted(nodes) if nodes[rank]], lines


def serve(settings, host, bind):
    """Any other task: for as long as the first one lives, a Node Manager if it is the first of its node. A further one only
    waits: where srun is told so, the end of one task soon ends all."""
    process, node = start_node(host, bind, settings) if settings.first_of_node else (None, None)
    until, meeting = time.monotonic() + START_WITHIN, os.path.join(TASKS, "first.json")
    while not os.path.exists(meeting):
        if time.monotonic() > until:
            raise CouldNotRun("the first task of this job did not come")
        time.sleep(0.2)
    with open(meeting, encoding="utf-8") as file:
        first = json.load(file)
    with socket.create_connection((first["host"], first["port"]), timeout=60.0) as line:
        hello = {"word": first["word"], "rank": settings.rank, "node": node}
        line.sendall(json.dumps(hello).encode() + b"\n")
        line.settimeout(1.0)
        while process is None or process.poll() is None:
            try:
                if not line.recv(1):
                    return FINISHED
            except socket.timeout:
                pass
            except OSError:
                return FINISHED
    raise CouldNotRun(f"the Node Manager of task {settings.rank} ended with {process.returncode}")


# --- The graph --------------------------------------------------------------------------------------------------


def references(drop, *keys):
    """Oids in `{"<oid>": "<port>"}` or bare, both in one graph."""
    for key in keys:
        for one in drop.get(key) or []:
            yield from one if isinstance(one, dict) else [one]


def feeds(drop):
    return list(references(drop, "inputs", "streamingInputs", "producers"))


def mapped(template, nodes, island):
    """Puts each partition of the template on a node; the last element is no drop and stays."""
    with open(template, encoding="utf-8") as file:
        graph = json.load(file)
    if isinstance(graph, list) and len(graph) == 2 and isinstance(graph[0], str):
        graph = graph[1]
    drops = [drop for drop in graph if isinstance(drop, dict) and "oid" in drop] if isinstance(graph, list) else []
    if not drops:
        raise CouldNotRun(f"{template} is no graph with drops")
    for drop in drops:
        part = str(drop.get("node", "#0")).split(":")[0].lstrip("#")
        drop["node"], drop["island"] = nodes[int(part) % len(nodes) if part.isdigit() else 0], island
    if not any(not feeds(drop) for drop in drops):
        raise CouldNotRun("the graph has no roots, so it would stand still for ever")
    return graph, drops


def together(status):
    """One word over all nodes: failed when any has, finished only when every one has."""
    if not isinstance(status, dict) or not status:
        return "unknown"
    numbers = list(status.values())
    if 6 in numbers:
        return "failed"
    if any(isinstance(number, dict) for number in numbers):
        return "lost"
    if not all(type(number) is int and 0 <= number < len(WORDS) for number in numbers):
        return "unknown"
    return "cancelled" if 5 in numbers else WORDS[min(numbers)]


def in_error(state):
    return state.get("status") == 3 or state.get("execStatus") == 3


def progress(states, total):
    def count(of):
        return sum(1 for state in states.values() if of(state))

    return {
        "total": total,
        "completed": count(lambda state: state.get("status") == 2),
        "running": count(lambda state: state.get("status") == 1
                         or (state.get("execStatus") == 1 and state.get("status") == 0)),
        "failed": count(in_error),
    }


class Session:
    """One session of the Data Island Manager, and the file that tells of it."""

    def __init__(self, settings):
        self.name, self.base, self.path = settings.session, None, urllib.parse.quote(settings.session, safe="")
        self.drops, self.states, self.written = [], {}, 0.0
        self.facts = {
            "version": 1, "session": settings.session, "run": settings.run, "state": "pristine", "status": None,
            "job": os.environ.get("SLURM_JOB_ID"), "nodes": [], "started_at": int(time.time()), "ended_at": None,
            "interrupted": False, "error": None, "progress": progress({}, 0), "error_drops": [], "log": [],
        }

    def ask(self, rest, timeout=60.0):
        return call(f"{self.base}/sessions/{self.path}{rest}", timeout=timeout)

    def tell(self, rest, body, kind="application/json", timeout=600.0):
        try:
            return call(f"{self.base}/sessions{rest}", body, kind, timeout)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            raise CouldNotRun(f"the manager refused {rest or '/sessions'} with {error.code}: {said}") from None

    def start(self, graph, drops):
        self.drops = drops
        self.facts["progress"] = progress({}, len(drops))
        self.tell("", json.dumps({"sessionId": self.name}).encode())
        self.tell(f"/{self.path}/graph/append", json.dumps(graph).encode())
        size = self.ask("/graph/size")
        if size != len(drops):
            raise CouldNotRun(f"the manager has {size} of the {len(drops)} drops")
        roots = ",".join(drop["oid"] for drop in drops if not feeds(drop))
        form = urllib.parse.urlencode({"completed": roots}).encode()
        self.tell(f"/{self.path}/deploy", form, "application/x-www-form-urlencoded")

    def look(self, timeout=60.0):
        status = self.ask("/status", timeout)
        self.facts["status"], self.facts["state"] = status, together(status)
        return self.facts["state"]

    def count(self, timeout=60.0):
        states = self.ask("/graph/status", timeout)
        if isinstance(states, dict):
            self.states = {oid: state for oid, state in states.items() if isinstance(state, dict)}
            self.facts["progress"] = progress(self.states, len(self.drops))

    def explain(self, timeout=30.0):
        """Which drops are in error, first those where it began, with what these logged."""
        if self.facts["state"] == "cancelled":
            self.facts["progress"]["failed"] = 0  # what was stopped did not fail
            return
        failed = [drop for drop in self.drops if in_error(self.states.get(drop["oid"], {}))]

        def began(drop):
            return not any(in_error(self.states.get(oid, {})) for oid in feeds(drop))

        failed.sort(key=lambda drop: not began(drop))
        self.facts["error_drops"] = found = []
        for place, drop in enumerate(failed[:MOST_ERRORS]):
            one = {"oid": drop["oid"], "name": str(drop.get("name", drop["oid"])), "culprit": began(drop),
                   "dropclass": drop.get("dropclass"), "status": self.states[drop["oid"]]}
            if one["culprit"] and place < MOST_LOGS:
                try:
                    detail = self.ask("/graph/drop/" + urllib.parse.quote(drop["oid"], safe=""), timeout)
                    one["logs"] = [
                        {key: str(value)[:LONGEST_LINE] for key, value in line.items()}
                        for line in detail.get("logs", [])[-MOST_LINES:]]
                except (OSError, ValueError, AttributeError) as error:
                    one["log_missing"] = str(error)
            found.append(one)

    def write(self, last=False):
        facts = dict(self.facts, updated_at=int(time.time()))
        if last:
            facts["ended_at"] = facts["updated_at"]
            open_first = sorted(self.states.items(), key=lambda item: item[1].get("status") == 2)
            facts["drops"] = dict(open_first[:MOST_DROPS])
            facts["drops_left_out"] = max(0, len(open_first) - MOST_DROPS)
        put(RESULT, facts)
        self.written = time.monotonic()


def watch(session, managers):
    """Looks until the session has ended, and writes how far it is."""
    heard = time.monotonic()
    while True:
        for name, process in managers.items():
            if process.poll() is not None:
                raise CouldNotRun(f"the manager {name} ended with {process.returncode} while the graph was running")
        try:
            state = session.look()
            if state in ("finished", "failed", "cancelled"):
                session.count()
                session.explain()
                return {"finished": FINISHED, "failed": FAILED, "cancelled": CANCELLED}[state]
            if state == "lost":
                raise CouldNotRun(f"a node has lost the session: {json.dumps(session.facts['status'])[:2000]}")
            heard = time.monotonic()
            if heard - session.written > WRITE_EVERY:
                session.count()
                session.write()
        except (OSError, ValueError) as error:
            say("no answer:", error)
            if time.monotonic() - heard > SILENT_FOR:
                raise CouldNotRun(f"the managers have not answered for {SILENT_FOR:.0f} s: {error}") from None
        time.sleep(LOOK_EVERY)


def lead(settings, host, bind):
    """First task: the Data Island Manager and the session, to its end."""
    session, managers = Session(settings), {}
    try:
        try:
            session.write()
            nodes = []
            if settings.nodes == 1 or not settings.dim_alone:
                managers["nm"], node = start_node(host, bind, settings)
                nodes.append(node)
            others, lines = gather(settings, host) if settings.tasks > 1 else ([], [])
            nodes += others
            managers["dim"], ports = start_manager(
                "dim", host, bind, 1, lambda _: ["-N", ",".join(nodes)], settings)
            session.base = f"http://{address(host)}:{ports[0]}/api"
            session.facts["nodes"] = nodes
            session.start(*mapped(settings.template, nodes, f"{host}:{ports[0]}"))
            say("running", session.name, "with", len(session.drops), "drops on", len(nodes), "nodes")
            code = watch(session, managers)
        except (OSError, ValueError) as error:
            raise CouldNotRun(f"{type(error).__name__}: {error}") from error
    except CouldNotRun as error:
        session.facts["error"] = str(error)[:4000]
        session.facts["log"] = [line for name in ("nm.0", "dim.0") for line in tail(os.path.join(LOGS, f"{name}.out"))]
        code = NOT_RUN
    except ToldToEnd as error:
        session.facts.update(interrupted=True, error=f"the job was told to end by {error}")
        session.write(last=True)  # there may be little time
        stop(session)
        code = TOLD_TO_END
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last word is said whole
    session.facts["exit_code"] = code
    session.write(last=True)
    say("session", session.name, "is", session.facts["state"], session.facts["error"] or "")
    return code


def stop(session):
    """Has the graph cancelled, and keeps what can still be learned."""
    if session.base is None:
        return
    seen = session.facts["state"]
    try:
        session.count(2.0)
        session.explain(1.0)
        session.write(last=True)
        call(f"{session.base}/sessions/{session.path}/cancel", b"", timeout=3.0)
    except (OSError, ValueError) as error:
        say("the session could not be cancelled:", error)
    session.facts["state"] = seen if seen in ("finished", "failed") else "cancelled"


def whole(text):
    try:
        return max(1, int(text))
    except (TypeError, ValueError):
        return 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session", required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--run", default="")
    parser.add_argument("--max-threads", type=int, default=0)
    parser.add_argument("--verbose-level", type=int, default=0)
    parser.add_argument("--all-nics", action="store_true", help="listen on every address")
    parser.add_argument("--dim-alone", action="store_true", help="several nodes: none for drops beside the DIM")
    settings = parser.parse_args()
    settings.verbose = ["-v"] * min(settings.verbose_level, 3)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    # srun numbers the tasks of its step; the batch script alone is one task whatever was asked for.
    step = os.environ if "SLURM_STEP_ID" in os.environ else {}
    settings.rank, settings.tasks = int(step.get("SLURM_PROCID", "0")), whole(step.get("SLURM_STEP_NUM_TASKS"))
    settings.nodes, settings.first_of_node = whole(step.get("SLURM_STEP_NUM_NODES")), step.get("SLURM_LOCALID", "0") == "0"
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname() if settings.nodes > 1 else "127.0.0.1"
    bind = "0.0.0.0" if settings.all_nics and settings.nodes > 1 else host
    os.makedirs(LOGS, exist_ok=True)
    adopt_orphans()
    try:
        if settings.rank > 0:
            return serve(settings, host, bind)
        return lead(settings, host, bind)
    except CouldNotRun as error:
        say(error)
        return NOT_RUN
    except ToldToEnd:
        return TOLD_TO_END
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_children()


if __name__ == "__main__":
    sys.exit(main())
