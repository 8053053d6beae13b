/* New keys and values go to their places in the pages: copies of single numbers and of rows. */
#include <string.h>

#include "kernels.h"

static void store_key(char *to, const char *from, size_t head, size_t bytes) {
    for (size_t i = 0; i < head; i++) memcpy(to + i * BLOCK * bytes, from + i * bytes, bytes);
}

int store(const Store *s) {
    for (size_t i = 0; i < s->tokens; i++)
        if (s->places[i] < 0 || (size_t)s->places[i] >= s->blocks * BLOCK) return -1;
    size_t bytes = s->bfloat16 ? 2 : 4, row = s->head * bytes;
    for (size_t i = 0; i < s->tokens * s->kv_heads; i++) {
        size_t place = s->places[i / s->kv_heads], inside = place % BLOCK;
        size_t page = place / BLOCK * s->kv_heads + i % s->kv_heads;
        char *key = s->keys + (page * s->head * BLOCK + inside) * bytes;
        if (s->bfloat16) /* each a function of its own, with copies of a known size */
            store_key(key, s->k + i * row, s->head, 2);
        else
            store_key(key, s->k + i * row, s->head, 4);
        memcpy(s->values + (page * BLOCK + inside) * s->filled * bytes, s->v + i * row, row);
    }
    return 0;
}
