/* How a server is reached: its unix socket, or its host and what TLS has to know.
 * SPDX-License-Identifier: MIT
 *
 * Who the server is, is decided within the handshake: libcurl's own look at the certificate comes
 * after it, knows no fingerprint of a certificate, and can't be told to overlook an expiry. What
 * libcurl adds (the store of CAs, the name in a certificate of a CA) stays on. There is no way
 * through here that accepts whatever comes. */
#include "endpoint.h"

#include <pthread.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "identity.h"

struct lxd_endpoint {
    long holders; /* engine and connections */
    char *path;   /* owned: of the unix socket, or NULL */
    bool tls;
    char *host;        /* owned: name or address that a CA's certificate must be for */
    X509 *certificate; /* owned: ours, or NULL */
    EVP_PKEY *key;     /* owned: its key */
    char *ca;          /* owned: PEM text of the only CAs to trust, or NULL */
    size_t ca_length;
    bool pinned;       /* exactly one certificate is accepted: */
    unsigned char pin[LXD_FINGERPRINT];
    X509 *server;      /* owned: the server's that was accepted last */
};

struct lxd_peer {
    long holders;           /* handshakes (at most one) and SSL_CTXs (at most one) */
    lxd_endpoint *endpoint; /* held */
    X509 *refused;          /* owned; NULL: wasn't seen or was accepted */
    int why;                /* X509_V_ERR_…; LXD_NOT_PINNED; LXD_WEAK */
};

#define LXD_NOT_PINNED (-1)
#define LXD_WEAK (-2) /* ours, not the server's */

static void clear(lxd_endpoint *p)
{
    LXD_FREE(p->path);
    LXD_FREE(p->host);
    LXD_FREE(p->ca);
    X509_free(p->certificate);
    EVP_PKEY_free(p->key);
    X509_free(p->server);
}

void lxd_endpoint_drop(lxd_endpoint *p)
{
    if (!p || --p->holders > 0) return;
    clear(p);
    LXD_FREE(p);
}

static void drop_peer(lxd_peer *peer)
{
    if (!peer || --peer->holders > 0) return;
    lxd_endpoint_drop(peer->endpoint);
    X509_free(peer->refused);
    LXD_FREE(peer);
}

void lxd_handshake_drop(lxd_handshake *h)
{
    drop_peer(h->peer);
    h->peer = NULL;
    h->endpoint = NULL;
}

/* A copy of the string at the top of the stack, which is taken off; NULL for nil. */
static char *copy_text(lua_State *L, const char *option, size_t *n)
{
    char *copy = NULL;
    if (!lua_isnil(L, -1)) {
        const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, n) : NULL;
        if (!text || *n == 0) luaL_error(L, "option '%s' must be a string", option);
        copy = LXD_MALLOC(*n + 1);
        if (!copy) luaL_error(L, "not enough memory");
        memcpy(copy, text, *n + 1);
    }
    lua_pop(L, 1);
    return copy;
}

/* The same, without a NUL in it. */
static char *copy_name(lua_State *L, const char *option)
{
    size_t n = 0;
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &n) : NULL;
    if (text && strlen(text) != n) luaL_error(L, "option '%s' holds a NUL", option);
    return copy_text(L, option, &n);
}

static bool complain(lua_State *L, const char *what, const char *why)
{
    lua_pushfstring(L, "%s: %s", what, why);
    return false;
}

/* Our certificate and its key. */
static bool read_identity(lua_State *L, int tls, lxd_endpoint *p)
{
    size_t n;
    const char *why, *text;
    lua_getfield(L, tls, "cert");
    lua_getfield(L, tls, "key");
    if (lua_isnil(L, -1) && lua_isnil(L, -2)) {
        lua_pop(L, 2);
        return true;
    }
    text = luaL_checklstring(L, -2, &n);
    p->certificate = lxd_certificate_read(text, n, &why);
    if (!p->certificate) return complain(L, "cert", why);
    text = luaL_checklstring(L, -1, &n);
    p->key = lxd_key_read(text, n, &why);
    if (!p->key) return complain(L, "key", why);
    lua_pop(L, 2);
    bool fit = X509_check_private_key(p->certificate, p->key) == 1;
    ERR_clear_error();
    return fit || complain(L, "key", "it isn't the key of the certificate");
}

