# lualxd: build, install, test. Everything longer than a line is a script in spec/support or examples.

LUA ?= $(firstword $(foreach l,lua5.4 luajit lua5.3,$(if $(shell command -v $(l)),$(l))) lua5.4)
PREFIX ?= /usr/local
CC ?= cc
CFLAGS ?= -O2 -g
LIBFLAG ?= -shared
PKG_CONFIG ?= pkg-config

# The ABI decides where modules go; LuaJIT has that of 5.1.
ABI := $(if $(findstring jit,$(LUA)),5.1,$(patsubst lua%,%,$(LUA)))
PC := $(if $(findstring jit,$(LUA)),luajit,lua$(ABI))
LUA_INCDIR ?= $(patsubst -I%,%,$(filter -I%,$(shell $(PKG_CONFIG) --cflags $(PC) 2>/dev/null)))

LUA_SHARE := $(DESTDIR)$(PREFIX)/share/lua/$(ABI)
LUA_LIB := $(DESTDIR)$(PREFIX)/lib/lua/$(ABI)

WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wwrite-strings -Wvla
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden $(WARNINGS) $(CFLAGS) \
	$(addprefix -I,$(LUA_INCDIR)) -Isrc
LIBS := -lcurl -lwslay -lssl -lcrypto -lpthread

BUILD := build/$(LUA)
CORE := $(BUILD)/lualxd/core.so
OBJECTS := $(patsubst src/%.c,$(BUILD)/%.o,$(wildcard src/*.c))
MODULES := $(filter-out %.d.lua,$(shell find lualxd -name '*.lua'))

all: $(CORE)

$(CORE): $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(LIBFLAG) $(LDFLAGS) -o $@ $(OBJECTS) $(LIBS)

$(BUILD)/%.o: src/%.c $(wildcard src/*.h) $(BUILD)/flags
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

# Other flags make other objects.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(ALL_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALL_CFLAGS)' > $@

install: all
	@set -e; for module in $(MODULES); do \
		install -D -m 644 $$module $(LUA_SHARE)/$$module; done
	install -D -m 755 $(CORE) $(LUA_LIB)/lualxd/core.so

uninstall:
	rm -rf $(LUA_SHARE)/lualxd $(LUA_LIB)/lualxd

deps:
	spec/support/deps

test:
	spec/support/run

demo:
	examples/demo

bench: deps
	$(MAKE) --no-print-directory LUA=lua5.4
	$(MAKE) --no-print-directory LUA=luajit
	bench/run

fuzz: deps
	spec/fuzz/run

lint: deps
	luacheck -q lualxd spec examples bench
	@for lua in lua5.4 luajit lua5.3; do \
		$(MAKE) --no-print-directory -s LUA=$$lua BUILD=build/lint/$$lua CFLAGS='-O2 -Werror' || exit 1; done
	luarocks lint rockspec/lualxd-scm-1.rockspec
	shellcheck $(shell grep -lE '^.!.*sh$$' spec/support/* spec/core/*.sh spec/fuzz/run examples/* .ci/run)

clean:
	rm -rf build lualxd/*.so src/*.o

.PHONY: all install uninstall deps test demo bench fuzz lint clean FORCE
