# Blocks of files read into memory, many at once.
from libc.errno cimport ENOMEM

cdef extern from "block_reader.h" nogil:
    ctypedef struct kandiga_block_read:
        int fd
        int64_t offset
        void* address
        size_t length
        uint64_t tag
    ctypedef struct kandiga_block_done:
        uint64_t tag
        int64_t result
    struct kandiga_block_reader
    kandiga_block_reader* kandiga_block_reader_open(int num_threads, int use_queue)
    int kandiga_block_reader_has_queue(const kandiga_block_reader* reader)
    size_t kandiga_block_reader_capacity(const kandiga_block_reader* reader)
    int kandiga_block_reader_start(kandiga_block_reader* reader, const kandiga_block_read* reads,
                                   size_t num_reads, size_t* num_started)
    int64_t kandiga_block_reader_wait(kandiga_block_reader* reader, kandiga_block_done* done,
                                      size_t max_done, size_t least)
    void kandiga_block_reader_close(kandiga_block_reader* reader)

cdef enum:
    MOST_AT_ONCE = 128


cdef class BlockReader:
    """Reads under way into memory that the caller keeps, by the kernel's own queue or by threads.

    One call at a time. A read that ends early or fails is the caller's to finish: `wait` says so.
    """

    cdef kandiga_block_reader* reader
    #: reads that were started and not yet returned by `wait`
    cdef readonly size_t under_way

    def __cinit__(self, int num_threads, bint use_queue=True):
        """num_threads: what reads where there is no such queue (io_uring), or use_queue is False.
        """
        if num_threads < 1:
            raise ValueError(f"num_threads: {num_threads}, expected at least 1")
        self.reader = kandiga_block_reader_open(num_threads, use_queue)
        if self.reader == NULL:
            raise OSError(ENOMEM, "no thread that could read")

    def __dealloc__(self):
        self.close()

    @property
    def has_queue(self):
        """Whether reads go through the kernel's own queue."""
        return kandiga_block_reader_has_queue(self.open_reader()) != 0

    @property
    def capacity(self):
        """How many reads may be under way."""
        return kandiga_block_reader_capacity(self.open_reader())

    def start(self, list reads not None):
        """Start reads, each a tuple (fd, offset_bytes, address, length_bytes, tag).

        Addresses must be writable until `wait` returns the tag, an int of the caller's choice.
        Returns how many were started: fewer than given when the system refuses the next one.
        ValueError when more than `capacity` would be under way.
        """
        cdef kandiga_block_reader* reader = self.open_reader()
        cdef kandiga_block_read wanted[MOST_AT_ONCE]
        cdef size_t num_reads = len(reads), num_started = 0
        if num_reads + self.under_way > kandiga_block_reader_capacity(reader):
            raise ValueError(
                f"reads: {num_reads} beside {self.under_way} under way, expected at most "
                f"{kandiga_block_reader_capacity(reader)} together"
            )
        cdef size_t i
        for i in range(num_reads):
            fd, offset, address, length, tag = reads[i]
            wanted[i].fd = fd
            wanted[i].offset = offset
            wanted[i].address = <void*><size_t>address
            wanted[i].length = length
            wanted[i].tag = tag
        with nogil:
            kandiga_block_reader_start(reader, wanted, num_reads, &num_started)
        self.under_way += num_started
        return num_started

    def wait(self, size_t least=1):
        """Return what is done, [(tag, bytes read or -errno)], waiting for at least so many.

        ValueError when fewer are under way.
        """
        cdef kandiga_block_reader* reader = self.open_reader()
        cdef kandiga_block_done done[MOST_AT_ONCE]
        cdef int64_t count
        if least > self.under_way:
            raise ValueError(f"least: {least}, expected at most {self.under_way} under way")
        with nogil:
            count = kandiga_block_reader_wait(reader, done, MOST_AT_ONCE, least)
        if count < 0:
            raise OSError(<int>-count, "waiting for reads")
        self.under_way -= <size_t>count
        return [(done[i].tag, done[i].result) for i in range(count)]

    def close(self):
        """Wait for what is under way and let go of threads or queue."""
        if self.reader == NULL:
            return
        while self.under_way:
            self.wait()
        kandiga_block_reader_close(self.reader)
        self.reader = NULL

    cdef kandiga_block_reader* open_reader(self) except NULL:
        if self.reader == NULL:
            raise ValueError("the reader is closed")
        return self.reader
