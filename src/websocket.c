/* A request whose connection becomes a WebSocket: the handshake, and messages through wslay.
 * SPDX-License-Identifier: MIT
 *
 * libcurl makes the connection (CURLOPT_CONNECT_ONLY; Debian's has no WebSockets of its own) and moves
 * its bytes. The request stays with its engine as an active one, beside those that count. What comes in
 * waits in the request's body until Lua takes it, and no more is read while that is full; pings are
 * answered whenever the poller is driven. */
#include "websocket.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <wslay/wslay.h>

#include "engine.h"

#define HEAD_LIMIT ((size_t)64 * 1024) /* bytes of the handshake's answer, and of a refusal's body */
#define CHUNK 16384                    /* bytes read at once; wslay asks for 4096 */
#define MESSAGES 1024                  /* that wait in either direction, however short they are */
#define PINGS 1024                     /* that are read while none of their pongs has gone out */
#define BUDGET ((int64_t)256 * 1024)   /* bytes that one drive reads: others want their turn, too */
#define KEY_SIZE 25                    /* 16 bytes in base64, and a NUL */

/* One message, or as much of it as has come. */
typedef struct message {
    size_t left;      /* bytes of it in the request's body */
    uint8_t opcode;
    bool final;       /* all of it is there */
} message;

typedef enum stage { CONNECTING, ASKING, ANSWER, REFUSAL, OPEN } stage;

/* Whether there was more to read than one drive may: from this turn of the poller, or an earlier one. */
typedef enum rest { NONE, FRESH, OLD } rest;

struct lxd_websocket {
    stage stage;
    wslay_event_context_ptr events; /* owned; NULL before the handshake is done */
    char key[KEY_SIZE];             /* Sec-WebSocket-Key */
    lxd_buffer out;                 /* what wasn't sent yet: the handshake, then frames */
    lxd_buffer in;                  /* what was read and not yet given to wslay */
    message *messages;              /* owned, a ring with room for `room` */
    size_t room, first, count;
    bool final, control, ping;      /* of the frame under way */
    bool masked;                    /* a frame is about to be sent */
    bool heard;                     /* a frame has come, be it a ping */
    size_t pongs;                   /* owed: pings that were read, less the pongs that were sent */
    int64_t budget;                 /* bytes that this drive may still read */
    rest rest;
    bool ended;                     /* the peer has closed, or it broke off */
    bool no_memory;
    bool stuck;                     /* the kernel has no room for what goes out */
    bool cut;                       /* nothing can be sent any more */
    bool wants_room;                /* a sender was turned away */
    bool deaf;                      /* nothing is read until Lua has taken some of what came */
    int64_t silence;                /* ns in which nothing may have come when pings are answered */
    bool silent;                    /* nothing has */
};

lxd_websocket *lxd_websocket_new(int64_t silence)
{
    lxd_websocket *w = LXD_CALLOC(1, sizeof *w);
    if (!w) return NULL;
    w->messages = LXD_CALLOC(MESSAGES, sizeof *w->messages);
    w->room = MESSAGES;
    w->silence = silence;
    if (w->messages) return w;
    LXD_FREE(w);
    return NULL;
}

void lxd_websocket_free(lxd_websocket *w)
{
    if (!w) return;
    if (w->events) wslay_event_context_free(w->events);
    lxd_buffer_free(&w->out);
    lxd_buffer_free(&w->in);
    LXD_FREE(w->messages);
    LXD_FREE(w);
}

bool lxd_websocket_began(const lxd_request *r)
{
    return r->ws && r->ws->stage != CONNECTING;
}

static void note(lxd_request *r)
{
    if (r->engine) lxd_poller_note(r->engine->poller, r);
}

/* ---- bytes ------------------------------------------------------------------------------------ */

/* Reads what there is, as much as a chunk, to the end of a buffer. False: nothing, for now or for good. */
static bool receive(lxd_request *r, lxd_buffer *to)
{
    lxd_websocket *w = r->ws;
    size_t n = 0;
    if (w->ended) return false;
    char chunk[CHUNK];
    CURLcode code = curl_easy_recv(r->easy, chunk, sizeof chunk, &n);
    if (code == CURLE_AGAIN && !w->cut) return false;
    if (code != CURLE_OK || n == 0) {
        /* LXD closes a connection without a word when its end is done (lxd/instance_exec.go). */
        w->ended = true;
        return false;
    }
    lxd_engine_touch(r);
    w->silent = false;
    w->budget -= (int64_t)n;
    if (!lxd_buffer_add(to, chunk, n)) w->no_memory = true;
    return !w->no_memory;
}

