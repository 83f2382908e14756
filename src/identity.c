/* Certificates and keys: reading, making, naming them by their fingerprints; files for them.
 * SPDX-License-Identifier: MIT
 *
 * OpenSSL's queue of errors is the whole thread's (nginx reads it, too): whatever fails here leaves it
 * empty. */
#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#define SECONDS_A_DAY 86400L
#define VALID_DAYS 3652 /* ten years, as `lxc` makes them (lxd: shared/cert.go) */
#define BACKDATED 3600L /* a server whose clock is a little behind must not find it not yet valid */

/* pem_password_cb: asks nobody, least of all the terminal, as OpenSSL's own would. */
static int no_password(char *out, int size, int writing, void *asked)
{
    (void)out, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

X509 *lxd_certificate_read(const char *pem, size_t n, const char **why)
{
    bool asked = false;
    *why = "no certificate in PEM form is in it";
    BIO *in = n <= INT_MAX ? BIO_new_mem_buf(pem, (int)n) : NULL;
    X509 *certificate = in ? PEM_read_bio_X509(in, NULL, no_password, &asked) : NULL;
    BIO_free(in);
    ERR_clear_error();
    return certificate;
}

bool lxd_authorities_check(const char *pem, size_t n, const char **why)
{
    bool asked = false, any = false;
    BIO *in = n <= INT_MAX ? BIO_new_mem_buf(pem, (int)n) : NULL;
    STACK_OF(X509_INFO) *all = in ? PEM_X509_INFO_read_bio(in, NULL, no_password, &asked) : NULL;
    *why = all ? "no certificate in PEM form is in it" : "one of its certificates can't be read";
    for (int i = 0; i < sk_X509_INFO_num(all); i++) any |= sk_X509_INFO_value(all, i)->x509 != NULL;
    sk_X509_INFO_pop_free(all, X509_INFO_free);
    BIO_free(in);
    ERR_clear_error();
    return any;
}

EVP_PKEY *lxd_key_read(const char *pem, size_t n, const char **why)
{
    bool asked = false;
    BIO *in = n <= INT_MAX ? BIO_new_mem_buf(pem, (int)n) : NULL;
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, &asked) : NULL;
    BIO_free(in);
    ERR_clear_error();
    *why = asked ? "the key is encrypted" : "no private key in PEM form is in it";
    return key;
}

bool lxd_certificate_hash(const X509 *certificate, unsigned char hash[LXD_FINGERPRINT])
{
    unsigned int length;
    bool done = X509_digest(certificate, EVP_sha256(), hash, &length) == 1;
    ERR_clear_error();
    return done;
}

char *lxd_certificate_pem(X509 *certificate, size_t *n)
{
    char *pem = NULL, *bytes;
    BIO *out = BIO_new(BIO_s_mem());
    if (out && PEM_write_bio_X509(out, certificate) == 1) {
        long length = BIO_get_mem_data(out, &bytes);
        pem = LXD_MALLOC((size_t)length + 1);
        if (pem) memcpy(pem, bytes, (size_t)length);
        *n = (size_t)length;
    }
    BIO_free(out);
    ERR_clear_error();
    return pem;
}

/* Days from 1970-01-01 to a day of the Gregorian calendar (years begin in March here, so that the
 * leap day is the last of its year). */
static int64_t days_to(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* Seconds since 1970; false where the certificate has no time that makes sense. */
static bool read_time(const ASN1_TIME *t, int64_t *seconds)
{
    struct tm tm;
    if (!t || ASN1_TIME_to_tm(t, &tm) != 1) return false;
    *seconds = days_to(tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday) * SECONDS_A_DAY +
               tm.tm_hour * 3600 + tm.tm_min * 60 + tm.tm_sec;
    return true;
}

/* The common name of who it is for, as UTF-8 of OpenSSL's; NULL where there is none. */
static unsigned char *common_name(const X509 *certificate, int *n)
{
    unsigned char *text = NULL;
    X509_NAME *subject = X509_get_subject_name(certificate);
    int at = subject ? X509_NAME_get_index_by_NID(subject, NID_commonName, -1) : -1;
    X509_NAME_ENTRY *entry = at >= 0 ? X509_NAME_get_entry(subject, at) : NULL;
    *n = entry ? ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(entry)) : -1;
    ERR_clear_error();
    return *n >= 0 ? text : NULL;
}

