/*
 * Runs kernel cases from a file: runner CASES RESULTS ISA THREADS. cases.py describes both files.
 * Compiled for other machines and with the sanitizers; nothing here depends on Python.
 */
#define _GNU_SOURCE
#include "runner.h"
#include "cpu.h"
#include "dispatch.h"
#include "threadpool.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ENTRIES 128
#define NAME_BYTES 32

struct number {
    char name[NAME_BYTES];
    double value;
};

struct buffer {
    char name[NAME_BYTES];
    void* data;
    size_t num_bytes;
    int is_output;
};

struct test_case {
    char op[NAME_BYTES];
    size_t num_numbers, num_buffers;
    struct number numbers[MAX_ENTRIES];
    struct buffer buffers[MAX_ENTRIES];
};

static void fail(const char* what, const char* detail) {
    fprintf(stderr, "runner: %s %s\n", what, detail);
    exit(2);
}

double case_number(const struct test_case* c, const char* name) {
    for (size_t i = 0; i < c->num_numbers; i++)
        if (strcmp(c->numbers[i].name, name) == 0)
            return c->numbers[i].value;
    fail("no number", name);
    return 0;
}

size_t case_size(const struct test_case* c, const char* name) {
    return (size_t)case_number(c, name);
}

static const struct buffer* find_buffer(const struct test_case* c, const char* name) {
    for (size_t i = 0; i < c->num_buffers; i++)
        if (strcmp(c->buffers[i].name, name) == 0)
            return &c->buffers[i];
    return NULL;
}

void* case_buffer_or_null(const struct test_case* c, const char* name) {
    const struct buffer* buffer = find_buffer(c, name);
    return buffer ? buffer->data : NULL;
}

void* case_buffer(const struct test_case* c, const char* name) {
    void* data = case_buffer_or_null(c, name);
    if (!data)
        fail("no buffer", name);
    return data;
}

size_t case_bytes(const struct test_case* c, const char* name) {
    const struct buffer* buffer = find_buffer(c, name);
    if (!buffer)
        fail("no buffer", name);
    return buffer->num_bytes;
}

#if defined(__SANITIZE_ADDRESS__)

void* guarded_alloc(size_t num_bytes) {
    return malloc(num_bytes ? num_bytes : 1);
}

void guarded_free(void* memory, size_t num_bytes) {
    (void)num_bytes;
    free(memory);
}

#else

static size_t whole_pages(size_t num_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (num_bytes + page - 1) / page * page;
}

void* guarded_alloc(size_t num_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = whole_pages(num_bytes);
    char* memory =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + size, page, PROT_NONE) != 0)
        fail("no memory", "");
    return memory + (size - num_bytes);
}

void guarded_free(void* memory, size_t num_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = whole_pages(num_bytes);
    munmap((char*)memory - (size - num_bytes), size + page);
}

#endif

static void read_bytes(FILE* file, void* data, size_t num_bytes) {
    if (num_bytes > 0 && fread(data, num_bytes, 1, file) != 1)
        fail("case file", "too short");
}

static size_t read_size(FILE* file) {
    uint64_t value;
    read_bytes(file, &value, sizeof value);
    return (size_t)value;
}

static void read_case(FILE* file, struct test_case* c) {
    read_bytes(file, c->op, NAME_BYTES);
    c->num_numbers = read_size(file);
    c->num_buffers = read_size(file);
    if (c->num_numbers > MAX_ENTRIES || c->num_buffers > MAX_ENTRIES)
        fail("too many entries in", c->op);
    for (size_t i = 0; i < c->num_numbers; i++) {
        read_bytes(file, c->numbers[i].name, NAME_BYTES);
        read_bytes(file, &c->numbers[i].value, sizeof(double));
    }
    for (size_t i = 0; i < c->num_buffers; i++) {
        struct buffer* buffer = &c->buffers[i];
        read_bytes(file, buffer->name, NAME_BYTES);
        buffer->num_bytes = read_size(file);
        buffer->is_output = read_size(file) != 0;
        buffer->data = guarded_alloc(buffer->num_bytes);
        read_bytes(file, buffer->data, buffer->num_bytes);
    }
}

static void write_outputs(FILE* file, struct test_case* c) {
    for (size_t i = 0; i < c->num_buffers; i++) {
        struct buffer* buffer = &c->buffers[i];
        if (buffer->is_output && buffer->num_bytes > 0 &&
            fwrite(buffer->data, buffer->num_bytes, 1, file) != 1)
            fail("cannot write", buffer->name);
        guarded_free(buffer->data, buffer->num_bytes);
    }
}

static void run_case(const struct test_case* c) {
    const struct test_op* tables[] = {quant_test_ops, turboquant_test_ops, vector_test_ops};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (const struct test_op* op = tables[i]; op->name; op++)
            if (strcmp(op->name, c->op) == 0) {
                op->run(c);
                return;
            }
    fail("no operation", c->op);
}

static void select_isa(const char* name) {
    for (int isa = 0; isa < KANDIGA_NUM_ISAS; isa++)
        if (strcmp(kandiga_isa_name(isa), name) == 0 && kandiga_isa_available(isa)) {
            kandiga_select_isa(isa);
            return;
        }
    fail("cannot run instruction set", name);
}

int main(int argc, char** argv) {
    if (argc != 5)
        fail("usage:", "runner CASES RESULTS ISA THREADS");
    FILE* cases = fopen(argv[1], "rb");
    FILE* results = fopen(argv[2], "wb");
    if (!cases || !results)
        fail("cannot open", cases ? argv[2] : argv[1]);
    select_isa(argv[3]);
    kandiga_set_num_threads(atoi(argv[4]));
    char magic[8];
    read_bytes(cases, magic, sizeof magic);
    if (memcmp(magic, "KCASES01", 8) != 0)
        fail("not a case file:", argv[1]);
    static struct test_case c;
    for (size_t left = read_size(cases); left > 0; left--) {
        read_case(cases, &c);
        run_case(&c);
        write_outputs(results, &c);
    }
    fclose(cases);
    return fclose(results) == 0 ? 0 : 2;
}