/* Sends of what is to be sent as much as goes. OpenSSL wants a write that found no room repeated with the
 * same bytes at the same place (libcurl 7.88 sets no SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER), so while it is
 * `stuck`, nothing is added to the buffer. */
static void flush(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    w->stuck = false;
    while (w->out.used > 0 && !w->stuck && !w->cut && !w->ended) {
        size_t sent = 0;
        CURLcode code = curl_easy_send(r->easy, w->out.bytes + w->out.from, w->out.used, &sent);
        if (code == CURLE_OK && sent > 0) {
            lxd_engine_touch(r);
            lxd_buffer_take(&w->out, sent);
        } else if (code == CURLE_OK || code == CURLE_AGAIN) {
            w->stuck = true;
        } else {
            w->cut = true; /* what the peer said last may still be there to be read */
        }
    }
}

static bool full(const lxd_request *r)
{
    return lxd_request_held(r) >= LXD_ROOM || r->ws->count >= MESSAGES;
}

/* Whether nothing is read until pongs have gone out: who sends pings and reads nothing fills our memory. */
static bool owes(const lxd_websocket *w)
{
    return w->pongs >= PINGS;
}

/* Reads more for wslay. What the budget leaves is with the kernel, or with OpenSSL, of which epoll knows
 * nothing (libcurl >= 8.12 has it read ahead): the poller comes again. */
static bool receive_more(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    if (w->budget > 0) return receive(r, &w->in);
    w->rest = FRESH;
    return false;
}

/* ---- wslay's callbacks ------------------------------------------------------------------------ */