/* What Lua is to know of a certificate, before any of it is pushed: pushing may raise, and must find
 * nothing that would leak. */
typedef struct facts {
    unsigned char hash[LXD_FINGERPRINT];
    char name[256];
    size_t name_length;
    bool begins, ends;
    int64_t not_before, not_after;
} facts;

static bool look_at(const X509 *certificate, facts *f)
{
    memset(f, 0, sizeof *f);
    if (!lxd_certificate_hash(certificate, f->hash)) return false;
    int n;
    unsigned char *name = common_name(certificate, &n);
    if (name) {
        f->name_length = (size_t)n < sizeof f->name ? (size_t)n : sizeof f->name;
        memcpy(f->name, name, f->name_length);
        OPENSSL_free(name);
    }
    f->begins = read_time(X509_get0_notBefore(certificate), &f->not_before);
    f->ends = read_time(X509_get0_notAfter(certificate), &f->not_after);
    ERR_clear_error();
    return true;
}

static int l_core_certificate(lua_State *L)
{
    size_t n;
    const char *why, *pem = luaL_checklstring(L, 1, &n);
    facts f;
    X509 *certificate = lxd_certificate_read(pem, n, &why);
    bool done = certificate && look_at(certificate, &f);
    X509_free(certificate);
    if (!certificate) {
        lua_pushnil(L);
        lua_pushstring(L, why);
        return 2;
    }
    if (!done) return luaL_error(L, "not enough memory");
    lua_createtable(L, 0, 4);
    lxd_push_hex(L, f.hash, sizeof f.hash);
    lua_setfield(L, -2, "fingerprint");
    lua_pushlstring(L, f.name, f.name_length);
    lua_setfield(L, -2, "name");
    if (f.begins) {
        lua_pushinteger(L, (lua_Integer)f.not_before);
        lua_setfield(L, -2, "not_before");
    }
    if (f.ends) {
        lua_pushinteger(L, (lua_Integer)f.not_after);
        lua_setfield(L, -2, "not_after");
    }
    return 1;
}

static bool add_extension(X509 *certificate, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, certificate, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool added = extension && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return added;
}

static bool set_serial(X509 *certificate)
{
    BIGNUM *number = BN_new();
    bool set = number && BN_rand(number, 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ODD) == 1 &&
               BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate));
    BN_free(number);
    return set;
}

static bool set_name(X509 *certificate, const char *name, size_t n)
{
    X509_NAME *subject = X509_get_subject_name(certificate);
    return X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC, (const unsigned char *)"lualxd",
                                      -1, -1, 0) == 1 &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name,
                                      (int)n, -1, 0) == 1 &&
           X509_set_issuer_name(certificate, subject) == 1;
}

