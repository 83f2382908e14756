/* A request in libcurl's hands: how it is asked, what libcurl says while it runs, how it ended.
 * SPDX-License-Identifier: MIT
 *
 * The callbacks only fill and empty C buffers; r, their argument, outlives the easy handle. */
#include "transfer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "engine.h"

#define HEAD_LIMIT ((size_t)64 * 1024)  /* bytes of all heads of one answer */
#define BUFFER_SIZE (64L * 1024)        /* libcurl's, for what comes in */
#define UPLOAD_SIZE (128L * 1024)       /* libcurl's, for what goes out */
#define SHARED_MAX ((int64_t)16 * 1024) /* of a body: one frame of HTTP/2, for which there is room */
#define ROOM_NEWS ((size_t)64 * 1024)   /* as much room is worth telling a writer about */
#define RESERVE ((int64_t)1024 * 1024)  /* as much memory as a Content-Length gets on credit */

/* What libcurl's codes mean, before and after the head of an answer was whole. A connection that ends
 * before is `lost`: nothing was said about the request. One that ends after it has broken what the
 * head announced, as has an answer that makes no sense: `protocol`, the outcome can be read off the
 * status. What isn't listed is `failed`. */
static const struct meaning {
    CURLcode code;
    lxd_kind before;
    lxd_kind after;
} meanings[] = {
    {CURLE_COULDNT_RESOLVE_HOST, LXD_CONNECT, LXD_CONNECT}, /* also: the path is too long */
    {CURLE_COULDNT_CONNECT, LXD_CONNECT, LXD_CONNECT},
    {CURLE_SSL_CONNECT_ERROR, LXD_TLS, LXD_TLS},
    {CURLE_PEER_FAILED_VERIFICATION, LXD_TLS, LXD_TLS},
    {CURLE_SSL_CACERT_BADFILE, LXD_TLS, LXD_TLS},
    {CURLE_SSL_CERTPROBLEM, LXD_TLS, LXD_TLS},
    {CURLE_OPERATION_TIMEDOUT, LXD_TIMEOUT, LXD_TIMEOUT},
    {CURLE_GOT_NOTHING, LXD_LOST, LXD_PROTOCOL},
    {CURLE_PARTIAL_FILE, LXD_LOST, LXD_PROTOCOL},
    {CURLE_RECV_ERROR, LXD_LOST, LXD_PROTOCOL},
    {CURLE_SEND_ERROR, LXD_LOST, LXD_PROTOCOL},
    {CURLE_SEND_FAIL_REWIND, LXD_LOST, LXD_LOST},
    {CURLE_HTTP2, LXD_LOST, LXD_PROTOCOL},
    {CURLE_HTTP2_STREAM, LXD_LOST, LXD_PROTOCOL},
    {CURLE_WEIRD_SERVER_REPLY, LXD_PROTOCOL, LXD_PROTOCOL},
    {CURLE_FILESIZE_EXCEEDED, LXD_PROTOCOL, LXD_PROTOCOL},
    {CURLE_BAD_CONTENT_ENCODING, LXD_PROTOCOL, LXD_PROTOCOL}, /* of Transfer-Encoding: we ask for none */
};