static ssize_t on_receive(wslay_event_context_ptr events, uint8_t *to, size_t n, int flags, void *arg)
{
    (void)flags;
    lxd_request *r = arg;
    lxd_buffer *in = &r->ws->in;
    if (full(r) || owes(r->ws) || r->ws->no_memory || (in->used == 0 && !receive_more(r))) {
        wslay_event_set_error(events, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    if (n > in->used) n = in->used;
    memcpy(to, in->bytes + in->from, n);
    lxd_buffer_take(in, n);
    return (ssize_t)n;
}

static ssize_t on_send(wslay_event_context_ptr events, const uint8_t *bytes, size_t n, int flags,
                       void *arg)
{
    (void)flags;
    lxd_request *r = arg;
    lxd_websocket *w = r->ws;
    if (w->stuck || w->out.used >= CHUNK) flush(r);
    if (w->stuck || w->cut || w->ended) {
        wslay_event_set_error(events, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    if (!lxd_buffer_add(&w->out, (const char *)bytes, n)) {
        w->no_memory = true;
        wslay_event_set_error(events, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    if (w->masked && (bytes[0] & 15) == WSLAY_PONG && w->pongs > 0) w->pongs--;
    w->masked = false;
    return (ssize_t)n;
}

/* Each frame is masked before its first byte is sent. */
static int on_mask(wslay_event_context_ptr events, uint8_t *mask, size_t n, void *arg)
{
    (void)events;
    ((lxd_request *)arg)->ws->masked = true;
    return RAND_bytes(mask, (int)n) == 1 ? 0 : -1;
}

static message *last_message(lxd_websocket *w)
{
    return w->count > 0 ? &w->messages[(w->first + w->count - 1) % w->room] : NULL;
}

/* Makes room for one more message. wslay parses what it has read without asking again: a few more than
 * MESSAGES may come. */
static bool reserve_message(lxd_websocket *w)
{
    if (w->count < w->room) return true;
    message *more = LXD_CALLOC(w->room * 2, sizeof *more);
    if (!more) return false;
    for (size_t i = 0; i < w->count; i++) more[i] = w->messages[(w->first + i) % w->room];
    LXD_FREE(w->messages);
    w->messages = more;
    w->first = 0;
    w->room *= 2;
    return true;
}

static void on_frame(wslay_event_context_ptr events,
                     const struct wslay_event_on_frame_recv_start_arg *frame, void *arg)
{
    (void)events;
    lxd_websocket *w = ((lxd_request *)arg)->ws;
    w->control = wslay_is_ctrl_frame(frame->opcode);
    w->ping = frame->opcode == WSLAY_PING;
    if (w->control) return;
    w->final = frame->fin;
    message *last = last_message(w);
    if (last && !last->final) return;
    if (w->no_memory || !reserve_message(w)) {
        w->no_memory = true;
        return;
    }
    w->messages[(w->first + w->count) % w->room] = (message){.opcode = frame->opcode};
    w->count++;
}

static void on_bytes(wslay_event_context_ptr events,
                     const struct wslay_event_on_frame_recv_chunk_arg *chunk, void *arg)
{
    (void)events;
    lxd_request *r = arg;
    lxd_websocket *w = r->ws;
    message *last = last_message(w);
    if (w->control || w->no_memory || !last) return;
    if (!lxd_buffer_add(&r->body, (const char *)chunk->data, chunk->data_length)) {
        w->no_memory = true;
        return;
    }
    last->left += chunk->data_length;
    r->received += (int64_t)chunk->data_length;
    note(r);
}

static void on_frame_end(wslay_event_context_ptr events, void *arg)
{
    (void)events;
    lxd_request *r = arg;
    message *last = last_message(r->ws);
    if (r->ws->ping) r->ws->pongs++;
    if (!r->ws->heard) note(r);
    r->ws->heard = true;
    if (r->ws->control || r->ws->no_memory || !r->ws->final || !last) return;
    last->final = true;
    note(r);
}

/* ---- the handshake ---------------------------------------------------------------------------- */

/* Adds text to what is to be sent. */
static bool say(lxd_websocket *w, const char *text)
{
    return lxd_buffer_add(&w->out, text, strlen(text));
}

/* Host and path of a URL, as they are. */
static bool say_where(lxd_websocket *w, const char *url)
{
    const char *host = strstr(url, "://");
    host = host ? host + 3 : url;
    size_t n = strcspn(host, "/");
    return say(w, "GET ") && say(w, host[n] ? host + n : "/") && say(w, " HTTP/1.1\r\nHost: ") &&
           lxd_buffer_add(&w->out, host, n) && say(w, "\r\n");
}

static bool ask(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    unsigned char nonce[16];
    if (RAND_bytes(nonce, sizeof nonce) != 1) return false;
    EVP_EncodeBlock((unsigned char *)w->key, nonce, sizeof nonce);
    if (!say_where(w, r->url)) return false;
    for (const struct curl_slist *h = r->headers; h; h = h->next) {
        /* An empty one is `Name;` to libcurl (request.c). */
        const char *line = h->data, *empty = strchr(line, ':') ? NULL : strchr(line, ';');
        size_t n = empty ? (size_t)(empty - line) : strlen(line);
        if (!lxd_buffer_add(&w->out, line, n) || !say(w, empty ? ":\r\n" : "\r\n")) return false;
    }
    return say(w, "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                  "Sec-WebSocket-Key: ") &&
           say(w, w->key) && say(w, "\r\n\r\n");
}

/* The value of a header of the answer, without the spaces around it; NULL: it isn't there. */
static const char *header(const lxd_request *r, const char *name, size_t *n)
{
    size_t length = strlen(name);
    if (r->head.used == 0) return NULL;
    const char *at = r->head.bytes + r->head.from, *end = at + r->head.used;
    while (at < end) {
        const char *stop = memchr(at, '\r', (size_t)(end - at));
        if (!stop) return NULL;
        if ((size_t)(stop - at) > length && at[length] == ':' && strncasecmp(at, name, length) == 0) {
            at += length + 1;
            while (at < stop && (*at == ' ' || *at == '\t')) at++;
            while (stop > at && (stop[-1] == ' ' || stop[-1] == '\t')) stop--;
            *n = (size_t)(stop - at);
            return at;
        }
        at = stop + 2;
    }
    return NULL;
}

static bool header_is(const lxd_request *r, const char *name, const char *value, bool any_case)
{
    size_t n, length = strlen(value);
    const char *found = header(r, name, &n);
    return found && n == length &&
           (any_case ? strncasecmp(found, value, n) : strncmp(found, value, n)) == 0;
}

/* What the server must make of our key (RFC 6455, 4.2.2). */
static bool expected(const char *key, char accept[29])
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    char text[KEY_SIZE + sizeof guid];
    unsigned char hash[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    size_t length = strlen(key);
    memcpy(text, key, length);
    memcpy(text + length, guid, sizeof guid);
    if (EVP_Digest(text, length + sizeof guid - 1, hash, &n, EVP_sha1(), NULL) != 1) return false;
    EVP_EncodeBlock((unsigned char *)accept, hash, (int)n);
    return true;
}

/* Opens wslay's end. */
static bool open_events(lxd_request *r)
{
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = on_receive, .send_callback = on_send, .genmask_callback = on_mask,
        .on_frame_recv_start_callback = on_frame, .on_frame_recv_chunk_callback = on_bytes,
        .on_frame_recv_end_callback = on_frame_end,
    };
    if (wslay_event_context_client_init(&r->ws->events, &callbacks, r) != 0) return false;
    wslay_event_config_set_no_buffering(r->ws->events, 1);
    wslay_event_config_set_max_recv_msg_length(r->ws->events, INT64_MAX); /* of which little is here */
    return true;
}

/* Looks at the head of the answer, once it is whole. */
static void judge(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    char accept[29];
    r->head_done = true;
    if (r->status != 101) {
        size_t n;
        const char *length = header(r, "Content-Length", &n);
        r->to_receive = 0;
        for (size_t i = 0; length && i < n && i < 9; i++)
            if (length[i] >= '0' && length[i] <= '9') r->to_receive = r->to_receive * 10 + length[i] - '0';
        w->stage = REFUSAL;
    } else if (!header_is(r, "Upgrade", "websocket", true) || !header_is(r, "Connection", "Upgrade", true) ||
               !expected(w->key, accept) || !header_is(r, "Sec-WebSocket-Accept", accept, false)) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the answer is not a WebSocket's");
    } else if (header(r, "Sec-WebSocket-Extensions", &(size_t){0})) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the server wants an extension that nobody offered");
    } else if (!open_events(r)) {
        w->no_memory = true;
    } else {
        w->stage = OPEN;
        r->timeout = 0; /* nobody has to say anything */
        note(r);
    }
}

/* Reads the head of the answer: its lines go where those of any answer are, what follows stays. */
static void read_answer(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    receive(r, &w->in);
    if (w->in.used == 0) return;
    const char *bytes = w->in.bytes + w->in.from;
    const char *end = w->in.used > 3 ? memmem(bytes, w->in.used, "\r\n\r\n", 4) : NULL;
    if (!end) {
        if (w->in.used > HEAD_LIMIT)
            lxd_request_blame(r, LXD_PROTOCOL, 0, "the head of the answer is longer than %zu bytes",
                              HEAD_LIMIT);
        return;
    }
    const char *lines = (const char *)memmem(bytes, w->in.used, "\r\n", 2) + 2;
    if (strncmp(bytes, "HTTP/1.", 7) != 0 || bytes[8] != ' ') {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the answer is not HTTP");
        return;
    }
    r->status = 0;
    for (const char *digit = bytes + 9; *digit >= '0' && *digit <= '9' && r->status < 1000; digit++)
        r->status = r->status * 10 + *digit - '0';
    if (!lxd_buffer_add(&r->head, lines, (size_t)(end + 2 - lines))) {
        w->no_memory = true;
        return;
    }
    lxd_buffer_take(&w->in, (size_t)(end + 4 - bytes));
    judge(r);
}

/* Reads the body of an answer that is no WebSocket. */
static void read_refusal(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    do {
        if (w->in.used == 0) continue;
        if (!lxd_buffer_add(&r->body, w->in.bytes + w->in.from, w->in.used)) w->no_memory = true;
        lxd_buffer_take(&w->in, w->in.used);
    } while (r->body.used < (size_t)r->to_receive && r->body.used < HEAD_LIMIT && receive(r, &w->in));
    if (r->body.used >= (size_t)r->to_receive || r->body.used >= HEAD_LIMIT) w->ended = true;
}

/* ---- open ------------------------------------------------------------------------------------- */

/* Whether nothing keeps it from going on. */
static bool goes(const lxd_websocket *w)
{
    return !w->stuck && !w->cut && !w->ended && !w->no_memory;
}

/* Whether less waits to be sent than a part of what may. */
static bool sends_fewer(const lxd_websocket *w, size_t part)
{
    return wslay_event_get_queued_msg_length(w->events) < LXD_ROOM / part &&
           wslay_event_get_queued_msg_count(w->events) < MESSAGES / part;
}

/* Whether pongs wait. A peer that has said all closes at once (LXD: lxd/instance_exec.go), and where TCP meets a
 * byte after that, it drops what the peer's kernel still had to send: a pong in the midst of the last output loses
 * the rest of it. So who only listens answers once there is nothing more to hear; or never, for a pong that nobody
 * has read when the peer closes does the same. */
static bool holds_pongs(const lxd_websocket *w)
{
    return w->silence > 0 && !w->silent && !owes(w) && !wslay_event_get_close_received(w->events);
}

/* Sends what there is to be sent, as much as goes. */
static int send_all(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    int sent;
    if (holds_pongs(w)) return 0;
    do {
        sent = wslay_event_send(w->events);
        flush(r); /* there may be room by now for what wslay was told to keep */
    } while (sent == 0 && goes(w) && wslay_event_want_write(w->events));
    return sent;
}

static void exchange(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    int received, sent;
    bool owed;
    do {
        received = wslay_event_recv(w->events);
        owed = owes(w);
        sent = send_all(r);
    } while (owed && received == 0 && sent == 0 && goes(w));
    if (w->cut && owes(w)) w->ended = true; /* whoever still pings will never have an answer */
    if (received == WSLAY_ERR_NOMEM || sent == WSLAY_ERR_NOMEM) {
        w->no_memory = true;
    } else if (received != 0 || sent != 0) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "a frame that makes no sense");
    } else if (wslay_event_get_close_received(w->events)) {
        w->ended = !wslay_event_want_write(w->events) || w->stuck || w->cut;
    } else if (!wslay_event_get_read_enabled(w->events)) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "a frame that breaks the rules (%d)",
                          (int)wslay_event_get_status_code_sent(w->events));
    }
    if (w->wants_room && sends_fewer(w, 2)) {
        w->wants_room = false;
        note(r);
    }
}

