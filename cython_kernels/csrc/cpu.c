#define _GNU_SOURCE
#include "cpu.h"
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <asm/hwcap.h>
#endif

static const char* const names[KANDIGA_NUM_ISAS] = {"scalar",     "avx2", "avx2vnni", "avx512",
                                                    "avx512vnni", "amx",  "neon",     "neondot"};

const char* kandiga_isa_name(int isa) {
    return isa >= 0 && isa < KANDIGA_NUM_ISAS ? names[isa] : "unknown";
}

#if defined(__x86_64__)

/* Clang before 15 does not know "f16c" by name. */
static int has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

/* __builtin_cpu_supports also asks whether the system saves the wide registers (XGETBV). */
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/* CPUID leaf 7, subleaf 1, EAX bit 4; compilers of 2022 do not know "avxvnni" by name. */
static int has_avx2vnni(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4) != 0;
}

static int has_avx512vnni(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vbmi");
}

#if defined(KANDIGA_HAVE_AMX) && defined(__linux__)

/* Linux gives a process the tiles' 8 KiB of registers, for all its threads, when it asks. */
static int request_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Processor (leaf 7), system (XCR0: tile configuration and data), process. */
static int has_amx(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
    enum { XCR0_TILES = 3 << 17 };
    const unsigned amx = AMX_BF16 | AMX_TILE | AMX_INT8;
    unsigned eax, ebx, ecx, edx, xcr0, xcr0_high;
    if (!has_avx512vnni() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    if ((edx & amx) != amx)
        return 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    return (xcr0 & XCR0_TILES) == XCR0_TILES && request_tiles();
}

#endif

#elif defined(__aarch64__)

static int has_neon(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0;
#else
    return 1; /* every Apple processor of this architecture */
#endif
}

static int has_neondot(void) {
#if defined(__linux__)
    return has_neon() && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return 1;
#endif
}

#endif

int kandiga_isa_available(int isa) {
    switch (isa) {
    case KANDIGA_ISA_SCALAR:
        return 1;
#if defined(__x86_64__)
    case KANDIGA_ISA_AVX2:
        return has_avx2();
    case KANDIGA_ISA_AVX2VNNI:
        return has_avx2vnni();
    case KANDIGA_ISA_AVX512:
        return has_avx512();
    case KANDIGA_ISA_AVX512VNNI:
        return has_avx512vnni();
#if defined(KANDIGA_HAVE_AMX) && defined(__linux__)
    case KANDIGA_ISA_AMX:
        return has_amx();
#endif
#elif defined(__aarch64__)
    case KANDIGA_ISA_NEON:
        return has_neon();
    case KANDIGA_ISA_NEONDOT:
        return has_neondot();
#endif
    default:
        return 0;
    }
}

int kandiga_cpu_count(void) {
#ifdef __linux__
    /* Affinity, not the machine: containers and taskset hand out fewer cores than exist. */
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}