/* Says how a request fails; the first to say so is right. The words become one line. */
void lxd_request_blame(lxd_request *r, lxd_kind kind, int error, const char *format, ...)
{
    if (r->kind != LXD_NO_FAILURE) return;
    r->kind = kind;
    r->error = error;
    va_list args;
    va_start(args, format);
    vsnprintf(r->message, sizeof r->message, format, args);
    va_end(args);
    for (char *c = r->message; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
}

static void note(lxd_request *r)
{
    if (r->engine) lxd_poller_note(r->engine->poller, r);
}

/* CURLOPT_PREREQFUNCTION: a connection is there, the request is about to be sent. libcurl comes here
 * again when a kept connection turned out to be dead; it has no means to ask us to read the body
 * from its beginning, and what must not arrive twice isn't sent twice. */
static int on_send(void *arg, char *ip, char *local_ip, int port, int local_port)
{
    (void)ip, (void)local_ip, (void)port, (void)local_port;
    lxd_request *r = arg;
    if (r->attempts > 0 && (r->once || r->source.given > 0)) {
        lxd_request_blame(r, LXD_LOST, 0, "the connection ended before the answer");
        return CURL_PREREQFUNC_ABORT;
    }
    r->attempts++;
    r->shared = lxd_endpoint_shares(r->engine->endpoint, r->easy);
    long connects = 0;
    curl_easy_getinfo(r->easy, CURLINFO_NUM_CONNECTS, &connects);
    r->engine->connects += connects - r->connects;
    r->connects = connects;
    lxd_engine_touch(r);
    return CURL_PREREQFUNC_OK;
}

/* CURLOPT_READFUNCTION */
static size_t on_upload(char *out, size_t one, size_t max, void *arg)
{
    lxd_request *r = arg;
    int error;
    long n = lxd_source_read(&r->source, out, one * max, &error);
    if (n == LXD_SOURCE_WAIT) {
        r->send_paused = true;
        return CURL_READFUNC_PAUSE;
    }
    if (n == LXD_SOURCE_FAILED) {
        if (r->source.live)
            lxd_request_blame(r, LXD_FAILED, 0, "the body ended before its length");
        else
            lxd_request_blame(r, LXD_FILE, error, "%s: %s", r->source.pieces[r->source.at].path,
                              error ? strerror(error) : "became shorter while it was sent");
        return CURL_READFUNC_ABORT;
    }
    lxd_engine_touch(r);
    if (r->source.wants_room && r->source.ring.used <= LXD_ROOM - ROOM_NEWS) {
        r->source.wants_room = false;
        note(r);
    }
    return (size_t)n;
}

/* The head is whole: the body may come. */
static void head_done(lxd_request *r)
{
    r->in_head = false;
    if (r->status < 200 && r->status != 101) return; /* provisional: another one follows */
    r->head_done = true;
    if (r->stream) note(r);
}

/* Whether a header line is a Content-Length that is none. libcurl reads to the end of the connection
 * when it is too large for it, and then a body that was cut short looks whole. */
static bool false_length(const char *line, size_t n)
{
    static const char name[] = "content-length:";
    size_t at = sizeof name - 1, digits = 0;
    if (n < at || strncasecmp(line, name, at) != 0) return false;
    while (at < n && (line[at] == ' ' || line[at] == '\t')) at++;
    for (; at < n && line[at] >= '0' && line[at] <= '9'; at++) digits++;
    while (at < n && (line[at] == ' ' || line[at] == '\t')) at++;
    return at < n || digits == 0 || digits > 18;
}

/* CURLOPT_HEADERFUNCTION: one line of a head; after a chunked body, of its trailer. */
static size_t on_head(char *line, size_t one, size_t n, void *arg)
{
    lxd_request *r = arg;
    n *= one;
    size_t length = n;
    if (r->head_done) return n;
    r->head_bytes += n;
    if (r->head_bytes > HEAD_LIMIT) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the head of the answer is longer than %zu bytes",
                          HEAD_LIMIT);
        return 0;
    }
    while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r')) length--;
    if (!r->in_head) {
        const char *space = memchr(line, ' ', length);
        r->status = 0;
        for (size_t i = 1; space && i <= 3 && space + i < line + length; i++)
            r->status = r->status * 10 + (space[i] >= '0' && space[i] <= '9' ? space[i] - '0' : 0);
        r->in_head = true;
        lxd_engine_touch(r); /* once a head: libcurl hands on its lines in one go */
        lxd_buffer_take(&r->head, r->head.used);
    } else if (length == 0) {
        head_done(r);
    } else if (false_length(line, length)) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the answer's Content-Length makes no sense");
        return 0;
    } else if (!lxd_buffer_add(&r->head, line, length) || !lxd_buffer_add(&r->head, "\r\n", 2)) {
        lxd_request_blame(r, LXD_FAILED, ENOMEM, "out of memory");
        return 0;
    }
    return n;
}

static int64_t announced(const lxd_request *r)
{
    curl_off_t n = -1;
    curl_easy_getinfo(r->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &n);
    return n;
}

/* CURLOPT_WRITEFUNCTION */
static size_t on_body(char *bytes, size_t one, size_t n, void *arg)
{
    lxd_request *r = arg;
    n *= one;
    lxd_engine_touch(r);
    if (r->stream && lxd_request_held(r) >= LXD_ROOM) {
        r->recv_paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (!r->stream && n > r->limit - r->body.used) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "the body of the answer is longer than %zu bytes",
                          r->limit);
        return 0;
    }
    if (!r->stream && r->received == 0) {
        /* One allocation where the length is known; a failure shows below. */
        int64_t length = announced(r);
        if (length > 0) lxd_buffer_reserve(&r->body, (size_t)(length < RESERVE ? length : RESERVE));
    }
    if (!lxd_buffer_add(&r->body, bytes, n)) {
        lxd_request_blame(r, LXD_FAILED, ENOMEM, "out of memory");
        return 0;
    }
    r->received += (int64_t)n;
    if (r->stream) note(r);
    return n;
}

#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode code_ = curl_easy_setopt(easy, option, value);                                    \
        if (code_ != CURLE_OK) return code_;                                                       \
    } while (0)

/* Tells libcurl all about a request: nothing that the request itself doesn't say, no defaults from
 * files or the environment, nothing added to what is sent but Host, Accept and the framing. */
