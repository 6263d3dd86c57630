#ifndef KANDIGA_DISPATCH_H
#define KANDIGA_DISPATCH_H

#include "quant_ops.h"
#include "vector_ops.h"

/*
 * The kernels in use: one table of function pointers per room, filled for one instruction set, with
 * the scalar function wherever that instruction set has none.
 */
extern struct quant_ops kandiga_quant;
extern struct vector_ops kandiga_vector;

/* Fill both tables for isa, which must be available. Not to be called while a kernel runs. */
void kandiga_select_isa(int isa);

/* The instruction set last selected. */
int kandiga_selected_isa(void);

/* The fastest available instruction set. */
int kandiga_best_isa(void);

#endif
