#!/bin/sh
# SPDX-License-Identifier: MIT
# Creates and starts one container as a script with curl does: create.sh SOCKET NAME
set -eu
ask() {
    curl -sS --fail-with-body --unix-socket "$socket" "$@"
}
# sed, not jq: starting jq takes longer than curl does.
change() {
    operation=$(ask "$@" | sed -n 's/.*"operation":"\([^"]*\)".*/\1/p')
    case $(ask "http://lxd$operation/wait") in
    *'"status":"Success"'*'"err":""'*) ;;
    *) echo "create.sh: $name failed" >&2; exit 1 ;;
    esac
}
socket=$1 name=$2
change -d '{"name":"'"$name"'","source":{"type":"image","alias":"busybox"},"config":{"limits.memory":"64MiB"}}' \
    http://lxd/1.0/containers
change -X PUT -d '{"action":"start","timeout":30}' "http://lxd/1.0/containers/$name/state"
