#ifndef KANDIGA_CPU_H
#define KANDIGA_CPU_H

/*
 * The instruction sets a kernel file may be written for, slowest first. One that is named after
 * another and an extension has that one's kernels wherever it has none of its own.
 */
enum kandiga_isa {
    KANDIGA_ISA_SCALAR,
    KANDIGA_ISA_AVX2,       /* AVX2, FMA, F16C */
    KANDIGA_ISA_AVX2VNNI,   /* AVX2 and AVX-VNNI */
    KANDIGA_ISA_AVX512,     /* AVX-512 F, BW, VL, DQ, and everything AVX2 needs */
    KANDIGA_ISA_AVX512VNNI, /* AVX-512 and its VNNI and VBMI */
    KANDIGA_ISA_AMX,        /* AMX-BF16 and AMX-INT8, and everything AVX512VNNI needs */
    KANDIGA_ISA_NEON,       /* aarch64 baseline */
    KANDIGA_ISA_NEONDOT,    /* NEON and dotprod */
    KANDIGA_NUM_ISAS,
};

const char* kandiga_isa_name(int isa);

/* 1 when this build holds the instruction set's code and processor and system can run it. */
int kandiga_isa_available(int isa);

/* Number of logical processors this process may run on. */
int kandiga_cpu_count(void);

#endif
