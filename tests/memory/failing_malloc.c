/* malloc and its kin for LD_PRELOAD, one call of which fails: the n-th of a thread from `least` bytes on. */
#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void*, size_t),
    *__libc_memalign(size_t, size_t);

static __thread long calls_left;
static __thread size_t least;

void fail_allocation(long n, size_t bytes) { calls_left = n, least = bytes; }
/* What is left of n: 0 once it has failed. */
long allocations_left(void) { return calls_left; }

static int refused(size_t size) {
  if (calls_left == 0 || size < least || --calls_left > 0) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return refused(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return refused(count * size) ? NULL : __libc_calloc(count, size); }
void* realloc(void* memory, size_t size) { return refused(size) ? NULL : __libc_realloc(memory, size); }
void* memalign(size_t alignment, size_t size) { return refused(size) ? NULL : __libc_memalign(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  void* const made = memalign(alignment, size);
  if (made == NULL) return ENOMEM;
  *memory = made;
  return 0;
}
