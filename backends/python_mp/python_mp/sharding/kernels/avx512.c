#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define LANES 16
#define ROWS 6
#define HIGH 12
#define ACROSS 2
#include "lanes.h"
#include "panels.h"
#include "products.h"
#include "pages.h"
#include "tasks.h"
#include "packed.h"
#include "gelu.h"
#include "rows.h"
#include "combine.h"

const Kernels kernels_avx512 = {"avx512",    multiply,    attend, attend_packed,
                                normalise, standardise, rotate, combine};
#endif
