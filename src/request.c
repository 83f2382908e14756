/* One HTTP exchange, as Lua sees it: options in, head, body and result out.
 * SPDX-License-Identifier: MIT */
#include "request.h"

#include <errno.h>
#include <string.h>

#include "engine.h"
#include "transfer.h"
#include "websocket.h"

#define LXD_REQUEST "lualxd.request"
#define LIMIT ((size_t)64 * 1024 * 1024) /* of an answer in memory, unless told */
#define READ_MAX ((size_t)1024 * 1024)   /* bytes of one read */

/* The userdata. Creating a string may collect garbage, and a finalizer may close this very request
 * while its buffer is being copied: `busy` puts that off. Should the string raise for want of
 * memory, `busy` stays, and the memory goes with the userdata. Bytes that are taken out are pushed
 * under a pcall: after such a raise they are still there. */
typedef struct handle {
    lxd_request *request; /* owned; NULL: closed */
    bool busy;            /* a method is copying from its buffers */
    bool closing;         /* closed meanwhile */
    bool taking;          /* bytes that are set aside are being taken: */
    size_t taken;         /* so many */
} handle;

static const char *const kinds[] = {
    [LXD_CONNECT] = "connect",     [LXD_TLS] = "tls",   [LXD_TIMEOUT] = "timeout",
    [LXD_PROTOCOL] = "protocol",   [LXD_LOST] = "lost", [LXD_FILE] = "file",
    [LXD_CANCELLED] = "cancelled", [LXD_FORKED] = "forked", [LXD_FAILED] = "failed",
};

static handle *to_request(lua_State *L, int arg)
{
    return luaL_checkudata(L, arg, LXD_REQUEST);
}

lxd_request *lxd_request_check(lua_State *L, int arg)
{
    handle *h = to_request(L, arg);
    lxd_request *r = h->request;
    if (!r || h->closing) luaL_error(L, "attempt to use a closed request");
    if (r->engine) lxd_poller_fork(r->engine->poller);
    return r;
}

/* Frees a request that is in no list. */
static void free_request(lxd_request *r)
{
    lxd_source_free(&r->source);
    lxd_websocket_free(r->ws);
    lxd_buffer_free(&r->head);
    lxd_buffer_free(&r->body);
    lxd_buffer_free(&r->aside);
    lxd_handshake_drop(&r->handshake);
    curl_slist_free_all(r->headers);
    LXD_FREE(r->method);
    LXD_FREE(r->url);
    LXD_FREE(r);
}

static void close_request(handle *h)
{
    lxd_request *r = h->request;
    if (!r) return;
    lxd_engine_cancel(r);
    lxd_poller_forget(r);
    h->closing = true;
    if (h->busy) return;
    h->request = NULL;
    free_request(r);
}

/* Pushes bytes of a request's buffer (see `handle`). */
static void push_bytes(lua_State *L, handle *h, const lxd_buffer *b, size_t n)
{
    bool was = h->busy;
    h->busy = true;
    lua_pushlstring(L, n > 0 ? b->bytes + b->from : "", n);
    h->busy = was;
}

/* Ends what a method began: a close that was put off happens now. */
static int done(handle *h, int results)
{
    if (h->closing && !h->busy) close_request(h);
    return results;
}

/* Under lxd_request_push_body. */
static int push_taken(lua_State *L)
{
    handle *h = lua_touserdata(L, 1);
    const lxd_buffer *b = &h->request->aside;
    lua_pushlstring(L, h->taken > 0 ? b->bytes + b->from : "", h->taken);
    return 1;
}

/* Of what was set aside, puts back all but the first n bytes before what came meanwhile. */
static void put_back(lxd_request *r, size_t n)
{
    lxd_buffer came = r->body;
    lxd_buffer_take(&r->aside, n);
    r->body = r->aside;
    memset(&r->aside, 0, sizeof r->aside);
    if (r->body.used == 0 && came.used > 0) {
        lxd_buffer_free(&r->body);
        r->body = came;
        return;
    }
    bool whole = came.used == 0 || lxd_buffer_add(&r->body, came.bytes + came.from, came.used);
    lxd_buffer_free(&came);
    if (whole) return;
    lxd_request_blame(r, LXD_FAILED, ENOMEM, "out of memory");
    if (r->engine) lxd_engine_end(r);
}