CURLcode lxd_transfer_setup(lxd_request *r)
{
    CURL *easy = r->easy;
    lxd_engine *e = r->engine;
    bool head = strcmp(r->method, "HEAD") == 0;
    SET(CURLOPT_PRIVATE, r);
    SET(CURLOPT_ERRORBUFFER, r->words);
    bool alone = (r->stream && !r->brief) || r->source.live || r->source.length > SHARED_MAX;
    lxd_use use = r->ws ? LXD_UPGRADE : alone ? LXD_ALONE : LXD_ANY;
    CURLcode code = lxd_endpoint_apply(e->endpoint, easy, &r->handshake, use);
    if (code != CURLE_OK) return code;
    /* What its reader cuts off leaves a connection in doubt; a stream of HTTP/2's, none. */
    if (r->brief && lxd_endpoint_path(e->endpoint)) SET(CURLOPT_FORBID_REUSE, 1L);
    SET(CURLOPT_PATH_AS_IS, 1L);
    SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    SET(CURLOPT_BUFFERSIZE, BUFFER_SIZE);
    SET(CURLOPT_URL, r->url);
    if (r->ws) SET(CURLOPT_CONNECT_ONLY, 1L);
    SET(CURLOPT_HTTPHEADER, r->headers);
    if (head) SET(CURLOPT_NOBODY, 1L);
    if (r->has_body) {
        SET(CURLOPT_UPLOAD, 1L);
        SET(CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_SIZE);
        SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)r->source.length);
        SET(CURLOPT_READFUNCTION, on_upload);
        SET(CURLOPT_READDATA, r);
    }
    SET(CURLOPT_CUSTOMREQUEST, r->method);
    SET(CURLOPT_HEADERFUNCTION, on_head);
    SET(CURLOPT_HEADERDATA, r);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, r);
    if (!r->stream && !head && r->limit > 0)
        SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)r->limit); /* fails before the first byte */
    SET(CURLOPT_PREREQFUNCTION, on_send);
    SET(CURLOPT_PREREQDATA, r);
    SET(CURLOPT_OPENSOCKETFUNCTION, lxd_engine_open_socket);
    SET(CURLOPT_OPENSOCKETDATA, r);
    SET(CURLOPT_CLOSESOCKETFUNCTION, lxd_engine_close_socket);
    SET(CURLOPT_CLOSESOCKETDATA, e);
    return CURLE_OK;
}

/* Whether an answer had begun to come, in whatever form. */
static bool answered(const lxd_request *r)
{
    curl_off_t first = 0;
    curl_easy_getinfo(r->easy, CURLINFO_STARTTRANSFER_TIME_T, &first);
    return first > 0;
}

/* Says how a request ended from what libcurl says about it. */
void lxd_transfer_outcome(lxd_request *r, CURLcode code)
{
    if (code == CURLE_OK && r->head_done) return;
    if (code == CURLE_OK) {
        /* libcurl is content with a connection that ends within the head. */
        lxd_request_blame(r, LXD_LOST, 0, "the connection ended within the head of the answer");
        return;
    }
    lxd_kind kind = LXD_FAILED;
    for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
        if (meanings[i].code == code)
            kind = r->head_done ? meanings[i].after : meanings[i].before;
    /* Not HTTP at all; or a line of the head is longer than libcurl's buffer for it may get. */
    if (r->attempts > 0 && code == CURLE_UNSUPPORTED_PROTOCOL) kind = LXD_PROTOCOL;
    if (code == CURLE_OUT_OF_MEMORY && r->attempts > 0 && !r->head_done && answered(r)) {
        lxd_request_blame(r, LXD_PROTOCOL, 0, "a line of the answer's head is too long");
        return;
    }
    const char *reason, *refusal = lxd_handshake_refusal(&r->handshake, &reason);
    if (kind == LXD_TLS && refusal) {
        lxd_request_blame(r, LXD_TLS, 0, "%s", refusal);
        return;
    }
    long error = 0;
    if (r->easy) curl_easy_getinfo(r->easy, CURLINFO_OS_ERRNO, &error);
    if (code == CURLE_COULDNT_CONNECT && error == 0) error = r->socket_error;
    /* A unix socket whose backlog is full: connect said EAGAIN, which libcurl took for a connection
     * under way and has forgotten since. */
    const char *path = lxd_endpoint_path(r->engine->endpoint);
    if (code == CURLE_COULDNT_CONNECT && error == 0 && path) error = EAGAIN;
    const char *words = r->words[0] ? r->words : curl_easy_strerror(code);
    if (kind == LXD_CONNECT && error != 0 && path)
        lxd_request_blame(r, kind, (int)error, "%s: %s", path, strerror((int)error));
    else if (kind == LXD_CONNECT && error != 0)
        lxd_request_blame(r, kind, (int)error, "%s: %s", words, strerror((int)error));
    else
        lxd_request_blame(r, kind, 0, "%s", words);
}

/* Keeps what libcurl knows before its handle goes. */
void lxd_transfer_harvest(lxd_request *r)
{
    long sent = 0;
    curl_easy_getinfo(r->easy, CURLINFO_REQUEST_SIZE, &sent);
    r->unsure = sent > 0;
    r->to_receive = announced(r);
}

/* Lets libcurl go on in the directions that aren't paused (any more). It may call back from here. */
CURLcode lxd_transfer_resume(lxd_request *r)
{
    lxd_engine_touch(r);
    return curl_easy_pause(r->easy, (r->recv_paused ? CURLPAUSE_RECV : CURLPAUSE_CONT) |
                                        (r->send_paused ? CURLPAUSE_SEND : CURLPAUSE_CONT));
}
