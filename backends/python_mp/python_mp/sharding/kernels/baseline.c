/* What every processor of the architecture has: SSE2, NEON. */
#define LANES 4
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

const Kernels kernels_baseline = {"baseline",    multiply,    attend, attend_packed,
                                  normalise, standardise, rotate, combine};