void lxd_request_prepare(lua_State *L)
{
    lua_settop(L, 1);
    lua_pushcfunction(L, push_taken); /* LuaJIT's may collect garbage */
}

bool lxd_request_taking(lua_State *L, int arg)
{
    return to_request(L, arg)->taking;
}

/* LuaJIT collects before it copies, and a finalizer that drives the poller may have more bytes come,
 * for which the buffer would move: it is set aside. */
bool lxd_request_push_body(lua_State *L, int arg, size_t n)
{
    handle *h = to_request(L, arg);
    lxd_request *r = h->request;
    bool was = h->busy;
    r->aside = r->body;
    memset(&r->body, 0, sizeof r->body);
    h->busy = h->taking = true;
    h->taken = n;
    lua_pushvalue(L, arg);
    int error = lua_pcall(L, 1, 1, 0);
    h->taking = false;
    h->busy = was;
    put_back(r, error ? 0 : n);
    bool closed = h->closing && !h->busy;
    if (closed) close_request(h);
    if (error) lua_error(L);
    return !closed;
}

/* Ends a request that libcurl can't go on with after a pause. */
static void resume(lxd_request *r)
{
    CURLcode code = lxd_transfer_resume(r);
    lxd_poller *p = r->engine->poller;
    if (code != CURLE_OK) {
        lxd_transfer_outcome(r, code);
        lxd_engine_end(r);
    }
    lxd_poller_settle(p);
}

/* A copy of the string at the top of the stack. Raises when it isn't one, holds a NUL, or isn't made
 * of visible characters alone where `visible`. */
static char *copy_word(lua_State *L, const char *option)
{
    size_t n;
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &n) : NULL;
    if (!text || n == 0) luaL_error(L, "option '%s' must be a string", option);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] <= ' ' || text[i] == 127)
            luaL_error(L, "option '%s' holds a space or a control character", option);
    char *copy = LXD_MALLOC(n + 1);
    if (!copy) luaL_error(L, "not enough memory");
    memcpy(copy, text, n + 1);
    return copy;
}

static void add_header(lua_State *L, lxd_request *r, const char *line)
{
    struct curl_slist *list = curl_slist_append(r->headers, line);
    if (!list) luaL_error(L, "not enough memory");
    r->headers = list;
}

/* Adds the header line on top of the stack. */
static void read_header(lua_State *L, lxd_request *r)
{
    size_t n;
    const char *line = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &n) : NULL;
    const char *colon = line ? memchr(line, ':', n) : NULL;
    if (!colon || colon == line) luaL_error(L, "a header must be like 'Name: value'");
    if (memchr(line, 0, n) || memchr(line, '\r', n) || memchr(line, '\n', n))
        luaL_error(L, "a header holds a line break or a NUL");
    for (const char *c = line; c < colon; c++)
        if ((unsigned char)*c <= ' ' || *c == 127 || *c == ';')
            luaL_error(L, "a header's name holds a character that it must not");
    if (strspn(colon + 1, " \t") == strlen(colon + 1)) {
        /* libcurl reads "Name:" as an order to leave Name out, "Name;" as one without value. */
        lua_pushlstring(L, line, (size_t)(colon - line));
        lua_pushliteral(L, ";");
        lua_concat(L, 2);
        add_header(L, r, lua_tostring(L, -1));
        lua_pop(L, 1);
    } else {
        add_header(L, r, line);
    }
}