/* Has the engine come back for the pongs that wait, when nothing has come for long enough. */
static void await_silence(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    bool waits = w->pongs > 0 && !w->deaf && holds_pongs(w) && w->silence < LXD_NEVER;
    if (waits && r->timeout == 0) {
        r->timeout = w->silence;
        lxd_engine_touch(r);
    } else if (!waits) {
        r->timeout = 0;
    }
}

/* Ends the request where it is over; else says what it waits for. */
static void settle(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    if (w->no_memory) lxd_request_blame(r, LXD_FAILED, ENOMEM, "out of memory");
    if (w->ended && (w->stage == ASKING || w->stage == ANSWER))
        lxd_request_blame(r, LXD_LOST, 0, "the connection ended within the handshake");
    if (r->kind != LXD_NO_FAILURE || w->ended) {
        lxd_engine_end(r);
        return;
    }
    int what = w->stage == ASKING || w->stuck ? LXD_OUT : 0;
    w->deaf = w->stage == OPEN && full(r);
    if (w->deaf || w->rest == NONE) w->rest = NONE;
    else r->engine->eager = true;
    if (!w->deaf && !owes(w)) what |= LXD_IN;
    if (w->stage == OPEN && w->silence > 0) await_silence(r);
    if (!lxd_engine_watch(r, what)) {
        lxd_request_blame(r, LXD_FAILED, 0, "the socket can't be watched");
        lxd_engine_end(r);
    }
}

