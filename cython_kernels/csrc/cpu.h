#ifndef KANDIGA_CPU_H
#define KANDIGA_CPU_H
/* Number of logical processors this process may run on. */
int kandiga_cpu_count(void);
#endif