static bool read_tls(lua_State *L, int tls, lxd_endpoint *p)
{
    size_t n;
    const char *why;
    p->tls = true;
    lua_getfield(L, tls, "host");
    p->host = copy_name(L, "host");
    if (!p->host) luaL_error(L, "option 'host' must be a string");
    lua_getfield(L, tls, "pin");
    if (!lua_isnil(L, -1)) {
        const char *pin = lua_tolstring(L, -1, &n);
        if (!pin || n != LXD_FINGERPRINT) luaL_error(L, "option 'pin' must be 32 bytes");
        memcpy(p->pin, pin, LXD_FINGERPRINT);
        p->pinned = true;
    }
    lua_pop(L, 1);
    lua_getfield(L, tls, "ca");
    p->ca = copy_text(L, "ca", &p->ca_length);
    if (p->ca && !lxd_authorities_check(p->ca, p->ca_length, &why)) return complain(L, "ca", why);
    return read_identity(L, tls, p);
}

bool lxd_endpoint_new(lua_State *L, int options, lxd_endpoint **out)
{
    lxd_endpoint *p = *out = LXD_CALLOC(1, sizeof *p);
    if (!p) return luaL_error(L, "not enough memory");
    p->holders = 1;
    lua_getfield(L, options, "unix");
    p->path = copy_name(L, "unix");
    lua_getfield(L, options, "tls");
    bool good = !lua_istable(L, -1) || read_tls(L, lua_gettop(L), p);
    if (good) lua_pop(L, 1);
    return good;
}

const char *lxd_endpoint_path(const lxd_endpoint *p)
{
    return p->path;
}

/* Pushes a certificate's PEM text; nil when there is none, or no memory for it. */
static void push_pem(lua_State *L, X509 *certificate)
{
    char text[16 * 1024]; /* in here, because pushing may raise; a certificate has 1 or 2 KiB */
    size_t n = 0;
    char *pem = certificate ? lxd_certificate_pem(certificate, &n) : NULL;
    bool fits = pem && n <= sizeof text;
    if (fits) memcpy(text, pem, n);
    LXD_FREE(pem);
    if (fits) lua_pushlstring(L, text, n);
    else lua_pushnil(L);
}

void lxd_endpoint_push_server(lua_State *L, const lxd_endpoint *p)
{
    push_pem(L, p->server);
}

/* Keeps a certificate, and lets the one before go. */
static void keep(X509 **where, X509 *certificate)
{
    if (certificate && X509_up_ref(certificate) != 1) return;
    X509_free(*where);
    *where = certificate;
}

/* Whether the server's certificate is the pinned one. */
static bool is_pinned(const lxd_endpoint *p, const X509 *leaf)
{
    unsigned char hash[LXD_FINGERPRINT];
    return lxd_certificate_hash(leaf, hash) && memcmp(hash, p->pin, sizeof hash) == 0;
}

/* SSL_CTX_set_cert_verify_callback: accepts the server's certificate or not, before anything else is
 * said to it. A pinned one needs no CA, no date and no name: it is the one that was meant. */
static int on_certificate(X509_STORE_CTX *store, void *arg)
{
    lxd_peer *peer = arg;
    lxd_endpoint *p = peer->endpoint;
    X509 *leaf = X509_STORE_CTX_get0_cert(store);
    peer->why = X509_V_OK;
    if (!leaf) {
        peer->why = X509_V_ERR_UNSPECIFIED;
    } else if (p->pinned && !is_pinned(p, leaf)) {
        peer->why = LXD_NOT_PINNED;
    } else if ((!p->pinned || p->ca) && X509_verify_cert(store) != 1) {
        peer->why = X509_STORE_CTX_get_error(store);
        if (peer->why == X509_V_OK) peer->why = X509_V_ERR_UNSPECIFIED;
    }
    ERR_clear_error();
    if (peer->why == X509_V_OK) {
        keep(&p->server, leaf);
        X509_STORE_CTX_set_error(store, X509_V_OK);
        return 1;
    }
    keep(&peer->refused, leaf);
    X509_STORE_CTX_set_error(store, peer->why > 0 ? peer->why : X509_V_ERR_CERT_REJECTED);
    return 0;
}

