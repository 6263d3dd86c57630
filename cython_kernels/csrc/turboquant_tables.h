/* The codebooks: Lloyd-Max centroids of N(0, 1), and as int8 levels. Computed by
 * cython_kernels/reference/turboquant.py (lloyd_max, level_table), which a test compares with. */
#ifndef KANDIGA_TURBOQUANT_TABLES_H
#define KANDIGA_TURBOQUANT_TABLES_H

#include <stdint.h>

/* Borders between magnitudes, in standard deviations, and the magnitudes as levels.
 * level_deviation: the standard deviations that a level of 1 stands for. */
struct turboquant_codebook {
    int num_magnitudes;
    float level_deviation;
    float borders[7];
    float magnitudes[8];
};

static const struct turboquant_codebook turboquant_codebooks[5] = {
    [2] = {2, 0.01189305f, {0.9815988f}, {38.0f, 127.0f}},
    [3] = {4, 0.01694445f, {0.5005497f, 1.0499573f, 1.7479275f}, {14.0f, 45.0f, 79.0f, 127.0f}},
    [4] = {8,
           0.02151645f,
           {0.2582217f, 0.5224037f, 0.7995498f, 1.0992858f, 1.4371388f, 1.8435318f, 2.4008034f},
           {6.0f, 18.0f, 31.0f, 44.0f, 58.0f, 75.0f, 96.0f, 127.0f}},
};

/* Levels by code; 1 bit: what a sign bit stands for. */
static const int8_t turboquant_levels[5][16] = {
    [1] = {1, -1},
    [2] = {-127, -38, 38, 127},
    [3] = {14, 45, 79, 127, -14, -45, -79, -127},
    [4] = {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127},
};

#endif
