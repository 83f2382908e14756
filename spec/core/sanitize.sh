#!/bin/bash
# The core under AddressSanitizer and UndefinedBehaviorSanitizer on Lua 5.4 (with leaks) and LuaJIT,
# with memory that fails at every place in turn, and in part under valgrind. Ends with one line that
# sums it all up. Needs no server.
#
#   sanitize.sh              all of it
#   sanitize.sh build        builds what that takes, no more
#   sanitize.sh with CMD…    runs CMD, in which `lua5.4` has that core, collects garbage without a rest,
#                            and so do the scripts that it starts
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
export LUALXD_SANITIZED=1 LUA_PATH="./?.lua;./?/init.lua;;"
unset LUA_INIT LD_PRELOAD

sanitize=(-std=c11 -D_GNU_SOURCE -O1 -g -fno-omit-frame-pointer
    -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all)
thread=(-std=c11 -D_GNU_SOURCE -O1 -g -fno-omit-frame-pointer -fsanitize=thread)
libraries=(-lcurl -lwslay -lssl -lcrypto -lpthread)

# Runs a suite and adds up what its last line counts; one without such a line, or with a status
# other than 0, has failed.
suite() {
    local name=$1 log=$work/log status good=0 bad=0 line
    shift
    "$@" > "$log" 2>&1 < /dev/null
    status=$?
    line=$(grep -aE '^[0-9]+ successes? / |^[0-9]+ passed, ' "$log" | tail -n 1)
    case $line in
    *success*) read -r good bad < <(echo "$line" | awk '{ print $1, $4 + $7 }') ;;
    *passed*) read -r good bad < <(echo "$line" | awk '{ print $1, $3 }') ;;
    esac
    [ "$good" -gt 0 ] || bad=1
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
    [ "$bad" = 0 ] || tail -n 300 "$log"
    passed=$((passed + good)) failed=$((failed + bad))
    printf '%-36s %4d passed, %d failed\n' "$name:" "$good" "$bad"
}

specs() {
    local cpath=$1
    shift
    LUA_CPATH="$cpath/?.so;;" "$@"
}

# What is built last is newer than all that it is built of.
is_built() {
    [ -e build/valgrind/lualxd/core.so ] &&
        [ -z "$(find src spec/core -name '*.[ch]' -newer build/valgrind/lualxd/core.so)" ]
}

build() {
    ! is_built || return 0
    mkdir -p build/asan/lua5.4/lualxd build/asan/luajit/lualxd build/asan/bin build/valgrind/lualxd \
        build/tsan/lualxd || return
    local lua54 luajit
    read -ra lua54 < <(pkg-config --cflags --libs lua5.4)
    read -ra luajit < <(pkg-config --cflags luajit)
    clang "${sanitize[@]}" -rdynamic spec/core/driver.c -o build/asan/bin/lua5.4 "${lua54[@]}" || return
    clang "${sanitize[@]}" -fPIC -shared -Isrc src/*.c -o build/asan/lua5.4/lualxd/core.so \
        "${lua54[@]}" "${libraries[@]}" || return
    clang "${sanitize[@]}" -shared-libasan -fPIC -shared -Isrc src/*.c \
        -o build/asan/luajit/lualxd/core.so "${luajit[@]}" "${libraries[@]}" || return
    clang "${sanitize[@]}" -Isrc -include spec/core/harness.h spec/core/harness.c src/*.c \
        -o build/asan/harness "${lua54[@]}" "${libraries[@]}" || return
    clang "${thread[@]}" -rdynamic spec/core/driver.c -o build/tsan/lua "${lua54[@]}" || return
    clang "${thread[@]}" -fPIC -shared -Isrc src/*.c -o build/tsan/lualxd/core.so \
        "${lua54[@]}" "${libraries[@]}" || return
    cc -std=c11 -D_GNU_SOURCE -O1 -g -fPIC -shared -Isrc src/*.c -o build/valgrind/lualxd/core.so \
        "${lua54[@]}" "${libraries[@]}"
}

export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
case ${1:-} in
build)
    build
    exit ;;
with)
    shift
    LUALXD_COLLECT=1 PATH=$PWD/build/asan/bin:$PATH specs build/asan/lua5.4 "$@"
    exit ;;
esac

build || { echo "0 passed, 1 failed"; exit 1; }

suite "specs, Lua 5.4, ASan and leaks" \
    specs build/asan/lua5.4 build/asan/bin/lua5.4 /usr/bin/busted -o plainTerminal spec/core

# LuaJIT keeps its memory where the leak detector doesn't look for pointers.
ASAN_OPTIONS=detect_leaks=0 \
    suite "specs, LuaJIT, ASan" \
    specs build/asan/luajit env LD_PRELOAD="$(clang -print-file-name=libclang_rt.asan-x86_64.so)" \
    luajit /usr/bin/busted -o plainTerminal spec/core

# The one other thread that there is.
TSAN_OPTIONS=halt_on_error=1:exitcode=66 suite "waiter, Lua 5.4, TSan" \
    specs build/tsan build/tsan/lua /usr/bin/busted -o plainTerminal spec/core/waiter_spec.lua

head -c 3000 /dev/urandom > "$work/file"
ASAN_OPTIONS=detect_leaks=1 suite "memory that fails" build/asan/harness "$work/file"

# Reads of what was never written, which ASan doesn't see. What Lua still holds in a child that
# exits at once is no leak.
suite "specs, Lua 5.4, valgrind" \
    specs build/valgrind valgrind -q --leak-check=full --errors-for-leak-kinds=definite,indirect \
    --show-leak-kinds=definite,indirect --error-exitcode=9 \
    lua5.4 /usr/bin/busted -o plainTerminal --filter-out 'thousand' --filter-out 'behind either' \
    --filter-out 'collector' --filter-out 'grow with the body' --filter-out 'ever more to say' \
    --filter-out 'a finalizer' --filter-out 'time-out' --filter-out 'time out' \
    --filter-out 'now and then' spec/core

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