/* Fills a piece from the string, or the table with a path, on top of the stack. */
static void read_piece(lua_State *L, lxd_piece *p)
{
    size_t n;
    bool file = lua_istable(L, -1);
    if (file) lua_getfield(L, -1, "path");
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &n) : NULL;
    if (!text || (file && strlen(text) != n)) luaL_error(L, "a piece of the body is no bytes or path");
    char *copy = LXD_MALLOC(n + 1);
    if (!copy) luaL_error(L, "not enough memory");
    memcpy(copy, text, n + 1);
    if (file) {
        p->path = copy;
        lua_pop(L, 1);
    } else {
        p->bytes = copy;
        p->size = (int64_t)n;
    }
}

static void read_body(lua_State *L, int options, lxd_request *r)
{
    lxd_source *s = &r->source;
    lua_getfield(L, options, "body");
    int type = lua_type(L, -1);
    r->has_body = type != LUA_TNIL;
    if (type == LUA_TBOOLEAN && lua_toboolean(L, -1)) {
        s->live = true;
        s->length = -1;
        lua_getfield(L, options, "length");
        if (!lua_isnil(L, -1)) {
            lua_Number length = lua_tonumber(L, -1);
            if (!lua_isnumber(L, -1) || !(length >= 0 && length <= 9e15))
                luaL_error(L, "option 'length' must be a number of bytes");
            s->length = (int64_t)length;
        }
        lua_pop(L, 1);
    } else if (type == LUA_TSTRING) {
        if (!lxd_source_pieces(s, 1)) luaL_error(L, "not enough memory");
        read_piece(L, &s->pieces[0]);
    } else if (type == LUA_TTABLE) {
        size_t count = lua_rawlen(L, -1);
        if (count > INT32_MAX || !lxd_source_pieces(s, count)) luaL_error(L, "not enough memory");
        for (size_t i = 0; i < count; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            read_piece(L, &s->pieces[i]);
            lua_pop(L, 1);
        }
    } else if (type != LUA_TNIL) {
        luaL_error(L, "option 'body' must be bytes, true or a list of pieces");
    } else if (strcmp(r->method, "POST") == 0 || strcmp(r->method, "PUT") == 0 ||
               strcmp(r->method, "PATCH") == 0) {
        r->has_body = true; /* an empty one: these methods announce a length of 0 */
    }
    lua_pop(L, 1);
}

static bool flag(lua_State *L, int options, const char *name)
{
    lua_getfield(L, options, name);
    bool on = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return on;
}

/* Nanoseconds of an option that is in seconds: `absent` where it isn't there, `endless` for more than a life. */
static int64_t nanoseconds(lua_State *L, int options, const char *name, int64_t absent, int64_t endless)
{
    int64_t ns = absent;
    lua_getfield(L, options, name);
    if (!lua_isnil(L, -1)) {
        lua_Number seconds = lua_tonumber(L, -1);
        if (!lua_isnumber(L, -1) || !(seconds >= 0)) luaL_error(L, "option '%s' must be seconds", name);
        ns = seconds < 1e9 ? (int64_t)(seconds * 1e9) : endless;
    }
    lua_pop(L, 1);
    return ns;
}

static void read_numbers(lua_State *L, int options, lxd_request *r)
{
    lua_getfield(L, options, "limit");
    lua_Number limit = luaL_optnumber(L, -1, (lua_Number)LIMIT);
    if (!(limit >= 0 && limit <= 9e15)) luaL_error(L, "option 'limit' must be a number of bytes");
    r->limit = (size_t)limit;
    lua_pop(L, 1);
    r->timeout = nanoseconds(L, options, "timeout", -1, 0);
}