void lxd_websocket_drive(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    w->budget = BUDGET;
    w->rest = NONE;
    if (w->stage == ASKING) {
        flush(r);
        if (w->cut) w->ended = true;
        if (w->out.used == 0) w->stage = ANSWER;
    }
    if (w->stage == ANSWER) read_answer(r);
    if (w->stage == REFUSAL) read_refusal(r);
    if (w->stage == OPEN && r->kind == LXD_NO_FAILURE) exchange(r);
    settle(r);
}

bool lxd_websocket_idle(lxd_request *r)
{
    if (r->ws->stage != OPEN) return false;
    r->ws->silent = true;
    lxd_websocket_drive(r);
    return true;
}

void lxd_websocket_go_on(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    if (w->rest == OLD) {
        lxd_websocket_drive(r);
    } else if (w->rest == FRESH) {
        w->rest = OLD;
        r->engine->eager = true;
    }
}

void lxd_websocket_begin(lxd_request *r)
{
    lxd_websocket *w = r->ws;
    curl_socket_t fd = CURL_SOCKET_BAD;
    curl_easy_getinfo(r->easy, CURLINFO_ACTIVESOCKET, &fd);
    r->fd = fd;
    w->stage = ASKING;
    if (!ask(r)) w->no_memory = true;
    else if (fd == CURL_SOCKET_BAD) w->ended = true;
    if (w->no_memory || w->ended) settle(r);
    else lxd_websocket_drive(r);
}

