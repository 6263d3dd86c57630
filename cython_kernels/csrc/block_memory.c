#define _GNU_SOURCE
#include "block_memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(MADV_HUGEPAGE)

/* Address space of a slab: memory is charged a huge page at a time, as blocks are written. */
#define SLAB_BYTES ((size_t)16 << 20)
#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define ALIGN_BYTES ((size_t)64)

/* Blocks of one size. Those at `used` and above have never been taken. */
struct slab {
    struct slab* next;
    void* mapping;
    uint8_t* memory;
    size_t step_bytes, capacity, used;
    size_t num_free;
    uint32_t free_blocks[]; /* (capacity): a stack of num_free */
};

static struct slab* slabs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct slab* add_slab(size_t step_bytes) {
    const size_t capacity = SLAB_BYTES / step_bytes;
    struct slab* slab = malloc(sizeof *slab + capacity * sizeof slab->free_blocks[0]);
    if (slab == NULL) {
        return NULL;
    }
    void* mapping = mmap(NULL, SLAB_BYTES + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        free(slab);
        return NULL;
    }
    const uintptr_t begin = ((uintptr_t)mapping + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1);
    *slab = (struct slab){.next = slabs,
                          .mapping = mapping,
                          .memory = (uint8_t*)begin,
                          .step_bytes = step_bytes,
                          .capacity = capacity};
    /* Refused by kernels without huge pages, where small ones do. */
    (void)madvise(slab->memory, SLAB_BYTES, MADV_HUGEPAGE);
    slabs = slab;
    return slab;
}

static uint8_t* take_from(struct slab* slab) {
    const size_t index = slab->num_free ? slab->free_blocks[--slab->num_free] : slab->used++;
    return slab->memory + index * slab->step_bytes;
}

void* kandiga_take_block(size_t block_bytes) {
    const size_t step_bytes = (block_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    if (step_bytes == 0 || step_bytes > SLAB_BYTES) {
        return NULL;
    }
    pthread_mutex_lock(&lock);
    struct slab* slab = slabs;
    while (slab &&
           !(slab->step_bytes == step_bytes && (slab->num_free || slab->used < slab->capacity))) {
        slab = slab->next;
    }
    if (slab == NULL) {
        slab = add_slab(step_bytes);
    }
    void* block = slab ? take_from(slab) : NULL;
    pthread_mutex_unlock(&lock);
    return block;
}

/* The small pages that hold nothing of other blocks; a huge page is split for it. */
static void return_pages(uint8_t* block, size_t bytes) {
    const uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)block + page_bytes - 1) / page_bytes * page_bytes;
    const uintptr_t last = ((uintptr_t)block + bytes) / page_bytes * page_bytes;
    if (last > first) {
        (void)madvise((void*)first, last - first, MADV_DONTNEED);
    }
}

int kandiga_give_block(void* block) {
    const uintptr_t address = (uintptr_t)block;
    pthread_mutex_lock(&lock);
    struct slab** link = &slabs;
    while (*link && address - (uintptr_t)(*link)->memory >= SLAB_BYTES) {
        link = &(*link)->next;
    }
    struct slab* slab = *link;
    if (slab) {
        const size_t offset = (size_t)(address - (uintptr_t)slab->memory);
        slab->free_blocks[slab->num_free++] = (uint32_t)(offset / slab->step_bytes);
        if (slab->num_free == slab->used) {
            *link = slab->next;
            munmap(slab->mapping, SLAB_BYTES + HUGE_PAGE_BYTES);
            free(slab);
        } else {
            return_pages(block, slab->step_bytes);
        }
    }
    pthread_mutex_unlock(&lock);
    return slab != NULL;
}

#else

void* kandiga_take_block(size_t block_bytes) {
    (void)block_bytes;
    return NULL;
}

int kandiga_give_block(void* block) {
    (void)block;
    return 0;
}

#endif