lxd_request *lxd_request_new(lua_State *L, int options)
{
    handle *h = lua_newuserdata(L, sizeof *h);
    memset(h, 0, sizeof *h);
    luaL_getmetatable(L, LXD_REQUEST);
    lua_setmetatable(L, -2);
    lxd_request *r = h->request = LXD_CALLOC(1, sizeof *r);
    if (!r) luaL_error(L, "not enough memory");
    r->state = LXD_DONE;
    r->fd = CURL_SOCKET_BAD;
    r->to_receive = -1;
    lua_getfield(L, options, "method");
    r->method = copy_word(L, "method");
    lua_getfield(L, options, "url");
    r->url = copy_word(L, "url");
    lua_getfield(L, options, "headers");
    size_t count = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        read_header(L, r);
        lua_pop(L, 1);
    }
    lua_pop(L, 3);
    read_body(L, options, r);
    if (r->has_body) add_header(L, r, "Expect:"); /* a round trip that no server here needs */
    r->once = flag(L, options, "once");
    r->stream = flag(L, options, "stream");
    r->brief = flag(L, options, "brief");
    r->urgent = flag(L, options, "urgent");
    if (flag(L, options, "hash") && !lxd_source_hash_files(&r->source))
        luaL_error(L, "not enough memory");
    read_numbers(L, options, r);
    int64_t silence = nanoseconds(L, options, "silence", 0, LXD_NEVER);
    if (flag(L, options, "upgrade") && !(r->ws = lxd_websocket_new(silence)))
        luaL_error(L, "not enough memory");
    return r;
}

static int l_request_id(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)lxd_request_check(L, 1)->id);
    return 1;
}

static int l_request_state(lua_State *L)
{
    static const char *const names[] = {"queued", "active", "done"};
    lua_pushstring(L, names[lxd_request_check(L, 1)->state]);
    return 1;
}

static int l_request_head(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    if (!r->head_done) return 0;
    handle *h = to_request(L, 1);
    lua_pushinteger(L, r->status);
    push_bytes(L, h, &r->head, r->head.used);
    return done(h, 2);
}

static void push_failure(lua_State *L, lxd_request *r)
{
    const char *reason;
    lxd_handshake_refusal(&r->handshake, &reason);
    char message[sizeof r->message];
    const char *kind = kinds[r->kind];
    bool unsure = r->unsure;
    int error = r->error;
    memcpy(message, r->message, sizeof message);
    lua_createtable(L, 0, 7);
    lua_pushstring(L, kind);
    lua_setfield(L, -2, "kind");
    lua_pushstring(L, message);
    lua_setfield(L, -2, "message");
    lua_pushboolean(L, unsure);
    lua_setfield(L, -2, "unsure");
    if (error != 0) {
        lua_pushinteger(L, error);
        lua_setfield(L, -2, "errno");
    }
    if (r->kind != LXD_TLS || !reason) return;
    lua_pushstring(L, reason);
    lua_setfield(L, -2, "reason");
    lxd_handshake_push_refused(L, &r->handshake);
}

static int l_request_result(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    handle *h = to_request(L, 1);
    if (r->state != LXD_DONE) return 0;
    bool stream = r->stream, was = h->busy;
    h->busy = true; /* for all that is pushed */
    if (r->kind != LXD_NO_FAILURE) {
        lua_pushnil(L);
        push_failure(L, r);
        h->busy = was;
        return done(h, 2);
    }
    lua_pushinteger(L, r->status);
    push_bytes(L, h, &r->head, r->head.used);
    if (!stream) push_bytes(L, h, &r->body, r->body.used);
    h->busy = was;
    return done(h, stream ? 2 : 3);
}

static int l_request_read(lua_State *L)
{
    lxd_request_prepare(L);
    lxd_request *r = lxd_request_check(L, 1);
    if (!r->stream) return luaL_error(L, "this request is no stream");
    if (lxd_request_taking(L, 1)) {
        lua_pushliteral(L, "");
        return 1;
    }
    size_t n = r->body.used < READ_MAX ? r->body.used : READ_MAX;
    if (n == 0 && r->state == LXD_DONE) return 0;
    if (!lxd_request_push_body(L, 1, n)) return 1;
    if (r->state == LXD_ACTIVE && r->recv_paused && r->body.used < LXD_ROOM / 2) {
        r->recv_paused = false;
        resume(r);
    }
    return 1;
}

