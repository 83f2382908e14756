rockspec_format = "3.0"
package = "lualxd"
version = "scm-1"
source = { url = "git+https://github.com/lualxd/lualxd.git" }
description = {
  summary = "LXD's REST API as Lua tables, with operations one can wait for and declarations to reconcile",
  detailed = [[
    A client for LXD in C and Lua. The server's tree is the API, changes are promises, and a script can
    declare profiles, containers and snapshots and have them reconciled against the server.
  ]],
  license = "MIT",
  homepage = "https://github.com/lualxd/lualxd",
  issues_url = "https://github.com/lualxd/lualxd/issues",
  labels = { "lxd", "containers", "provisioning" },
}
supported_platforms = { "linux" }
dependencies = { "lua >= 5.1, < 5.5", "lua-cjson >= 2.1.0" }
external_dependencies = {
  CURL = { library = "curl" },
  WSLAY = { library = "wslay" },
  OPENSSL = { library = "ssl" },
  CRYPTO = { library = "crypto" },
}
test_dependencies = { "busted" }
test = { type = "busted" }
build = {
  type = "builtin",
  modules = {
    ["lualxd.client"] = "lualxd/client.lua",
    ["lualxd.editing"] = "lualxd/editing.lua",
    ["lualxd.error"] = "lualxd/error.lua",
    ["lualxd.events"] = "lualxd/events.lua",
    ["lualxd.feed"] = "lualxd/feed.lua",
    ["lualxd.files"] = "lualxd/files.lua",
    ["lualxd.follow"] = "lualxd/follow.lua",
    ["lualxd.http"] = "lualxd/http.lua",
    ["lualxd.images"] = "lualxd/images.lua",
    ["lualxd"] = "lualxd/init.lua",
    ["lualxd.instance"] = "lualxd/instance.lua",
    ["lualxd.json"] = "lualxd/json.lua",
    ["lualxd.link"] = "lualxd/link.lua",
    ["lualxd.loop"] = "lualxd/loop/init.lua",
    ["lualxd.loop.poll"] = "lualxd/loop/poll.lua",
    ["lualxd.loop.task"] = "lualxd/loop/task.lua",
    ["lualxd.loop.timers"] = "lualxd/loop/timers.lua",
    ["lualxd.operation"] = "lualxd/operation.lua",
    ["lualxd.options"] = "lualxd/options.lua",
    ["lualxd.outcome"] = "lualxd/outcome.lua",
    ["lualxd.place"] = "lualxd/place.lua",
    ["lualxd.reconcile.apply"] = "lualxd/reconcile/apply.lua",
    ["lualxd.reconcile.chain"] = "lualxd/reconcile/chain.lua",
    ["lualxd.reconcile.check"] = "lualxd/reconcile/check.lua",
    ["lualxd.reconcile.declaration"] = "lualxd/reconcile/declaration.lua",
    ["lualxd.reconcile.diff"] = "lualxd/reconcile/diff.lua",
    ["lualxd.reconcile.effects"] = "lualxd/reconcile/effects.lua",
    ["lualxd.reconcile.fields"] = "lualxd/reconcile/fields.lua",
    ["lualxd.reconcile.guest"] = "lualxd/reconcile/guest.lua",
    ["lualxd.reconcile.impact"] = "lualxd/reconcile/impact.lua",
    ["lualxd.process"] = "lualxd/process.lua",
    ["lualxd.websocket"] = "lualxd/websocket.lua",
    ["lualxd.reconcile"] = "lualxd/reconcile/init.lua",
    ["lualxd.reconcile.kinds"] = "lualxd/reconcile/kinds.lua",
    ["lualxd.reconcile.marker"] = "lualxd/reconcile/marker.lua",
    ["lualxd.reconcile.objects"] = "lualxd/reconcile/objects.lua",
    ["lualxd.reconcile.observe"] = "lualxd/reconcile/observe.lua",
    ["lualxd.reconcile.plan"] = "lualxd/reconcile/plan.lua",
    ["lualxd.reconcile.reference"] = "lualxd/reconcile/reference.lua",
    ["lualxd.reconcile.render"] = "lualxd/reconcile/render.lua",
    ["lualxd.reconcile.runtime"] = "lualxd/reconcile/runtime.lua",
    ["lualxd.reconcile.session"] = "lualxd/reconcile/session.lua",
    ["lualxd.reconcile.values"] = "lualxd/reconcile/values.lua",
    ["lualxd.remotes"] = "lualxd/remotes.lua",
    ["lualxd.task"] = "lualxd/task.lua",
    ["lualxd.tree"] = "lualxd/tree.lua",
    ["lualxd.trust"] = "lualxd/trust.lua",
    ["lualxd.words"] = "lualxd/words.lua",
    ["lualxd.core"] = {
      sources = {
        "src/body.c",
        "src/core.c",
        "src/endpoint.c",
        "src/engine.c",
        "src/identity.c",
        "src/json.c",
        "src/poller.c",
        "src/request.c",
        "src/transfer.c",
        "src/websocket.c",
      },
      defines = { "_GNU_SOURCE" },
      incdirs = { "$(CURL_INCDIR)", "$(OPENSSL_INCDIR)", "$(WSLAY_INCDIR)", "src" },
      libdirs = { "$(CURL_LIBDIR)", "$(OPENSSL_LIBDIR)", "$(WSLAY_LIBDIR)" },
      libraries = { "curl", "wslay", "ssl", "crypto", "pthread" },
    },
  },
}
