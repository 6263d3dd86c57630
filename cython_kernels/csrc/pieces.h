/* Cutting a range of rows into pieces for threads that take the next one whenever they are free. */
#ifndef KANDIGA_PIECES_H
#define KANDIGA_PIECES_H

#include <stddef.h>

#define KANDIGA_MAX_PIECES 512

/*
 * The first pieces are long, so that a thread reads memory in long runs; towards the end they
 * become short, so that all threads finish together whatever slowed one of them down.
 */
struct kandiga_pieces {
    size_t count;
    size_t begins[KANDIGA_MAX_PIECES + 1]; /* piece i is begins[i] to begins[i + 1] */
};

/* Beginning a piece costs about a microsecond: nothing has asked memory for its first rows. */
#define KANDIGA_PIECE_BYTES 32768

/* Rows of a piece that is not shorter than it should be, a multiple of 16. */
static inline size_t kandiga_piece_rows(size_t row_bytes) {
    size_t rows = KANDIGA_PIECE_BYTES / (row_bytes > 0 ? row_bytes : 1);
    return rows < 16 ? 16 : rows / 16 * 16;
}

/* Cut 0 to `total` for num_threads threads, into pieces of at least `least`; 1 thread: one piece.
 */
static inline void kandiga_cut(struct kandiga_pieces* pieces, size_t total, size_t least,
                               size_t num_threads) {
    size_t fewest = total / (KANDIGA_MAX_PIECES / 2);
    if (least < fewest)
        least = fewest / 16 * 16 + 16;
    pieces->count = 0;
    size_t begin = 0;
    while (begin < total) {
        pieces->begins[pieces->count++] = begin;
        size_t share = (total - begin) / num_threads;
        size_t length = num_threads > 1 ? share / 4 * 3 / 16 * 16 : total;
        begin += length > least ? length : least;
    }
    pieces->begins[pieces->count] = total;
}

#endif
