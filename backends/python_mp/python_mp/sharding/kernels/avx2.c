#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define LANES 8
#define ROWS 3
#define HIGH 3
#define ACROSS 4
#include "lanes.h"
#include "panels.h"
#include "products.h"
#include "pages.h"
#include "tasks.h"
#include "packed.h"
#include "gelu.h"
#include "rows.h"
#include "combine.h"

const Kernels kernels_avx2 = {"avx2",    multiply,    attend, attend_packed,
                              normalise, standardise, rotate, combine};
#endif
