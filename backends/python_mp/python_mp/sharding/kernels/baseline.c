/* What every processor of the architecture has: SSE2, NEON. */
#define LANES 4
#define ROWS 3
#include "lanes.h"
#include "products.h"
#include "pages.h"
#include "tasks.h"

const Kernels kernels_baseline = {"baseline", multiply, attend};
