/* Mapped files that may be cut short, or fail to be read, while kernels compute on their pages.

   Touching such a page raises SIGBUS, which ends the process. Inside a guarded range the page is
   replaced by zeros instead and the fault noted: the computation goes on with wrong numbers, and
   whoever started it asks kandiga_map_guard_fault before using what came out. */
#ifndef KANDIGA_MAP_GUARD_H
#define KANDIGA_MAP_GUARD_H

#include <stddef.h>

struct kandiga_map_guard;

/* Guards [address, address + length), a mapping of whole pages, until it is dropped: before the
   range is unmapped. NULL without memory. */
struct kandiga_map_guard* kandiga_map_guard_new(const void* address, size_t length);
void kandiga_map_guard_drop(struct kandiga_map_guard* guard);

/* Offset in the range of the first page that was replaced, -1 if none was. */
ptrdiff_t kandiga_map_guard_fault(const struct kandiga_map_guard* guard);

/* Makes our handler the first to see SIGBUS again, should another have been installed since. It
   gives every fault outside the guarded ranges to the one that was there before. */
void kandiga_map_guard_arm(void);

#endif
