/* Certificates and keys: reading, making, naming them by their fingerprints.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_IDENTITY_H
#define LXD_IDENTITY_H

#include <stdbool.h>

#include <openssl/x509.h>

#include "core.h"

#define LXD_FINGERPRINT 32 /* bytes of a SHA-256 */

/* The first certificate, the first private key of a PEM text; the caller owns it. NULL: there is
 * none, or it makes no sense. `why` is then set to words that hold nothing of the text. */
X509 *lxd_certificate_read(const char *pem, size_t n, const char **why);
EVP_PKEY *lxd_key_read(const char *pem, size_t n, const char **why);

/* Whether a PEM text has certificates of CAs, all of which libcurl will be able to read. False: `why` is
 * set. */
bool lxd_authorities_check(const char *pem, size_t n, const char **why);

/* The SHA-256 of a certificate's DER form: how LXD names it. False: out of memory. */
bool lxd_certificate_hash(const X509 *certificate, unsigned char hash[LXD_FINGERPRINT]);

/* Its PEM text, to be freed by LXD_FREE. NULL: out of memory. */
char *lxd_certificate_pem(X509 *certificate, size_t *n);

#endif