/* A certificate for a client that vouches for itself, signed with its key. */
static X509 *sign_self(EVP_PKEY *key, const char *name, size_t n)
{
    X509 *certificate = X509_new();
    if (certificate && X509_set_version(certificate, X509_VERSION_3) == 1 &&
        set_serial(certificate) && set_name(certificate, name, n) &&
        X509_gmtime_adj(X509_getm_notBefore(certificate), -BACKDATED) &&
        X509_time_adj_ex(X509_getm_notAfter(certificate), VALID_DAYS, 0, NULL) &&
        X509_set_pubkey(certificate, key) == 1 &&
        add_extension(certificate, NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(certificate, NID_key_usage, "critical,digitalSignature") &&
        add_extension(certificate, NID_ext_key_usage, "clientAuth") &&
        X509_sign(certificate, key, EVP_sha384()) > 0)
        return certificate;
    X509_free(certificate);
    return NULL;
}

/* Texts in PEM form, on the C stack: pushing them may raise, and must find nothing that would leak. */
typedef struct texts {
    char certificate[4096];
    char key[1024];
    size_t certificate_length, key_length;
} texts;

/* Moves what was written to a BIO. */
static bool take(BIO *from, char *to, size_t room, size_t *n)
{
    char *bytes;
    long length = BIO_get_mem_data(from, &bytes);
    if (length <= 0 || (size_t)length > room) return false;
    memcpy(to, bytes, (size_t)length);
    *n = (size_t)length;
    return true;
}

/* Whether it can be a common name. Asked by itself, since set_name fails for want of memory, too, and
 * OpenSSL doesn't tell the one from the other. */
static bool is_name(const char *name, size_t n)
{
    int type = ASN1_mbstring_ncopy(NULL, (const unsigned char *)name, (int)n, MBSTRING_UTF8,
                                   B_ASN1_UTF8STRING, 1, 64); /* ub_common_name of RFC 5280 */
    ERR_clear_error();
    return type > 0;
}

/* Makes both; false: no memory. */
static bool make_identity(texts *t, const char *name, size_t n)
{
    EVP_PKEY *key = EVP_EC_gen("P-384");
    X509 *certificate = key ? sign_self(key, name, n) : NULL;
    BIO *one = BIO_new(BIO_s_mem()), *other = BIO_new(BIO_s_secmem());
    bool made = certificate && one && other && PEM_write_bio_X509(one, certificate) == 1 &&
                PEM_write_bio_PKCS8PrivateKey(other, key, NULL, NULL, 0, NULL, NULL) == 1 &&
                take(one, t->certificate, sizeof t->certificate, &t->certificate_length) &&
                take(other, t->key, sizeof t->key, &t->key_length);
    BIO_free(one);
    BIO_free(other);
    X509_free(certificate);
    EVP_PKEY_free(key);
    ERR_clear_error();
    return made;
}

static int l_core_new_identity(lua_State *L)
{
    size_t n;
    const char *name = luaL_checklstring(L, 1, &n);
    luaL_argcheck(L, n > 0 && n <= 256 && strlen(name) == n, 1, "no name");
    luaL_argcheck(L, is_name(name, n), 1, "must be UTF-8 of at most 64 characters");
    texts t;
    if (!make_identity(&t, name, n)) return luaL_error(L, "not enough memory");
    lua_pushlstring(L, t.certificate, t.certificate_length);
    lua_pushlstring(L, t.key, t.key_length);
    OPENSSL_cleanse(t.key, sizeof t.key);
    return 2;
}

/* Writes a file that nobody else can read, at no time, and that nobody else made. */
static int write_private(const char *path, const char *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return errno;
    int error = fchmod(fd, 0600) == 0 ? 0 : errno; /* a umask may have taken even our own rights */
    while (n > 0 && error == 0) {
        ssize_t written = write(fd, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            error = errno;
        } else {
            bytes += written;
            n -= (size_t)written;
        }
    }
    if (error == 0 && fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) error = errno;
    if (close(fd) != 0 && error == 0) error = errno;
    if (error != 0) unlink(path);
    return error;
}

static int l_core_write_private(lua_State *L)
{
    size_t length, n;
    const char *path = luaL_checklstring(L, 1, &length), *bytes = luaL_checklstring(L, 2, &n);
    int error = strlen(path) == length ? write_private(path, bytes, n) : ENOENT;
    if (error == 0) {
        lua_pushboolean(L, true);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, strerror(error));
    lua_pushinteger(L, error);
    return 3;
}

static int l_core_base64(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 1, &n);
    luaL_argcheck(L, n <= 65536, 1, "too long");
    /* From Lua, so that nothing leaks. */
    unsigned char *text = lua_newuserdata(L, 4 * ((n + 2) / 3) + 1);
    int length = EVP_EncodeBlock(text, (const unsigned char *)bytes, (int)n);
    lua_pushlstring(L, (char *)text, (size_t)length);
    return 1;
}

static int l_core_unbase64(lua_State *L)
{
    size_t n, padding = 0;
    const char *text = luaL_checklstring(L, 1, &n);
    if (n == 0 || n % 4 != 0 || n > 65536) return 0;
    while (padding < 2 && text[n - 1 - padding] == '=') padding++;
    /* EVP_DecodeBlock takes white space at both ends, and a padding anywhere for zeroes. */
    for (size_t i = 0; i < n - padding; i++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", text[i]) ||
            text[i] == 0)
            return 0;
    unsigned char *bytes = lua_newuserdata(L, n / 4 * 3 + 1);
    int length = EVP_DecodeBlock(bytes, (const unsigned char *)text, (int)n);
    ERR_clear_error();
    if (length < 0) return 0;
    lua_pushlstring(L, (char *)bytes, (size_t)length - padding);
    return 1;
}

static const luaL_Reg functions[] = {
    {"certificate", l_core_certificate},
    {"new_identity", l_core_new_identity},
    {"write_private", l_core_write_private},
    {"base64", l_core_base64},
    {"unbase64", l_core_unbase64},
    {NULL, NULL},
};

void lualxd_open_identity(lua_State *L)
{
    luaL_setfuncs(L, functions, 0);
}
