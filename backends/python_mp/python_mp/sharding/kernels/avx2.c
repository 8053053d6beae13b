#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define LANES 8
#define ROWS 3
#include "lanes.h"
#include "products.h"
#include "pages.h"
#include "tasks.h"

const Kernels kernels_avx2 = {"avx2", multiply, attend};
#endif
