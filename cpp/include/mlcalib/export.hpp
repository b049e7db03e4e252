// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Opens namespace mlcalib in public headers: what is declared there is exported by libmlcalib.so;
/// everything else is compiled with hidden visibility.
#define MLCALIB_API [[gnu::visibility("default")]]
