"""Ray that a run starts is reached from this machine alone."""

import subprocess
import sys

LISTENERS = """
import ipaddress
import psutil
from longattn.cluster import connected
import ray

with connected():
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    me = psutil.Process()
    found = [
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    hosts = [getattr(ipaddress.ip_address(ip), "ipv4_mapped", None) or ipaddress.ip_address(ip)
             for ip in found]
    assert len(hosts) > 5 and all(host.is_loopback for host in hosts), found
"""


def test_ray_started_here_listens_on_loopback(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