/* ---- Lua -------------------------------------------------------------------------------------- */

static lxd_request *check(lua_State *L)
{
    lxd_request *r = lxd_request_check(L, 1);
    if (!r->ws) luaL_error(L, "this request is no WebSocket");
    return r;
}

/* Of the first message, what has come of it: bytes, "text" or "binary", whether that was the last of
 * it. Nothing: there is none. */
static int l_receive(lua_State *L)
{
    lxd_request_prepare(L);
    lxd_request *r = check(L);
    lxd_websocket *w = r->ws;
    if (w->count == 0 || lxd_request_taking(L, 1)) return 0;
    message *m = &w->messages[w->first];
    /* Less is there where memory has run out. */
    size_t n = m->left < r->body.used ? m->left : r->body.used;
    bool text = m->opcode == WSLAY_TEXT_FRAME, final = m->final && n == m->left;
    if (n == 0 && !final) return 0;
    if (!lxd_request_push_body(L, 1, n)) return 0; /* closed by a finalizer meanwhile */
    m = &w->messages[w->first]; /* one may have driven the poller, and more of it have come */
    m->left -= n;
    if (final) {
        w->first = (w->first + 1) % w->room;
        w->count--;
    }
    if (w->deaf && r->state == LXD_ACTIVE && !full(r)) {
        lxd_poller *p = r->engine->poller;
        lxd_websocket_drive(r);
        lxd_poller_settle(p);
    }
    lua_pushstring(L, text ? "text" : "binary"); /* last: a finalizer may close the request */
    lua_pushboolean(L, final);
    return 3;
}

/* Sends a message, or a closing frame: true; false: there is no room, or it isn't open yet; nil: it is over. */
static int l_send(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 2, &n); /* first: a number's text may collect garbage */
    static const char *const types[] = {"binary", "text", "close", NULL};
    static const uint8_t opcodes[] = {WSLAY_BINARY_FRAME, WSLAY_TEXT_FRAME};
    int type = luaL_checkoption(L, 3, "binary", types);
    bool closes = type == 2;
    lxd_request *r = check(L);
    lxd_websocket *w = r->ws;
    if (r->state == LXD_DONE) return 0;
    if (w->stage != OPEN || !sends_fewer(w, 1)) {
        w->wants_room = true;
        lua_pushboolean(L, 0);
        return 1;
    }
    int code = closes ? wslay_event_queue_close(w->events, WSLAY_CODE_NORMAL_CLOSURE, NULL, 0)
                      : wslay_event_queue_msg(w->events, &(struct wslay_event_msg){
                            .opcode = opcodes[type], .msg = (const uint8_t *)bytes, .msg_length = n});
    if (code == WSLAY_ERR_NOMEM) return luaL_error(L, "not enough memory");
    if (code != 0) return 0; /* a closing frame was sent, or came */
    lxd_poller *p = r->engine->poller;
    lxd_websocket_drive(r);
    lxd_poller_settle(p);
    lua_pushboolean(L, 1);
    return 1;
}

static int l_is_open(lua_State *L)
{
    lxd_request *r = check(L);
    lua_pushboolean(L, r->ws->stage == OPEN && r->state == LXD_ACTIVE);
    return 1;
}

static int l_heard(lua_State *L)
{
    lua_pushboolean(L, check(L)->ws->heard);
    return 1;
}

void lxd_websocket_methods(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"receive", l_receive}, {"send", l_send}, {"is_open", l_is_open}, {"heard", l_heard}, {NULL, NULL},
    };
    for (const luaL_Reg *m = methods; m->name; m++) {
        lua_pushcfunction(L, m->func);
        lua_setfield(L, -2, m->name);
    }
}
