#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""pylxd's execute: exec_pylxd.py SOCKET NAME COMMAND..."""
import sys
import urllib.parse

import pylxd

client = pylxd.Client(endpoint="http+unix://" + urllib.parse.quote(sys.argv[1], safe=""))
result = client.containers.get(sys.argv[2]).execute(sys.argv[3:])
print('{"status": %d}' % result.exit_code)
