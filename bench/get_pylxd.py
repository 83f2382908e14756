# SPDX-License-Identifier: MIT
"""What a GET of a container costs with pylxd: get_pylxd.py SOCKET NAME COUNT

`api` is pylxd's lowest level: the request and its JSON decoded, as in get.lua; `object` is what its
users write, which makes an object of it.
"""

import json
import resource
import sys
import time
import urllib.parse
import warnings

warnings.simplefilter("ignore")
import pylxd  # noqa: E402


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(get, count):
    for _ in range(count // 10 + 1):
        get()
    cpu0, wall0 = cpu(), time.monotonic()
    for _ in range(count):
        get()
    return (cpu() - cpu0) / count * 1e6, (time.monotonic() - wall0) / count * 1e6


socket, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = pylxd.Client(endpoint="http+unix://" + urllib.parse.quote(socket, ""))
api = measure(lambda: client.api.containers[name].get().json(), count)
made = measure(lambda: client.containers.get(name), count)
print(json.dumps({"cpu": api[0], "wall": api[1], "object_cpu": made[0], "object_wall": made[1]}))
