/* Memory for blocks that are read one after another, in huge pages.
 *
 * Attention over a long coded cache was a fifth slower with blocks from malloc: they lie in small
 * pages, whose addresses miss the TLB at every block. All caches of a process share slabs, so what
 * is charged beyond the blocks is a huge page or two, not one for each layer. */
#ifndef KANDIGA_BLOCK_MEMORY_H
#define KANDIGA_BLOCK_MEMORY_H

#include <stddef.h>

/* Return memory aligned to 64 bytes, or NULL: no memory, or no huge pages on this system. Any
 * thread. */
void* kandiga_take_block(size_t block_bytes);

/* Give a block back; its pages return to the system at once. Returns 0, and does nothing, for
 * memory that is none of `kandiga_take_block`. Any thread. */
int kandiga_give_block(void* block);

#endif
