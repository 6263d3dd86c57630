#ifndef KANDIGA_VECTOR_OPS_H
#define KANDIGA_VECTOR_OPS_H

/* One instruction set's functions; a NULL entry falls back to scalar. Function pointers only. */
struct vector_ops {
    void (*placeholder)(void);
};

extern const struct vector_ops kandiga_vector_scalar;
extern const struct vector_ops kandiga_vector_avx2;
extern const struct vector_ops kandiga_vector_avx512;
extern const struct vector_ops kandiga_vector_neon;

#endif
