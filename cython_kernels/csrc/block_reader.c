#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "block_reader.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define CAPACITY 128
#define MAX_THREADS 64

/* Rings of CAPACITY entries; positions count up for ever. */
struct kandiga_block_reader {
    kandiga_kernel_queue* queue; /* or, when NULL: */
    pthread_mutex_t lock;
    pthread_cond_t work_available;
    pthread_cond_t work_done;
    kandiga_block_read reads[CAPACITY];
    size_t num_submitted;
    size_t num_begun;
    kandiga_block_done done[CAPACITY];
    size_t num_done;
    size_t num_taken;
    int stopping;
    int num_threads;
    pthread_t threads[MAX_THREADS];
};

static int64_t read_block(const kandiga_block_read* read) {
    ssize_t count = pread(read->fd, read->address, read->length, (off_t)read->offset);
    return count < 0 ? -(int64_t)errno : (int64_t)count;
}

static void* reader_main(void* context) {
    kandiga_block_reader* reader = context;
    pthread_mutex_lock(&reader->lock);
    for (;;) {
        while (reader->num_begun == reader->num_submitted && !reader->stopping)
            pthread_cond_wait(&reader->work_available, &reader->lock);
        if (reader->num_begun == reader->num_submitted)
            break;
        kandiga_block_read read = reader->reads[reader->num_begun++ % CAPACITY];
        pthread_mutex_unlock(&reader->lock);
        kandiga_block_done done = {read.tag, read_block(&read)};
        pthread_mutex_lock(&reader->lock);
        reader->done[reader->num_done++ % CAPACITY] = done;
        pthread_cond_signal(&reader->work_done);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

static void start_threads(kandiga_block_reader* reader, int num_threads) {
    /* Signals are for the threads that Python knows. */
    sigset_t blocked, before;
    sigfillset(&blocked);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (reader->num_threads < num_threads && reader->num_threads < MAX_THREADS) {
        pthread_t* thread = &reader->threads[reader->num_threads];
        if (pthread_create(thread, NULL, reader_main, reader) != 0)
            break;
        reader->num_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

kandiga_block_reader* kandiga_block_reader_open(int num_threads, int use_queue) {
    kandiga_block_reader* reader = calloc(1, sizeof *reader);
    if (!reader)
        return NULL;
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->work_available, NULL);
    pthread_cond_init(&reader->work_done, NULL);
    if (use_queue)
        reader->queue = kandiga_kernel_queue_open(CAPACITY);
    if (!reader->queue)
        start_threads(reader, num_threads);
    if (!reader->queue && reader->num_threads == 0) {
        kandiga_block_reader_close(reader);
        return NULL;
    }
    return reader;
}

int kandiga_block_reader_has_queue(const kandiga_block_reader* reader) {
    return reader->queue != NULL;
}

size_t kandiga_block_reader_capacity(const kandiga_block_reader* reader) {
    (void)reader;
    return CAPACITY;
}

int kandiga_block_reader_start(kandiga_block_reader* reader, const kandiga_block_read* reads,
                               size_t num_reads, size_t* num_started) {
    if (reader->queue)
        return kandiga_kernel_queue_start(reader->queue, reads, num_reads, num_started);
    pthread_mutex_lock(&reader->lock);
    for (size_t i = 0; i < num_reads; i++)
        reader->reads[reader->num_submitted++ % CAPACITY] = reads[i];
    pthread_cond_broadcast(&reader->work_available);
    pthread_mutex_unlock(&reader->lock);
    *num_started = num_reads;
    return 0;
}

int64_t kandiga_block_reader_wait(kandiga_block_reader* reader, kandiga_block_done* done,
                                  size_t max_done, size_t least) {
    if (reader->queue)
        return kandiga_kernel_queue_wait(reader->queue, done, max_done, least);
    int64_t count = 0;
    pthread_mutex_lock(&reader->lock);
    while (reader->num_done - reader->num_taken < least)
        pthread_cond_wait(&reader->work_done, &reader->lock);
    while (reader->num_taken < reader->num_done && (size_t)count < max_done)
        done[count++] = reader->done[reader->num_taken++ % CAPACITY];
    pthread_mutex_unlock(&reader->lock);
    return count;
}

void kandiga_block_reader_close(kandiga_block_reader* reader) {
    pthread_mutex_lock(&reader->lock);
    reader->stopping = 1;
    pthread_cond_broadcast(&reader->work_available);
    pthread_mutex_unlock(&reader->lock);
    for (int i = 0; i < reader->num_threads; i++)
        pthread_join(reader->threads[i], NULL);
    if (reader->queue)
        kandiga_kernel_queue_close(reader->queue);
    pthread_cond_destroy(&reader->work_available);
    pthread_cond_destroy(&reader->work_done);
    pthread_mutex_destroy(&reader->lock);
    free(reader);
}
