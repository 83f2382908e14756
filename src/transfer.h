/* A request in libcurl's hands.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_TRANSFER_H
#define LXD_TRANSFER_H

#include "request.h"

CURLcode lxd_transfer_setup(lxd_request *r);
void lxd_transfer_outcome(lxd_request *r, CURLcode code);
void lxd_transfer_harvest(lxd_request *r);
CURLcode lxd_transfer_resume(lxd_request *r);

#endif