static int l_request_write(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 2, &n); /* first: a number's text may collect garbage */
    lua_Number from = luaL_optnumber(L, 3, 1);
    lxd_request *r = lxd_request_check(L, 1);
    luaL_argcheck(L, from >= 1 && from <= (lua_Number)n + 1, 3, "out of range");
    size_t skip = (size_t)from - 1;
    lxd_source *s = &r->source;
    if (!s->live) return luaL_error(L, "the body of this request isn't written");
    long taken = 0;
    if (r->state != LXD_DONE) {
        if (s->finished) return luaL_error(L, "the body of this request is finished");
        if (s->length >= 0 && (int64_t)(n - skip) > s->length - s->written)
            return luaL_error(L, "more bytes than the length of the body");
        taken = lxd_source_write(s, bytes + skip, n - skip);
        if (taken < 0) return luaL_error(L, "not enough memory");
    }
    if (taken > 0 && r->send_paused) {
        r->send_paused = false;
        resume(r);
    }
    lua_pushinteger(L, taken);
    return 1;
}

static int l_request_finish(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    if (!r->source.live) return luaL_error(L, "the body of this request isn't written");
    r->source.finished = true;
    if (r->state == LXD_ACTIVE && r->send_paused) {
        r->send_paused = false;
        resume(r);
    }
    return 0;
}

static int l_request_progress(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    if (r->easy && !r->ws) lxd_transfer_harvest(r);
    lua_pushinteger(L, (lua_Integer)r->source.given);
    lua_pushinteger(L, (lua_Integer)r->source.length);
    lua_pushinteger(L, (lua_Integer)r->received);
    lua_pushinteger(L, (lua_Integer)r->to_receive);
    return 4;
}

static int l_request_hash(lua_State *L)
{
    unsigned char hash[32];
    lxd_request *r = lxd_request_check(L, 1);
    int known = lxd_source_hash(&r->source, hash);
    if (known < 0) return luaL_error(L, "not enough memory");
    if (known == 0) return 0;
    lxd_push_hex(L, hash, sizeof hash);
    return 1;
}

static int l_request_attempts(lua_State *L)
{
    lua_pushinteger(L, lxd_request_check(L, 1)->attempts);
    return 1;
}

static int l_request_began(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    if (r->began == 0) return 0;
    lua_pushnumber(L, (lua_Number)r->began / 1e9);
    return 1;
}

static int l_request_cancel(lua_State *L)
{
    lxd_engine_cancel(lxd_request_check(L, 1));
    return 0;
}

static int l_request_close(lua_State *L)
{
    close_request(to_request(L, 1));
    return 0;
}

/* A userdata that is collected isn't on any stack: nothing is copied from it any more. */
static int l_request_gc(lua_State *L)
{
    handle *h = to_request(L, 1);
    h->busy = false;
    close_request(h);
    return 0;
}

static int l_request_tostring(lua_State *L)
{
    handle *h = to_request(L, 1);
    if (h->request && !h->closing)
        lua_pushfstring(L, LXD_REQUEST " %d", (int)h->request->id);
    else
        lua_pushliteral(L, LXD_REQUEST " (closed)");
    return 1;
}

static const luaL_Reg methods[] = {
    {"id", l_request_id},         {"state", l_request_state},
    {"head", l_request_head},     {"result", l_request_result},
    {"read", l_request_read},     {"write", l_request_write},
    {"finish", l_request_finish}, {"progress", l_request_progress},
    {"hash", l_request_hash},     {"attempts", l_request_attempts},
    {"began", l_request_began},   {"cancel", l_request_cancel},
    {"close", l_request_close},   {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", l_request_gc},
    {"__close", l_request_close},
    {"__tostring", l_request_tostring},
    {NULL, NULL},
};

void lualxd_open_request(lua_State *L)
{
    lxd_new_type(L, LXD_REQUEST, methods, metamethods);
    luaL_getmetatable(L, LXD_REQUEST);
    lua_getfield(L, -1, "__index");
    lxd_websocket_methods(L);
    lua_pop(L, 2);
}
