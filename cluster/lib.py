"""What the scripts that measure a cluster share: one of the shipped binary, beside whatever runs on the usual ports.

Imported, never run.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Cluster:
    """Nodes 1 to `nodes` with fresh data; gone with all they stored when the `with` ends."""

    def __init__(self, name, base, nodes, serve=()):
        self.nodes = range(1, nodes + 1)
        self.data = tempfile.mkdtemp(prefix=f"trivet-{name}-")
        self.http_base = base + 100
        line = ". cluster/lib.sh; find_or_build_trivet; echo $TRIVET_BIN"
        found = subprocess.run(["bash", "-c", line], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        self.binary = found.stdout.strip()
        self.environment = dict(
            os.environ,
            TRIVET_BIN=self.binary,
            CLUSTER_GRPC_BASE=str(base),
            CLUSTER_HTTP_BASE=str(self.http_base),
            CLUSTER_SERVE_ARGUMENTS=" ".join(serve),
            TRIVET_ENDPOINTS=",".join(f"127.0.0.1:{base + node}" for node in self.nodes),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.script("down", "--wipe")

    def script(self, name, *arguments):
        command = [str(ROOT / "cluster" / name), "--data", self.data, *arguments]
        subprocess.run(command, check=True, env=self.environment, stderr=subprocess.DEVNULL)

    def up(self):
        """Starts what does not run and waits until all are healthy."""
        self.script("up", "--no-demo", "--nodes", str(len(self.nodes)))

    def pid(self, node):
        return int((pathlib.Path(self.data) / f"node{node}" / "pid").read_text())

    def resident(self, node):
        """Bytes of memory that a node holds."""
        fields = pathlib.Path(f"/proc/{self.pid(node)}/stat").read_text().rpartition(")")[2].split()
        return int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    def trivet(self, *arguments):
        """Runs a verb; what it says as JSON, if anything."""
        command = [self.binary, *arguments, "-o", "json"]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"trivet {' '.join(arguments)} failed with {done.returncode}: {done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def begin_bench(self, *arguments):
        """Begins a load; its report is `report_of` what is returned."""
        command = [self.binary, "bench", "-o", "json", *arguments]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)

    def metrics(self, node):
        """Every metric of a node, summed over its labels; nothing of one that does not answer."""
        found = {}
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_base + node}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return found
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.partition("{")[0]
                found[name] = found.get(name, 0) + float(value)
        return found


def report_of(load, seconds=120):
    """Waits for a load to end, at most so long; its report, and how many of its calls failed."""
    output, _ = load.communicate(timeout=seconds)
    report = json.loads(output)
    return report, sum(report["errors"].values())


def keep(path, row):
    """Adds a row to a file of JSON lines, if one was asked for."""
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
