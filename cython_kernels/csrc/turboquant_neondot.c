/* NEON with dotprod: the same source, whose products of bytes are then one instruction. */
#define TURBOQUANT_TABLE kandiga_turboquant_neondot
#include "turboquant_neon.c"