/* Where an SSL_CTX keeps the peer that its callback needs, for as long as the connection lives. */
static int peer_index = -1;

static void on_free(void *of, void *peer, CRYPTO_EX_DATA *data, int index, long number, void *unused)
{
    (void)of, (void)data, (void)index, (void)number, (void)unused;
    drop_peer(peer);
}

static void make_index(void)
{
    peer_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, on_free);
}

/* Who a CA's certificate must be for. libcurl looks at that, too, but not within the handshake. */
static bool expect_host(SSL_CTX *ssl, const char *host)
{
    X509_VERIFY_PARAM *expected = SSL_CTX_get0_param(ssl);
    X509_VERIFY_PARAM_set_hostflags(expected, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return X509_VERIFY_PARAM_set1_ip_asc(expected, host) == 1 ||
           X509_VERIFY_PARAM_set1_host(expected, host, 0) == 1;
}

static lxd_peer *new_peer(lxd_handshake *h)
{
    lxd_peer *peer = LXD_CALLOC(1, sizeof *peer);
    if (!peer) return NULL;
    peer->holders = 1;
    peer->endpoint = h->endpoint;
    peer->endpoint->holders++;
    drop_peer(h->peer);
    h->peer = peer;
    return peer;
}

/* Our certificate and its key, if any, into a connection's. */
static bool use_identity(SSL_CTX *ssl, const lxd_endpoint *p, lxd_peer *peer)
{
    if (!p->certificate || (SSL_CTX_use_certificate(ssl, p->certificate) == 1 &&
                            SSL_CTX_use_PrivateKey(ssl, p->key) == 1))
        return true;
    int reason = ERR_GET_REASON(ERR_peek_last_error());
    if (reason == SSL_R_EE_KEY_TOO_SMALL || reason == SSL_R_CA_MD_TOO_WEAK) peer->why = LXD_WEAK;
    return false;
}

/* CURLOPT_SSL_CTX_FUNCTION: a connection is about to be made. */
static CURLcode on_context(CURL *easy, void *context, void *arg)
{
    (void)easy;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_index);
    lxd_handshake *h = arg;
    lxd_endpoint *p = h->endpoint;
    SSL_CTX *ssl = context;
    lxd_peer *peer = peer_index >= 0 ? new_peer(h) : NULL;
    if (!peer || SSL_CTX_set_ex_data(ssl, peer_index, peer) != 1) return CURLE_OUT_OF_MEMORY;
    peer->holders++;
    SSL_CTX_set_cert_verify_callback(ssl, on_certificate, peer);
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER, NULL);
    /* Who the server is, is settled once a connection. */
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION);
    ERR_clear_error();
    bool set = SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) == 1 &&
               (p->pinned || expect_host(ssl, p->host)) && use_identity(ssl, p, peer);
    ERR_clear_error();
    return set ? CURLE_OK : CURLE_SSL_CERTPROBLEM;
}

#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode code_ = curl_easy_setopt(easy, option, value);                                    \
        if (code_ != CURLE_OK) return code_;                                                       \
    } while (0)

static CURLcode apply_tls(lxd_endpoint *p, CURL *easy, lxd_handshake *h, lxd_use use)
{
    /* A server that went without a word is noticed even by who only listens to it: after a minute. */
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_TCP_KEEPIDLE, 30L);
    SET(CURLOPT_TCP_KEEPINTVL, 10L);
    /* Both mean the same, but libcurl keeps what was asked for apart, and so doesn't hand a request
     * for HTTP/1.1 an idle connection that speaks HTTP/2. */
    long newest = use == LXD_ANY ? CURL_SSLVERSION_MAX_DEFAULT : CURL_SSLVERSION_MAX_TLSv1_3;
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2 | newest);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    /* A pinned certificate is right whatever name it has. */
    SET(CURLOPT_SSL_VERIFYHOST, p->pinned ? 0L : 2L);
    /* A resumed session shows no certificate; whom to trust is asked at each connection. */
    SET(CURLOPT_SSL_SESSIONID_CACHE, 0L);
    if (p->ca || p->pinned) {
        SET(CURLOPT_CAINFO, NULL);
        SET(CURLOPT_CAPATH, NULL);
    }
    if (p->ca) {
        struct curl_blob ca = {p->ca, p->ca_length, CURL_BLOB_COPY};
        SET(CURLOPT_CAINFO_BLOB, &ca);
    }
    SET(CURLOPT_SSL_CTX_FUNCTION, on_context);
    SET(CURLOPT_SSL_CTX_DATA, h);
    SET(CURLOPT_HTTP_VERSION,
        (long)(use == LXD_ANY ? CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
    if (use == LXD_ANY) SET(CURLOPT_PIPEWAIT, 1L); /* for a connection that may carry it, too */
    if (use == LXD_UPGRADE) SET(CURLOPT_FRESH_CONNECT, 1L);
    return CURLE_OK;
}

CURLcode lxd_endpoint_apply(lxd_endpoint *p, CURL *easy, lxd_handshake *h, lxd_use use)
{
    h->endpoint = p;
    SET(CURLOPT_NOSIGNAL, 1L);
    /* Who gives a request up doesn't wait until the lookup of a name has ended, too: its thread is left
     * to itself. The module, and with it libcurl, is never unloaded under it (core.c). */
    SET(CURLOPT_QUICK_EXIT, 1L);
    SET(CURLOPT_PROTOCOLS_STR, p->tls ? "https" : "http");
    SET(CURLOPT_PROXY, "");
    if (p->path) SET(CURLOPT_UNIX_SOCKET_PATH, p->path);
    if (p->tls) return apply_tls(p, easy, h, use);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    return CURLE_OK;
}

bool lxd_endpoint_shares(const lxd_endpoint *p, CURL *easy)
{
    struct curl_tlssessioninfo *info = NULL;
    if (!p->tls || curl_easy_getinfo(easy, CURLINFO_TLS_SSL_PTR, &info) != CURLE_OK || !info ||
        info->backend != CURLSSLBACKEND_OPENSSL || !info->internals)
        return false;
    const unsigned char *protocol;
    unsigned int n;
    SSL_get0_alpn_selected(info->internals, &protocol, &n);
    return n == 2 && memcmp(protocol, "h2", 2) == 0;
}

const char *lxd_handshake_refusal(const lxd_handshake *h, const char **reason)
{
    *reason = NULL;
    if (!h->peer || h->peer->why == X509_V_OK) return NULL;
    switch (h->peer->why) {
    case LXD_NOT_PINNED:
        *reason = "pin";
        return "the server's certificate isn't the one that was asked for";
    case LXD_WEAK:
        *reason = "own";
        return "the key of the client certificate, or its signature, is too weak for OpenSSL";
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_CERT_NOT_YET_VALID:
        *reason = "date";
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        *reason = "name";
        break;
    default:
        *reason = "ca";
    }
    return X509_verify_cert_error_string(h->peer->why);
}

void lxd_handshake_push_refused(lua_State *L, lxd_handshake *h)
{
    unsigned char hash[LXD_FINGERPRINT];
    X509 *refused = h->peer ? h->peer->refused : NULL;
    if (!refused || !lxd_certificate_hash(refused, hash)) return;
    push_pem(L, refused); /* its own copy: what this collects may close the request */
    lua_setfield(L, -2, "certificate");
    lxd_push_hex(L, hash, sizeof hash);
    lua_setfield(L, -2, "fingerprint");
}
